//! A container's state: a hook treats a container as removed only if the state says so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steer::run::container::oci::{Stage, asked, created, stage};

fuzz_target!(|bytes: &[u8]| {
    match stage(bytes) {
        Ok(Stage::Stopped) => {
            let said: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
            assert_eq!(said["status"], "stopped");
        }
        Ok(Stage::Created(read)) => {
            assert!(read.pid > 0);
            // A name with a slash belongs to the owner of its DNS name.
            let any = read.annotations.keys().any(|name| name.starts_with("steer.") && !name.contains('/'));
            assert!(!matches!(asked(&read.annotations), Ok(None)) || !any, "an annotation was overlooked");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let _ = created(bytes);
});
