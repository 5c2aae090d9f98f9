//! The list of the crates that are in the programs, in the format of CycloneDX.
//!
//! **Invariant**: it has what is linked on either side of bpf(2), and neither build scripts nor tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{VERSION, printed, program::Programs, timestamp};
use crate::cargo;

/// The packages of this workspace that are in the programs.
const ROOTS: [&str; 3] = ["steer", "steer-ebpf", "steer-lab"];

pub(super) fn write(all: &[Programs], directory: &Path) -> Result<PathBuf> {
    let mut command = cargo::cargo(["metadata", "--format-version", "1", "--locked"]);
    for programs in all {
        command.args(["--filter-platform", programs.arch.target()]);
    }
    let metadata: Value = serde_json::from_str(&printed(&mut command)?).context("read cargo's metadata")?;
    let file = directory.join(format!("steer-{VERSION}.cdx.json"));
    let document = document(&metadata, &timestamp()?)?;
    let text = serde_json::to_string_pretty(&document).context("write the list of crates")?;
    fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

fn document(metadata: &Value, timestamp: &str) -> Result<Value> {
    let packages = metadata["packages"].as_array().context("cargo's metadata lists no packages")?;
    let packages: BTreeMap<&str, &Value> =
        packages.iter().filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo's metadata has no dependencies")?;
    let linked: BTreeMap<&str, Vec<&str>> =
        nodes.iter().filter_map(|node| Some((node["id"].as_str()?, linked_by(node)))).collect();
    let mut found = BTreeSet::new();
    let is_root = |package: &Value| package["name"].as_str().is_some_and(|name| ROOTS.contains(&name));
    let mut open: Vec<&str> = packages.iter().filter(|(_, package)| is_root(package)).map(|(id, _)| *id).collect();
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(linked.get(id).into_iter().flatten());
        }
    }
    let component = |id: &&str| {
        let package = packages.get(id)?;
        let (name, version) = (package["name"].as_str()?, package["version"].as_str()?);
        let mut component = json!({
            "type": "library", "name": name, "version": version,
            "bom-ref": reference(name, version), "purl": format!("pkg:cargo/{name}@{version}"),
        });
        if let Some(licence) = package["license"].as_str() {
            component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
        }
        Some(component)
    };
    let name_of = |id: &&str| {
        let package = packages.get(id)?;
        Some(reference(package["name"].as_str()?, package["version"].as_str()?))
    };
    let dependencies = |id: &&str| {
        let mut on: Vec<_> = linked.get(id)?.iter().filter_map(name_of).collect();
        on.sort();
        on.dedup();
        Some(json!({"ref": name_of(id)?, "dependsOn": on}))
    };
    let mut components: Vec<Value> = found.iter().filter_map(component).collect();
    let mut depend: Vec<Value> = found.iter().filter_map(dependencies).collect();
    components.sort_by_key(|component| component["bom-ref"].to_string());
    depend.sort_by_key(|entry| entry["ref"].to_string());
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {
            "timestamp": timestamp,
            "component": {"type": "application", "name": "steer", "version": VERSION, "bom-ref": "steer"},
        },
        "components": components, "dependencies": depend,
    }))
}

fn reference(name: &str, version: &str) -> String {
    format!("{name}@{version}")
}

/// The packages that a package is linked with.
fn linked_by(node: &Value) -> Vec<&str> {
    let dependencies = node["deps"].as_array().into_iter().flatten();
    let is_linked = |dependency: &&Value| {
        let kinds = dependency["dep_kinds"].as_array();
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
    };
    dependencies.filter(is_linked).filter_map(|dependency| dependency["pkg"].as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_builds_or_tests_is_not_listed() {
        let package = |name: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"});
        let dependency = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let packages = ["steer", "linked", "deep", "cc", "proptest", "other"].map(package);
        let metadata = json!({
            "packages": packages,
            "resolve": {"nodes": [
                {"id": "steer", "deps": [
                    dependency("linked", Value::Null), dependency("cc", "build".into()), dependency("proptest", "dev".into()),
                ]},
                {"id": "linked", "deps": [dependency("deep", Value::Null)]},
                {"id": "deep", "deps": []},
            ]},
        });
        let document = document(&metadata, "1970-01-01T00:00:00Z").expect("a document");
        let names: Vec<_> = document["components"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["deep", "linked", "steer"]);
        assert_eq!(document["dependencies"][1], json!({"ref": "linked@1.0.0", "dependsOn": ["deep@1.0.0"]}));
        assert_eq!(document["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
    }
}
