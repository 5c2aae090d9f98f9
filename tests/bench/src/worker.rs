//! The workers: one process for each variant, in its cgroup and on one CPU. A worker runs a job on request and reports
//! the time that it took. Jobs and answers are lines of JSON on its standard input and output.
//!
//! **Invariant:** a worker runs only between a job and its answer, joins its cgroup once, and ends when its input
//! closes.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _, stdin, stdout},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::{Serialize, de::DeserializeOwned};

/// The CPU of every worker.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    cgroup: PathBuf,
    cpu: usize,
}

impl Place {
    /// Moves this process to the cgroup only.
    pub(crate) fn join_cgroup(&self) -> Result<()> {
        let procs = self.cgroup.join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("join {}", procs.display()))
    }

    /// Moves this process to the cgroup and the CPU.
    pub(crate) fn join(&self) -> Result<()> {
        self.join_cgroup()?;
        let mut cpus = CpuSet::new();
        cpus.set(self.cpu).with_context(|| format!("select CPU {}", self.cpu))?;
        sched_setaffinity(Pid::this(), &cpus).with_context(|| format!("pin this process to CPU {}", self.cpu))?;
        take_precedence().context("take precedence over other processes")
    }
}

/// The highest priority that leaves some time to the kernel's own threads, so that other work of this machine is not
/// measured.
fn take_precedence() -> io::Result<()> {
    // SAFETY: it takes three numbers; 0 is the calling process.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs the jobs from the input until it closes. An error in a job, or before the first, is the answer.
pub(crate) fn serve<J: DeserializeOwned, A: Serialize, F: FnMut(J) -> Result<A>>(
    prepare: impl FnOnce() -> Result<F>,
) -> Result<()> {
    let mut work = prepare();
    for line in stdin().lines() {
        let job = serde_json::from_str(&line?)?;
        let answer = match &mut work {
            Ok(work) => work(job).map_err(|error| format!("{error:#}")),
            Err(error) => Err(format!("{error:#}")),
        };
        let mut answer = serde_json::to_vec(&answer)?;
        answer.push(b'\n');
        stdout().write_all(&answer)?;
    }
    Ok(())
}

/// The CPU of all workers: the last allowed one, because the first ones serve more interrupts.
pub(crate) fn cpu() -> Result<usize> {
    let cpus = sched_getaffinity(Pid::this()).context("read the CPU affinity")?;
    let last = (0..CpuSet::count()).rev().find(|cpu| cpus.is_set(*cpu).unwrap_or(false));
    last.context("no CPU is allowed")
}

/// A worker process, in the process that controls it.
pub(crate) struct Worker {
    name: &'static str,
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker. `command` is the subcommand that serves, with the arguments it needs besides its cgroup.
    pub(crate) fn start(name: &'static str, command: &[&str], cgroup: &Path, cpu: usize) -> Result<Self> {
        Self::start_with(name, command, cgroup, cpu, &[])
    }

    /// The same, with these variables in its environment.
    pub(crate) fn start_with(
        name: &'static str,
        command: &[&str],
        cgroup: &Path,
        cpu: usize,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(command)
            .arg(cgroup)
            .arg(cpu.to_string())
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal is for the controlling process, which ends its workers itself.
            .process_group(0)
            .spawn()
            .context("start a worker")?;
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Self { name, child, answers })
    }

    /// Runs a job in the worker.
    pub(crate) fn ask<A: DeserializeOwned>(&mut self, job: &impl Serialize) -> Result<A> {
        let name = self.name;
        let mut line = serde_json::to_string(job)?;
        line.push('\n');
        let jobs = self.child.stdin.as_mut().expect("stdin is piped, and taken only when the worker is dropped");
        jobs.write_all(line.as_bytes()).with_context(|| format!("send a job to the worker {name:?}"))?;
        line.clear();
        self.answers.read_line(&mut line).with_context(|| format!("read the answer of the worker {name:?}"))?;
        let answer: Result<A, String> =
            serde_json::from_str(&line).with_context(|| format!("the worker {name:?} ended"))?;
        answer.map_err(|error| anyhow!("worker {name:?}: {error}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closes its input first, which ends it.
        if let Err(error) = self.child.wait() {
            eprintln!("steer-bench: wait for the worker {:?}: {error}", self.name);
        }
    }
}
