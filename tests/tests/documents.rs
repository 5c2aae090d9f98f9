//! The documents name tests that exist.

use std::{fs, path::Path};

use libtest_mimic::Failed;

/// Documents with tests in backticks, as `module::name`, or as the beginning of such names.
const DOCUMENTS: [&str; 2] = ["guarantees.md", "faults.md"];

/// Checks that every name in the documents is that of a test, or the beginning of one.
pub(crate) fn check(tests: &[String]) -> Result<(), Failed> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(directory.join(document)).map_err(|error| format!("{document}: {error}"))?;
        let quoted = text.split('`').skip(1).step_by(2);
        let named = quoted.filter(|word| word.contains("::") && !word.contains([' ', '*', '.', '{']));
        missing.extend(named.filter(|word| !tests.iter().any(|test| test.starts_with(word))).map(str::to_owned));
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("no such tests: {}", missing.join(", ")).into()) }
}
