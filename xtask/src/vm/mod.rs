//! `cargo xtask vm`: runs `steer demo`, or integration tests, under real kernels, each in a virtual machine of its own.
//!
//! **Invariant**: a kernel passes only if the guest itself reports success; silence, a panic and a time-out are failures.
//! The kernels that follow a failed one are tried all the same.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

mod debian;
mod guest;
mod initramfs;
mod kernel;
mod modules;
mod qemu;
mod table;

pub(crate) use self::debian::unpack_package;
use self::{
    guest::{Job, Verdict},
    kernel::{Kernel, Wanted},
    table::Row,
};
use crate::{apt, cargo, setup::Setup, toolchain};

/// Programs this needs and the Debian packages that bring them.
const NEEDS: [(&str, &str); 2] = [("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")];

/// Run the demonstration under real kernels, in virtual machines; needs no root once qemu and busybox are installed.
#[derive(clap::Args)]
pub(crate) struct Vm {
    /// 5.10, 6.1, 6.12 or latest, as Debian ships them now; or the file of a kernel image.
    #[arg(long = "kernel", value_name = "KERNEL", default_values = ["5.10", "6.1"])]
    kernels: Vec<Wanted>,
    /// Flavour of Debian's kernels, such as cloud-amd64.
    #[arg(long = "flavour", value_name = "FLAVOUR", default_value = "amd64")]
    flavours: Vec<String>,
    /// Run the integration tests whose name contains this, not the demonstration.
    #[arg(long = "test", value_name = "FILTER")]
    filter: Option<String>,
    /// Look for newer kernels than those downloaded before.
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
        install_needs()?;
        Setup::default().run()?;
        let steer = cargo::release_binary("steer", "steer")?;
        let job = self.job()?;
        let place = cargo::target_directory()?.join("vm");

        let mut rows = Vec::new();
        for wanted in &self.kernels {
            // An image in a file has the flavour it has.
            let flavours = if wanted.is_file() { &self.flavours[..1] } else { &self.flavours[..] };
            for flavour in flavours {
                let row = self.try_kernel(wanted, flavour, &steer, &job, &place);
                eprintln!("vm: {row}");
                rows.push(row);
            }
        }
        print!("{}", table::render(&rows));
        Ok(if rows.iter().all(Row::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn job(&self) -> Result<Job> {
        let Some(filter) = &self.filter else { return Ok(Job::Demo) };
        let tests = cargo::build(["test", "--no-run", "--release", "--package", "steer-tests"])?;
        let tests = tests.into_iter().find(|executable| executable.is_test && executable.name == "steer");
        let programs = vec![
            ("tests", tests.context("cargo built the tests without reporting them")?.path),
            ("steer-probe", cargo::release_binary("steer-lab", "steer-probe")?),
            ("steer-escape", cargo::release_binary("steer-lab", "steer-escape")?),
            ("install", toolchain::program("install").context("install(1) is gone")?),
        ];
        Ok(Job::Tests { filter: filter.clone(), programs })
    }

    fn try_kernel(&self, wanted: &Wanted, flavour: &str, steer: &Path, job: &Job, place: &Path) -> Row {
        let mut row = Row::new(wanted.to_string());
        let outcome = wanted
            .obtain(flavour, place, self.refresh)
            .and_then(|kernel| {
                row.release.clone_from(&kernel.release);
                self.boot(&kernel, steer, job, place)
            })
            .with_context(|| format!("kernel {wanted}"));
        match outcome {
            Ok((verdict, took)) => {
                row.result = verdict.to_string();
                row.passed = verdict == Verdict::Exited(0);
                row.took = Some(took);
            }
            Err(error) => eprintln!("error: {error:#}"),
        }
        row
    }

    /// Boots once, and once more where the emulator is known to have tripped.
    fn boot(&self, kernel: &Kernel, steer: &Path, job: &Job, place: &Path) -> Result<(Verdict, Duration)> {
        if kernel.modules.is_none() {
            eprintln!("vm: {} came without modules; what the demonstration uses must be built in", kernel.release);
        }
        fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
        let archive = place.join("initramfs.cpio");
        let bytes = guest::initramfs(kernel, steer, job)?;
        fs::write(&archive, bytes).with_context(|| format!("write {}", archive.display()))?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let start = Instant::now();
            let console = qemu::boot(&kernel.image, &archive, job.patience())?;
            let took = start.elapsed();
            let verdict = guest::verdict(&console);
            if verdict == Verdict::EmulatorTripped && attempts == 1 {
                eprintln!("vm: {} died of a known fault of the emulator; once more", kernel.release);
                continue;
            }
            if self.verbose || verdict != Verdict::Exited(0) {
                println!("--- console of {} ---\n{}\n---", kernel.release, console.trim_end());
            }
            return Ok((verdict, took));
        }
    }
}

fn install_needs() -> Result<()> {
    let missing: Vec<_> = NEEDS
        .iter()
        .filter(|(program, _)| toolchain::program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt::install(&missing).with_context(|| format!("install {} by hand, for this cannot", missing.join(" and ")))
}
