//! How two versions of a policy differ.

use super::{KEYS, NOTHING, PolicySpec};

/// The keys that differ, with both values.
pub fn changes(before: &PolicySpec, now: &PolicySpec) -> Vec<String> {
    let value = |spec: &PolicySpec, key: &str| {
        let texts = spec.texts(key).unwrap_or_default();
        if texts.is_empty() { NOTHING.to_owned() } else { texts.join(", ") }
    };
    let differs = KEYS.iter().filter(|key| value(before, key.name) != value(now, key.name));
    differs.map(|key| format!("{}: {} (was {})", key.name, value(now, key.name), value(before, key.name))).collect()
}
