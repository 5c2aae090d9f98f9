//! The results of the last run of each kernel, which a report is made of: all of them take longer than one may want to wait.
//!
//! **Invariant**: a result is of one run of all tests of a kernel, and has its day.

use std::fs;

use anyhow::{Context as _, Result};

use super::{kernel, place, table::Row, write};
use crate::dist::arch::Arch;

/// Keeps the result of a run, in place of that of the last one.
pub(super) fn keep(row: &Row) -> Result<()> {
    let directory = place()?.join("results");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    write(&directory.join(name(&row.arch, &row.kernel)), serde_json::to_string(row).context("write a result")?)
}

/// The results of the kernels with names.
pub(super) fn all() -> Result<Vec<Row>> {
    let directory = place()?.join("results");
    let mut rows = Vec::new();
    for arch in Arch::ALL {
        for kernel in kernel::names() {
            let file = directory.join(name(arch.name(), &kernel));
            if let Ok(text) = fs::read_to_string(&file) {
                rows.push(serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))?);
            }
        }
    }
    Ok(rows)
}

fn name(arch: &str, kernel: &str) -> String {
    format!("{arch}-{kernel}.json")
}
