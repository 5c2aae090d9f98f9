//! Containers of Docker and Podman by their names.
//!
//! **Invariant:** reads only. A state that cannot be read has no containers.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use super::cgroup::Hierarchy;
use crate::model::cgroup_path::CgroupPath;

const DOCKER: &str = "/var/lib/docker/containers";
const PODMAN: [&str; 2] = ["/var/lib/containers/storage", "/run/containers/storage"];
/// Bytes of an id that a runtime has generated.
const ID_BYTES: usize = 64;
/// The shortest beginning of an id that is taken for one.
const SHORT_BYTES: usize = 12;

/// The cgroups of running containers with this name or id, outermost only.
pub fn cgroups(hierarchy: &Hierarchy, name: &str) -> Vec<CgroupPath> {
    let mut ids = [
        ids_in_docker(Path::new(DOCKER), name),
        PODMAN.iter().flat_map(|root| ids_in_podman(Path::new(root), name)).collect(),
    ]
    .concat();
    if ids.is_empty() {
        ids.extend(["docker", "podman"].iter().filter_map(|engine| ask(engine, name)));
    }
    let is_short = name.len() >= SHORT_BYTES && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_it = |id: &str| ids.iter().any(|known| known == id) || is_short && id.starts_with(name);
    let mut found: Vec<CgroupPath> = Vec::new();
    for path in hierarchy.descendants(&CgroupPath::root()).unwrap_or_default().into_iter().map(|found| found.path) {
        if id(path.name()).is_some_and(is_it) && !found.iter().any(|outer| path.is_in(outer)) {
            found.push(path);
        }
    }
    found
}

/// The id of the container in the name of its cgroup: `ID`, `docker-ID.scope`, `libpod-ID`, `pod.slice:cri-containerd:ID`.
fn id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    if name.starts_with("libpod-conmon-") {
        return None;
    }
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == ID_BYTES && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

fn read(file: PathBuf) -> Value {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn ids_in_docker(root: &Path, name: &str) -> Vec<String> {
    let states =
        fs::read_dir(root).into_iter().flatten().flatten().map(|entry| read(entry.path().join("config.v2.json")));
    let named = states.filter(|state| state["Name"].as_str().map(|own| own.trim_start_matches('/')) == Some(name));
    named.filter_map(|state| state["ID"].as_str().map(str::to_owned)).collect()
}

fn ids_in_podman(root: &Path, name: &str) -> Vec<String> {
    let drivers = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let lists = drivers.filter(|path| path.to_string_lossy().ends_with("-containers"));
    let lists =
        lists.flat_map(|path| ["containers.json", "volatile-containers.json"].map(|file| read(path.join(file))));
    let containers = lists.flat_map(|list| list.as_array().cloned().unwrap_or_default());
    let is_named = |container: &Value| {
        container["names"].as_array().is_some_and(|names| names.iter().any(|own| own.as_str() == Some(name)))
    };
    let ids: BTreeSet<_> =
        containers.filter(is_named).filter_map(|container| container["id"].as_str().map(str::to_owned)).collect();
    ids.into_iter().collect()
}

/// Asks an engine, which may keep its state elsewhere.
fn ask(engine: &str, name: &str) -> Option<String> {
    let arguments = ["inspect", "--type", "container", "--format", "{{.Id}}", "--", name];
    let asked = Command::new(engine).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let id = String::from_utf8(asked.stdout).ok()?.trim().to_owned();
    (asked.status.success() && id.len() == ID_BYTES).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{id, ids_in_docker, ids_in_podman};

    #[test]
    fn ids_in_names_of_cgroups() {
        let long = "0a1b2c3d".repeat(8);
        for name in [
            "ID",
            "docker-ID.scope",
            "libpod-ID",
            "libpod-ID.scope",
            "cri-containerd-ID.scope",
            "pod1.slice:cri-containerd:ID",
        ] {
            assert_eq!(id(&name.replace("ID", &long)), Some(long.as_str()), "{name}");
        }
        for name in ["libpod-conmon-ID.scope", "IDx", "web", ""] {
            assert_eq!(id(&name.replace("ID", &long)), None, "{name}");
        }
    }

    #[test]
    fn names_in_the_state_of_engines() {
        let root = std::env::temp_dir().join(format!("steer-containers-{}", std::process::id()));
        for (file, text) in [
            ("docker/1/config.v2.json", r#"{"ID":"1","Name":"/web"}"#),
            ("docker/2/config.v2.json", r#"{"ID":"2","Name":"/other"}"#),
            ("docker/3/config.v2.json", "no JSON"),
            ("podman/overlay-containers/containers.json", r#"[{"id":"4","names":["db","web"]},{"id":"5"}]"#),
        ] {
            fs::create_dir_all(root.join(file).parent().expect("a directory")).expect("made");
            fs::write(root.join(file), text).expect("written");
        }
        assert_eq!(ids_in_docker(&root.join("docker"), "web"), ["1"]);
        assert_eq!(ids_in_podman(&root.join("podman"), "web"), ["4"]);
        assert!(ids_in_podman(&root.join("none"), "web").is_empty());
        fs::remove_dir_all(root).expect("removed");
    }
}
