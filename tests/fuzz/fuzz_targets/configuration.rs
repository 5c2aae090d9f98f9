//! Any text is a valid configuration, or has errors that all have a position in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steer::model::config::parse;

fuzz_target!(|text: &str| {
    match parse("f", text) {
        Ok(config) => {
            for policy in &config.policies {
                assert!(!policy.name.is_empty() && policy.name.len() < 64);
                assert!(policy.cgroups.iter().all(|pattern| !pattern.matches(&[])), "it holds the whole machine");
                let target = &policy.target;
                assert_eq!(target.spec().target(target.uplink.clone()).as_ref(), Ok(target), "written and read");
            }
        }
        Err(problems) => {
            let lines = text.split('\n').count();
            assert!(!problems.problems.is_empty());
            for problem in &problems.problems {
                assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problem:?}");
            }
        }
    }
});
