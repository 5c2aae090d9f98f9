//! A policy as the API receives it: the result is one policy of that name, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steer::{model::config::parse, run::api::parse_policy};

fuzz_target!(|input: (&str, &[u8])| {
    let (name, body) = input;
    let Ok(request) = parse_policy(body) else { return };
    let Ok(text) = request.to_toml(name) else { return };
    if let Ok(config) = parse("f", &text) {
        assert_eq!(config.policies.len(), 1, "one request, {text}");
        assert_eq!(config.policies[0].name, name);
    }
});
