//! Injects faults into a command at one of its system calls, with strace.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::ensure;

use crate::{Bed, NotHere, Output, output};

/// System calls with which steer changes pins, files and cgroups.
pub const CHANGES: [&str; 6] = ["bpf", "mkdir", "rename", "rmdir", "unlink", "write"];

/// The fault that replaces a system call.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The process is killed.
    Killed,
    /// The call fails with the error of this name.
    Error(&'static str),
}

/// The exit status of a killed command in a shell.
const KILLED: i32 = 128 + libc::SIGKILL;

impl Bed {
    /// The binary under test, with a fault at the `number`th call of a system call in any of its threads.
    pub fn steer_with(&self, fault: Fault, call: &str, number: usize, arguments: &[&str]) -> anyhow::Result<Command> {
        let what = match fault {
            Fault::Killed => "signal=KILL".to_owned(),
            Fault::Error(name) => format!("error={name}"),
        };
        let inject = format!("inject={call}:{what}:when={number}");
        self.steer_traced(&["-e", &format!("trace={call}"), "-e", &inject], Path::new("/dev/null"), arguments)
    }

    /// The number of times that a command, which must succeed, makes a system call.
    pub fn count_calls(&self, call: &str, arguments: &[&str]) -> anyhow::Result<usize> {
        let trace = self.directory.join("trace");
        let ended = output(&mut self.steer_traced(&["-e", &format!("trace={call}")], &trace, arguments)?)?;
        ensure!(ended.code == 0, "{arguments:?}: {ended:?}");
        Ok(count(&trace, call)?)
    }

    /// The binary under test, traced to a file with these options.
    pub fn steer_traced(&self, options: &[&str], trace: &Path, arguments: &[&str]) -> anyhow::Result<Command> {
        let steer = self.steer_here(arguments);
        let mut command = Command::new(strace()?);
        command.args(["-f", "-q", "-o"]).arg(trace).args(options).arg(steer.get_program()).args(steer.get_args());
        self.net.client.enter(&mut command);
        command.stdin(Stdio::null());
        Ok(command)
    }
}

impl Output {
    /// Whether the command was killed.
    pub fn was_killed(&self) -> bool {
        self.code == KILLED
    }
}

/// The number of times that a trace contains a system call.
pub fn count(trace: &Path, call: &str) -> std::io::Result<usize> {
    let text = std::fs::read_to_string(trace)?;
    Ok(text.lines().filter(|line| line.contains(&format!("{call}("))).count())
}

/// The number of times that the thread which makes most of them makes a system call. A fault counts the calls of each thread.
pub fn count_of_one_thread(trace: &Path, call: &str) -> std::io::Result<usize> {
    let text = std::fs::read_to_string(trace)?;
    let mut counts = BTreeMap::<&str, usize>::new();
    for line in text.lines().filter(|line| line.contains(&format!("{call}("))) {
        *counts.entry(line.split_whitespace().next().unwrap_or_default()).or_default() += 1;
    }
    Ok(counts.into_values().max().unwrap_or_default())
}

/// The name of strace. [`NotHere`] where it is not installed or cannot trace.
pub fn strace() -> anyhow::Result<&'static str> {
    const STRACE: &str = "strace";
    match output(Command::new(STRACE).args(["-o", "/dev/null", "true"])) {
        Ok(ended) if ended.code == 0 => Ok(STRACE),
        Ok(ended) => Err(NotHere(format!("strace cannot trace here: {}", ended.stderr.trim())).into()),
        Err(error) => Err(NotHere(format!("strace is not installed: {error}")).into()),
    }
}

/// The interval, in system calls, at which a fault is tried. It is 1 if STEER_THOROUGH is set, as `cargo xtask test
/// --thorough` does.
pub fn stride(usual: usize) -> usize {
    if std::env::var_os("STEER_THOROUGH").is_some() { 1 } else { usual }
}
