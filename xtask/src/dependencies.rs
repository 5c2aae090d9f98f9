//! What a dependency may be: its licence, its source and its version, checked with what `cargo metadata` reports.
//!
//! **Invariant**: a licence that cannot be understood is not allowed. Advisories need a download and are not checked here:
//! `cargo deny check advisories` needs no configuration.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cargo;

/// The licences of which a dependency must offer one.
const LICENCES: [&str; 7] = ["MIT", "MIT-0", "Apache-2.0", "BSD-3-Clause", "ISC", "Unicode-3.0", "Zlib"];

/// Checks all dependencies of the workspace, of every feature and platform.
pub(crate) fn check() -> Result<()> {
    let mut command = cargo::cargo(["metadata", "--all-features", "--format-version", "1"]);
    eprintln!("lint: licences and sources in {}", cargo::display(&command));
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("start {}", cargo::display(&command)))?;
    ensure!(output.status.success(), "`{}` failed: {}", cargo::display(&command), output.status);
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo's metadata")?;
    let complaints = complaints(&metadata)?;
    ensure!(complaints.is_empty(), "dependencies that are not allowed:\n  {}", complaints.join("\n  "));
    Ok(())
}

/// What is wrong with the packages, one line each.
fn complaints(metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo's metadata lists no packages")?;
    ensure!(!packages.is_empty(), "cargo's metadata lists no packages");
    let mut complaints = Vec::new();
    for package in packages {
        let text = |key| package.get(key).and_then(Value::as_str);
        let name = format!("{} {}", text("name").unwrap_or("?"), text("version").unwrap_or("?"));
        match text("license") {
            None => complaints.push(format!("{name}: its manifest names no licence")),
            Some(licence) if is_allowed(licence) != Some(true) => {
                complaints.push(format!(
                    "{name}: the licence {licence} is not allowed; xtask/src/dependencies.rs lists the others"
                ));
            }
            Some(_) => {}
        }
        match text("source") {
            Some(source) if !source.starts_with("registry+") => {
                complaints.push(format!("{name}: the source {source} is not the public registry"));
            }
            Some(_) => {}
            // The public registry accepts neither of these in its packages.
            None => complaints.extend(declared(package).filter_map(declaration).map(|what| format!("{name}: {what}"))),
        }
    }
    Ok(complaints)
}

/// The dependencies that a manifest declares, apart from those in the workspace.
fn declared(package: &Value) -> impl Iterator<Item = &Value> {
    let all = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
    all.filter(|dependency| dependency.get("path").is_none())
}

/// What is wrong with the declaration of a dependency.
fn declaration(dependency: &Value) -> Option<String> {
    let text = |key| dependency.get(key).and_then(Value::as_str);
    let name = text("name").unwrap_or("?");
    if text("req").is_none_or(|version| version == "*") {
        return Some(format!("its dependency {name} may have any version"));
    }
    text("registry").map(|registry| format!("its dependency {name} is from the registry {registry}"))
}

/// Whether an SPDX expression can be fulfilled with the allowed licences. `None` if it cannot be parsed.
fn is_allowed(expression: &str) -> Option<bool> {
    // Old manifests separate alternatives by a slash.
    let expression = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words: Words = expression.split_whitespace().peekable();
    let allowed = any_of(&mut words)?;
    words.next().is_none().then_some(allowed)
}

type Words<'text> = std::iter::Peekable<std::str::SplitWhitespace<'text>>;

fn any_of(words: &mut Words) -> Option<bool> {
    let mut allowed = all_of(words)?;
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all_of(words)?;
    }
    Some(allowed)
}

fn all_of(words: &mut Words) -> Option<bool> {
    let mut allowed = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words)?;
    }
    Some(allowed)
}

fn one(words: &mut Words) -> Option<bool> {
    match words.next()? {
        "(" => {
            let allowed = any_of(words)?;
            words.next_if_eq(&")")?;
            Some(allowed)
        }
        ")" | "AND" | "OR" | "WITH" => None,
        // With an exception, it is another licence.
        _ if words.next_if_eq(&"WITH").is_some() => words.next().map(|_| false),
        licence => Some(LICENCES.contains(&licence)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_licence_is_allowed_if_its_expression_can_be_fulfilled() {
        for (expression, expected) in [
            ("MIT", Some(true)),
            ("GPL-3.0-only", Some(false)),
            ("mit", Some(false)),
            ("GPL-3.0-only OR MIT", Some(true)),
            ("MIT/GPL-3.0-only", Some(true)),
            ("MIT AND GPL-3.0-only", Some(false)),
            ("GPL-3.0-only AND MIT OR ISC", Some(true)),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", Some(true)),
            ("(MIT OR Apache-2.0) AND NCSA", Some(false)),
            ("Apache-2.0 WITH LLVM-exception", Some(false)),
            ("Apache-2.0 WITH LLVM-exception OR MIT", Some(true)),
            ("", None),
            ("MIT OR", None),
            ("MIT Zlib", None),
            ("(MIT", None),
            ("MIT)", None),
            ("MIT WITH", None),
        ] {
            assert_eq!(is_allowed(expression), expected, "{expression}");
        }
    }

    #[test]
    fn licences_sources_and_versions_are_checked() {
        let of = |package: Value| complaints(&json!({"packages": [package]})).expect("a list");
        let good =
            json!({"name": "a", "version": "1.0.0", "license": "MIT", "source": "registry+x", "dependencies": []});
        assert!(of(good.clone()).is_empty());
        for (key, value, expected) in [
            ("license", Value::Null, "names no licence"),
            ("license", json!("NCSA"), "NCSA is not allowed"),
            ("source", json!("git+x"), "git+x is not the public registry"),
        ] {
            let mut package = good.clone();
            package[key] = value;
            let found = of(package);
            assert!(found.len() == 1 && found[0].contains(expected) && found[0].starts_with("a 1.0.0: "), "{found:?}");
        }
        let member = |dependency: Value| of(json!({"name": "m", "license": "MIT", "dependencies": [dependency]}));
        assert!(member(json!({"name": "b", "req": "^1", "registry": null})).is_empty());
        assert!(member(json!({"name": "b", "req": "*", "path": "/b"})).is_empty());
        for dependency in [json!({"name": "b", "req": "*"}), json!({"name": "b", "req": "^1", "registry": "x"})] {
            let found = member(dependency);
            assert!(found.len() == 1 && found[0].contains("its dependency b "), "{found:?}");
        }
        assert!(complaints(&json!({"packages": []})).is_err());
    }
}
