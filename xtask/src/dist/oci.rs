//! The image, as an archive in the format of OCI that holds both processors'. `podman load` and `ctr images import` take it.
//!
//! **Invariant**: the image has the program and what it reads, and no shell or library. A name is in the annotations of both Podman and
//! containerd.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{VERSION, archive, program::Programs, recreate, timestamp};

/// The name under which it is imported.
pub(super) const NAME: &str = "docker.io/library/steer";

/// Packs an image of these programs.
pub(super) fn of(all: &[Programs], directory: &Path) -> Result<PathBuf> {
    let place = directory.join(".oci");
    recreate(&place.join("blobs/sha256"))?;
    let mut manifests = Vec::new();
    for programs in all {
        manifests.push(manifest(programs, &place)?);
    }
    let many = blob(
        &place,
        "application/vnd.oci.image.index.v1+json",
        &json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}),
    )?;
    let mut entry = many;
    entry["annotations"] = json!({
        "org.opencontainers.image.ref.name": VERSION,
        "io.containerd.image.name": format!("{NAME}:{VERSION}"),
    });
    write(&place.join("oci-layout"), &json!({"imageLayoutVersion": "1.0.0"}))?;
    write(&place.join("index.json"), &json!({"schemaVersion": 2, "manifests": [entry]}))?;
    let image = directory.join(format!("steer-{VERSION}-oci.tar"));
    archive::tar(&image, &place, ".")?;
    fs::remove_dir_all(&place).with_context(|| format!("remove {}", place.display()))?;
    Ok(image)
}

/// Adds the image of a processor, and returns its entry in the index.
fn manifest(programs: &Programs, place: &Path) -> Result<Value> {
    let (layer, diff_id) = layer(programs, place)?;
    let created = timestamp()?;
    let architecture = programs.arch.name();
    let config = blob(
        place,
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "created": created, "architecture": architecture, "os": "linux",
            "config": {
                "Entrypoint": ["/usr/bin/steer"],
                "Env": ["PATH=/usr/bin:/usr/libexec/steer"],
                "Labels": {
                    "org.opencontainers.image.title": "steer",
                    "org.opencontainers.image.version": VERSION,
                    "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
                },
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "cargo xtask dist"}],
        }),
    )?;
    let mut entry = blob(
        place,
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [layer],
        }),
    )?;
    entry["platform"] = json!({"architecture": architecture, "os": "linux"});
    Ok(entry)
}

/// Adds the files of a processor. Returns the layer's descriptor, and the digest of its content.
fn layer(programs: &Programs, place: &Path) -> Result<(Value, String)> {
    let tree = place.join("tree");
    recreate(&tree)?;
    for directory in ["etc/steer", "proc", "run/steer", "sys", "tmp", "usr/bin", "usr/libexec/steer"] {
        let directory = tree.join(directory);
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    }
    for (name, to) in [("steer", "usr/bin/steer"), ("steer-demo", "usr/libexec/steer/steer-demo")] {
        let from = programs.directory.join(name);
        fs::copy(&from, tree.join(to)).with_context(|| format!("copy {}", from.display()))?;
    }
    // For `--socket-group`, and for tools that want a name for 0.
    for (file, text) in [("etc/passwd", "root:x:0:0:root:/:/nologin\n"), ("etc/group", "root:x:0:\n")] {
        fs::write(tree.join(file), text).with_context(|| format!("write {file}"))?;
    }
    let layer = place.join("layer.tar");
    archive::tar(&layer, &tree, ".")?;
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    let diff_id = format!("sha256:{}", archive::sha256(&layer)?);
    let layer = archive::gzip(&layer)?;
    Ok((add(place, "application/vnd.oci.image.layer.v1.tar+gzip", &layer)?, diff_id))
}

/// Adds a document.
fn blob(place: &Path, kind: &str, document: &Value) -> Result<Value> {
    let file = place.join("document");
    write(&file, document)?;
    add(place, kind, &file)
}

/// Moves a file to the blobs, and returns its descriptor.
fn add(place: &Path, kind: &str, file: &Path) -> Result<Value> {
    let digest = archive::sha256(file)?;
    let size = fs::metadata(file).with_context(|| format!("read {}", file.display()))?.len();
    let to = place.join("blobs/sha256").join(&digest);
    fs::rename(file, &to).with_context(|| format!("move {} to {}", file.display(), to.display()))?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size}))
}

fn write(file: &Path, document: &Value) -> Result<()> {
    fs::write(file, document.to_string()).with_context(|| format!("write {}", file.display()))
}
