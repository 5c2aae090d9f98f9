//! docs/configuration.md, from which steer.toml(5) is made, has every key of a policy, and every word of its value.

use steer::model::{
    config::DAEMON_KEYS,
    spec::{DEFAULTS, KEYS},
};

const DOCUMENT: &str = include_str!("../../docs/configuration.md");

#[test]
fn every_key_of_a_policy_is_documented() {
    let policies = DOCUMENT.split("\n## ").find(|section| section.starts_with("Policies")).expect("a section");
    for key in KEYS {
        let row = policies.lines().find(|line| line.starts_with(&format!("| `{}` |", key.name)));
        assert!(row.is_some(), "no row for {}", key.name);
        for (word, _) in (key.words)() {
            let word = if key.is_bool() { format!("`{word}`") } else { format!("`\"{word}\"`") };
            assert!(policies.contains(&word), "{}: nothing about {word}", key.name);
        }
        for (field, _) in key.fields {
            assert!(policies.contains(&format!("`{field}`")), "{}: nothing about {field}", key.name);
        }
    }
    let defaults = DOCUMENT.split("\n## ").find(|section| section.starts_with("Defaults")).expect("a section");
    let daemon = DOCUMENT.split("\n## ").find(|section| section.starts_with("Daemon")).expect("a section");
    for key in DAEMON_KEYS {
        assert!(daemon.contains(&format!("\n| `{key}` |")), "no row for {key}");
    }
    assert!(DEFAULTS.iter().all(|key| defaults.contains(&format!("`{key}`"))), "{DEFAULTS:?}");
}
