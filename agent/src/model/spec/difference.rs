//! How two versions of a policy differ.

use super::{KEYS, Key, NOTHING, PolicySpec};

/// The keys that differ, with both values.
pub fn changes(before: &PolicySpec, now: &PolicySpec) -> Vec<String> {
    let value = |spec: &PolicySpec, key: &Key| match spec.texts(key.name).unwrap_or_default() {
        texts if !texts.is_empty() => texts.join(", "),
        _ if key.is_list => NOTHING.to_owned(),
        // "none" is an uplink, too.
        _ => "not set".to_owned(),
    };
    let differs = KEYS.iter().filter(|key| value(before, key) != value(now, key));
    differs.map(|key| format!("{}: {} (was {})", key.name, value(now, key), value(before, key))).collect()
}
