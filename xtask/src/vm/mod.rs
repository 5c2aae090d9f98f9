//! `cargo xtask vm` and `cargo xtask peers`: run integration tests under real kernels, each in its own virtual machine.
//!
//! **Invariant**: a kernel passes only if the guest itself reports success; no report, a panic and a timeout are failures. After
//! a failure, the remaining kernels are still tested.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

mod debian;
mod guest;
mod initramfs;
mod kernel;
mod matrix;
mod modules;
mod peers;
mod programs;
mod qemu;
mod results;
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
use crate::{
    apt, cargo,
    dist::arch::{Arch, Chosen},
    portable,
    setup::Setup,
    toolchain,
};

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
    /// 5.10, 6.1, 6.12 or latest, as Debian currently ships them, also with -without-bpf-lsm, which boots with Ubuntu's list of security
    /// modules; or the file of a kernel image.
    #[arg(long = "kernel", value_name = "KERNEL", default_values = ["5.10", "6.1", "6.1-without-bpf-lsm"])]
    kernels: Vec<Wanted>,
    /// The processor of the machines. One that this machine does not have takes about as long.
    #[arg(long, default_value = "amd64")]
    arch: Chosen,
    /// Flavour of Debian's kernels, such as cloud-amd64; by default that of the processor's name.
    #[arg(long = "flavour", value_name = "FLAVOUR")]
    flavours: Vec<String>,
    /// Run the integration tests whose name contains this; by default one for each feature that depends on the kernel.
    #[arg(long = "test", value_name = "FILTER", default_value = "kernel::")]
    filter: String,
    /// Write the features of each kernel to this file, as tables in Markdown, after each kernel. Those of the last run with other
    /// kernels are in it, too.
    #[arg(long, value_name = "FILE", conflicts_with = "filter")]
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
        let archs = self.arch.archs();
        ensure!(
            archs.len() == 1 || self.flavours.is_empty() && !self.kernels.iter().any(Wanted::is_file),
            "a flavour or an image is of one processor: give --arch amd64 or --arch arm64, too"
        );
        install(&NEEDS)?;
        Setup::default().run()?;
        let mut jobs = Vec::new();
        for arch in archs {
            jobs.push((arch, self.prepare(arch)?));
        }
        // A machine has one processor, so one of each kind runs at a time.
        let rows = thread::scope(|scope| {
            let running: Vec<_> = jobs.iter().map(|(arch, job)| scope.spawn(|| self.try_kernels(*arch, job))).collect();
            running.into_iter().flat_map(|thread| thread.join().expect("it does not panic")).collect::<Vec<_>>()
        });
        print!("{}", table::render(&rows));
        Ok(if rows.iter().all(Row::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Installs and builds what machines with this processor need.
    fn prepare(&self, arch: Arch) -> Result<Job> {
        install(&[qemu::program(arch)])?;
        if !arch.is_host() {
            install(&[(arch.c_compiler(), portable::C_COMPILER[0])])?;
            if !portable::has_targets() {
                portable::install_targets()?;
            }
        }
        Job::of(&self.filter, arch)
    }

    fn try_kernels(&self, arch: Arch, job: &Job) -> Vec<Row> {
        let mut rows = Vec::new();
        let own = [arch.name().to_owned()];
        let flavours = if self.flavours.is_empty() { &own[..] } else { &self.flavours[..] };
        for wanted in &self.kernels {
            // The image in a file has a flavour already.
            let flavours = if wanted.is_file() { &flavours[..1] } else { flavours };
            for flavour in flavours {
                let row = self.try_kernel(wanted, (arch, flavour), job);
                eprintln!("vm: {row}");
                if let Some(report) = &self.report {
                    // Only a kernel with a name can be found again.
                    let kept = if wanted.is_file() { Ok(()) } else { results::keep(&row) };
                    let written = kept.and_then(|()| write(report, matrix::document(&results::all()?)));
                    if let Err(error) = written {
                        eprintln!("error: {error:#}");
                    }
                }
                rows.push(row);
            }
        }
        rows
    }

    fn try_kernel(&self, wanted: &Wanted, (arch, flavour): (Arch, &str), job: &Job) -> Row {
        let mut row = Row::new(arch.name(), wanted.to_string(), today().unwrap_or_default());
        let outcome = place()
            .and_then(|place| wanted.obtain(arch, flavour, &place, self.refresh))
            .and_then(|kernel| {
                row.release = kernel.name();
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
    let archive = place()?.join(format!("initramfs-{}.cpio", kernel.arch.name()));
    write(&archive, guest::initramfs(kernel, job)?)?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let start = Instant::now();
        let console = qemu::boot(kernel, &archive, job.disk.as_deref(), guest::TIMEOUT)?;
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
