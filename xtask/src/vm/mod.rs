//! `cargo xtask vm` and `cargo xtask peers`: run integration tests under real kernels, each in its own virtual machine.
//!
//! **Invariant**: a kernel passes only if the guest itself reports success; no report, a panic and a timeout are failures. After
//! a failure, the remaining kernels are still tested.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

mod debian;
mod guest;
mod initramfs;
mod kernel;
mod matrix;
mod modules;
mod peers;
mod qemu;
mod table;

pub(crate) use self::{
    debian::{debootstrap, unpack_package},
    peers::{Peers, ROOT_NEEDS, version_of},
};
use self::{
    guest::{Job, Verdict},
    kernel::{Kernel, Wanted},
    table::Row,
};
use crate::{apt, cargo, setup::Setup, toolchain};

/// The required programs, and their Debian packages.
pub(crate) const NEEDS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("wg", "wireguard-tools"),
];

/// Run tests under real kernels, in virtual machines; needs no root once qemu and the like are installed.
#[derive(clap::Args)]
pub(crate) struct Vm {
    /// 5.10, 6.1, 6.12 or latest, as Debian currently ships them; or the file of a kernel image.
    #[arg(long = "kernel", value_name = "KERNEL", default_values = ["5.10", "6.1"])]
    kernels: Vec<Wanted>,
    /// Flavour of Debian's kernels, such as cloud-amd64.
    #[arg(long = "flavour", value_name = "FLAVOUR", default_value = "amd64")]
    flavours: Vec<String>,
    /// Run the integration tests whose name contains this; by default one for each feature that depends on the kernel.
    #[arg(long = "test", value_name = "FILTER", default_value = "kernel::")]
    filter: String,
    /// Write the features of each kernel to this file, as a table in Markdown.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Check for newer kernels than those downloaded before.
    #[arg(long)]
    refresh: bool,
    /// Print every console, not only those of failures.
    #[arg(long)]
    verbose: bool,
}

impl Vm {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        if cfg!(not(target_arch = "x86_64")) {
            bail!("virtual machines are set up for x86-64 only");
        }
        install(&NEEDS)?;
        Setup::default().run()?;
        let mut job = Job::of(&self.filter)?;
        for program in ["install", "ip", "wg"] {
            job.programs
                .push((program, toolchain::program(program).with_context(|| format!("{program} was removed"))?));
        }

        let mut rows = Vec::new();
        for wanted in &self.kernels {
            // The image in a file has a flavour already.
            let flavours = if wanted.is_file() { &self.flavours[..1] } else { &self.flavours[..] };
            for flavour in flavours {
                let row = self.try_kernel(wanted, flavour, &job);
                eprintln!("vm: {row}");
                rows.push(row);
            }
        }
        print!("{}", table::render(&rows));
        if let Some(report) = &self.report {
            write(report, matrix::document(&rows, &today()?, &command_line()))?;
        }
        Ok(if rows.iter().all(Row::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn try_kernel(&self, wanted: &Wanted, flavour: &str, job: &Job) -> Row {
        let mut row = Row::new(wanted.to_string());
        let outcome = place()
            .and_then(|place| wanted.obtain(flavour, &place, self.refresh))
            .and_then(|kernel| {
                row.release.clone_from(&kernel.release);
                boot(&kernel, job, self.verbose)
            })
            .with_context(|| format!("kernel {wanted}"));
        match outcome {
            Ok((console, took)) => {
                let verdict = guest::verdict(&console);
                row.result = verdict.to_string();
                row.passed = verdict == Verdict::Exited(0);
                row.tests = matrix::read(&console);
                row.took = Some(took);
            }
            Err(error) => eprintln!("error: {error:#}"),
        }
        row
    }
}

/// Boots once, and a second time after a known fault of the emulator. Returns the output of the console, which is printed after a
/// failure, or if `verbose` is set.
fn boot(kernel: &Kernel, job: &Job, verbose: bool) -> Result<(String, Duration)> {
    if kernel.modules.is_none() {
        eprintln!("vm: {} has no modules; all that the tests use must be built in", kernel.release);
    }
    let archive = place()?.join("initramfs.cpio");
    write(&archive, guest::initramfs(kernel, job)?)?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let start = Instant::now();
        let console = qemu::boot(&kernel.image, &archive, job.disk.as_deref(), guest::TIMEOUT)?;
        let took = start.elapsed();
        let verdict = guest::verdict(&console);
        if verdict == Verdict::EmulatorTripped && attempts == 1 {
            eprintln!("vm: {} died of a known fault of the emulator; retrying", kernel.release);
            continue;
        }
        if verbose || verdict != Verdict::Exited(0) {
            println!("--- console of {} ---\n{}\n---", kernel.release, console.trim_end());
        }
        return Ok((console, took));
    }
}

/// The directory for kernels, root file systems and archives. Creates it if it is missing.
fn place() -> Result<PathBuf> {
    let place = cargo::target_directory()?.join("vm");
    fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    Ok(place)
}

pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("write {}", path.display()))
}

/// The date, as `date -I` prints it.
pub(crate) fn today() -> Result<String> {
    let date = Command::new("date").arg("-I").output().context("start date")?;
    Ok(String::from_utf8_lossy(&date.stdout).trim().to_owned())
}

/// The command line of this process.
pub(crate) fn command_line() -> String {
    let words: Vec<_> = std::env::args().skip(1).collect();
    format!("cargo xtask {}", words.join(" "))
}

/// Installs the packages of missing programs.
pub(crate) fn install(needs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = needs
        .iter()
        .filter(|(program, _)| toolchain::program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt::install(&missing)
        .with_context(|| format!("automatic installation failed; install {} manually", missing.join(" and ")))
}
