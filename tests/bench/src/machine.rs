//! The machine of a measurement.
//!
//! **Invariant:** everything is read, not guessed. A value that cannot be read is reported as unknown.

use std::{fmt, fs};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    /// The CPU that ran the workers.
    measured_on: usize,
}

impl Machine {
    pub(crate) fn read(measured_on: usize) -> Result<Self> {
        let read = |path| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let (cpu, cores) = processors(&read("/proc/cpuinfo")?);
        Ok(Self { kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(), cpu, cores, measured_on })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpu, cores, measured_on } = self;
        write!(formatter, "Linux {kernel}, {cpu}, {cores} cores, measured on CPU {measured_on}")
    }
}

/// Model and number of the processors in `/proc/cpuinfo`; some architectures report no model there.
fn processors(cpuinfo: &str) -> (String, usize) {
    let fields =
        || cpuinfo.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim()));
    let model = fields().find_map(|(key, value)| (key == "model name").then_some(value));
    (model.unwrap_or("unknown CPU").to_owned(), fields().filter(|(key, _)| *key == "processor").count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_named_and_counted() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n";
        assert_eq!(processors(cpuinfo), ("AMD EPYC".into(), 2));
        assert_eq!(processors("processor\t: 0\n"), ("unknown CPU".into(), 1));
    }
}
