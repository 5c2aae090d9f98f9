//! An image with only a program that waits. The other files that containers need are mounted.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};

use crate::output;

/// The name of the image.
pub(super) const NAME: &str = "steer.test/base:1";
const MEDIA: &str = "application/vnd.oci.image";

/// Writes the image as an archive for import.
pub(super) fn write(busybox: &Path, directory: &Path) -> anyhow::Result<std::path::PathBuf> {
    let (root, layout) = (directory.join("image-root"), directory.join("image"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    for place in ["dev", "etc", "proc", "run", "sys", "tmp", "usr", "var"] {
        fs::create_dir_all(root.join(place))?;
    }
    for link in ["bin", "lib", "lib64", "sbin"] {
        if let Ok(target) = fs::read_link(Path::new("/").join(link)) {
            std::os::unix::fs::symlink(target, root.join(link))?;
        }
    }
    fs::copy(busybox, root.join("busybox"))?;
    let layer = directory.join("layer.tar");
    run(Command::new("tar").arg("--create").arg("--file").arg(&layer).arg("--directory").arg(&root).arg("."))?;
    let (layer, layer_size) = add(&blobs, &layer)?;

    let command = r#"["/busybox","sleep","2147483647"]"#;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"Env":["PATH=/usr/bin:/bin"],"Cmd":{command}}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{layer}"]}}}}"#
    );
    let (config, config_size) = add_text(directory, &blobs, &config)?;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MEDIA}.manifest.v1+json",
            "config":{{"mediaType":"{MEDIA}.config.v1+json","digest":"sha256:{config}","size":{config_size}}},
            "layers":[{{"mediaType":"{MEDIA}.layer.v1.tar","digest":"sha256:{layer}","size":{layer_size}}}]}}"#
    );
    let (manifest, manifest_size) = add_text(directory, &blobs, &manifest)?;
    fs::write(
        layout.join("index.json"),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MEDIA}.manifest.v1+json","digest":"sha256:{manifest}",
                "size":{manifest_size},"annotations":{{"io.containerd.image.name":"{NAME}"}}}}]}}"#
        ),
    )?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let archive = directory.join("image.tar");
    let content = ["oci-layout", "index.json", "blobs"];
    run(Command::new("tar").arg("--create").arg("--file").arg(&archive).arg("--directory").arg(&layout).args(content))?;
    Ok(archive)
}

fn add_text(directory: &Path, blobs: &Path, text: &str) -> anyhow::Result<(String, u64)> {
    let file = directory.join("blob");
    fs::write(&file, text)?;
    add(blobs, &file)
}

/// Moves a file into the blobs. Returns its digest and its size.
fn add(blobs: &Path, file: &Path) -> anyhow::Result<(String, u64)> {
    let summed = run(Command::new("sha256sum").arg(file))?;
    let digest = summed.split_whitespace().next().context("sha256sum printed nothing")?.to_owned();
    fs::rename(file, blobs.join(&digest))?;
    let size = fs::metadata(blobs.join(&digest))?.len();
    Ok((digest, size))
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = output(command)?;
    ensure!(output.code == 0, "{command:?}: {output:?}");
    Ok(output.stdout)
}
