//! The manifest for Kubernetes: every field exists in the API and has a value of its type, and the configuration in it
//! is valid.

use std::fmt::Debug;

use anyhow::{Context as _, ensure};
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Namespace},
    },
    serde::{Serialize, de::DeserializeOwned},
};
use serde::Deserialize as _;
use serde_json::Value;
use steer_tests::{Outcome, binary, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("the_daemonset_is_valid", the_daemonset_is_valid)];

const MANIFEST: &str = include_str!("../../../docs/daemonset.yaml");

fn the_daemonset_is_valid() -> Outcome {
    let mut daemon_sets = 0;
    for document in serde_yaml_ng::Deserializer::from_str(MANIFEST) {
        let document = Value::deserialize(document)?;
        match document["kind"].as_str() {
            Some("Namespace") => check::<Namespace>(&document)?,
            Some("ConfigMap") => {
                check::<ConfigMap>(&document)?;
                check_configuration(document["data"]["steer.toml"].as_str().context("no steer.toml")?)?;
            }
            Some("DaemonSet") => {
                check::<DaemonSet>(&document)?;
                daemon_sets += 1;
            }
            other => anyhow::bail!("a document of kind {other:?}"),
        }
    }
    ensure!(daemon_sets == 1, "{daemon_sets} DaemonSets");
    Ok(())
}

/// The API keeps the whole document: it would drop unknown fields, and reject values of a wrong type.
fn check<T: DeserializeOwned + Serialize + Debug>(document: &Value) -> Outcome {
    let kept = |document: &Value| serde_json::to_value(serde_json::from_value::<T>(document.clone())?);
    let what = &document["kind"];
    ensure!(
        kept(document).with_context(|| format!("{what}"))? == *document,
        "{what} has fields that the API does not know"
    );
    // Proves that the check can fail.
    let mut misspelt = document.clone();
    misspelt["metadata"]["naem"] = "x".into();
    ensure!(kept(&misspelt)? != misspelt, "a misspelt field was not noticed");
    Ok(())
}

fn check_configuration(text: &str) -> Outcome {
    let directory = std::env::temp_dir().join(format!("steer-test-{}-manifest", std::process::id()));
    std::fs::create_dir(&directory)?;
    let file = directory.join("steer.toml");
    std::fs::write(&file, text)?;
    let checked =
        output(std::process::Command::new(binary("STEER_BIN", "steer")).args(["check", "--config"]).arg(&file));
    std::fs::remove_dir_all(&directory)?;
    let checked = checked?;
    ensure!(checked.code == 0, "{checked:?}");
    Ok(())
}
