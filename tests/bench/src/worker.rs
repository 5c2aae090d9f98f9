//! The workers: one process for each variant, in its cgroup and on one CPU, which makes sockets when told to and says how
//! long that took. Jobs and answers are lines of JSON on its standard input and output.
//!
//! **Invariant:** a worker runs only between a job and its answer, joins its cgroup once, and ends with its input. Nothing
//! but the system calls under test, and two readings of the clock, lies inside what is timed.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Write as _, stdin, stdout},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{SockFlag, getsockopt, setsockopt, socket, sockopt::BindToDevice},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::variant::{DEVICE, Kind, Variant};

/// How a worker is started.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    cgroup: PathBuf,
    cpu: usize,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Job {
    kind: Kind,
    /// Whether each socket is bound by `setsockopt`.
    bind: bool,
    ops: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    elapsed: Duration,
    /// What one more socket, made before the clock was read, was bound to.
    device: String,
}

/// What a worker process does.
pub(crate) fn serve(args: &Args) -> Result<()> {
    let procs = args.cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("join {}", procs.display()))?;
    let mut cpus = CpuSet::new();
    cpus.set(args.cpu).with_context(|| format!("name CPU {}", args.cpu))?;
    sched_setaffinity(Pid::this(), &cpus).with_context(|| format!("stay on CPU {}", args.cpu))?;
    for line in stdin().lines() {
        let job: Job = serde_json::from_str(&line?)?;
        let answer = job.run().with_context(|| format!("{job:?}"))?;
        let mut answer = serde_json::to_vec(&answer)?;
        answer.push(b'\n');
        stdout().write_all(&answer)?;
    }
    Ok(())
}

impl Job {
    fn run(self) -> nix::Result<Answer> {
        let device = getsockopt(&self.socket()?, BindToDevice)?.to_string_lossy().into_owned();
        let wanted = OsString::from(DEVICE);
        let start = Instant::now();
        if self.bind {
            for _ in 0..self.ops {
                setsockopt(&self.socket()?, BindToDevice, &wanted)?;
            }
        } else {
            for _ in 0..self.ops {
                drop(self.socket()?);
            }
        }
        Ok(Answer { elapsed: start.elapsed(), device })
    }

    fn socket(self) -> nix::Result<OwnedFd> {
        socket(self.kind.family(), self.kind.socket_type(), SockFlag::SOCK_CLOEXEC, None)
    }
}

/// A worker process, seen from the process that directs it.
pub(crate) struct Worker {
    variant: Variant,
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts the worker of a variant; `base` is the cgroup of the benchmark.
    pub(crate) fn start(variant: Variant, base: &Path, cpu: usize) -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg("worker")
            .arg(base.join(variant.cgroup()))
            .arg(cpu.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal is for the director, which ends its workers by itself.
            .process_group(0)
            .spawn()
            .context("start a worker")?;
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Self { variant, child, answers })
    }

    /// Has it make `ops` sockets; returns the nanoseconds each took.
    pub(crate) fn measure(&mut self, kind: Kind, ops: u32) -> Result<f64> {
        let name = self.variant.name();
        let mut line = serde_json::to_string(&Job { kind, bind: self.variant == Variant::Setsockopt, ops })?;
        line.push('\n');
        let jobs = self.child.stdin.as_mut().expect("stdin is piped, and taken only when the worker is dropped");
        jobs.write_all(line.as_bytes()).with_context(|| format!("direct the worker {name:?}"))?;
        line.clear();
        self.answers.read_line(&mut line).with_context(|| format!("hear the worker {name:?}"))?;
        let answer: Answer = serde_json::from_str(&line).with_context(|| format!("the worker {name:?} ended"))?;
        let expected = self.variant.device();
        ensure!(
            answer.device == *expected,
            "worker {name:?}: a new socket is bound to {:?}, not to {expected:?}",
            answer.device
        );
        Ok(answer.elapsed.as_secs_f64() * 1e9 / f64::from(ops))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closes its input first, which ends it.
        if let Err(error) = self.child.wait() {
            eprintln!("steer-bench: wait for the worker {:?}: {error}", self.variant.name());
        }
    }
}
