//! What is inside the virtual machine: the first program, steer, what is to be run, what they need, and how the guest reports.
//!
//! **Invariant**: the guest's report is one line of its console that nothing else prints.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    initramfs::Archive,
    kernel::Kernel,
    modules::{Module, Modules},
};
use crate::toolchain;

/// What is to be run.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// `steer demo`.
    Demo,
    /// The integration tests whose name contains this.
    Tests {
        filter: String,
        /// Name below /bin, and the file.
        programs: Vec<(&'static str, PathBuf)>,
    },
}

/// What the demonstration and the tests use, where it is not built in.
const MODULES: [&str; 8] = ["veth", "af_packet", "ipv6", "tun", "smc", "tcp_diag", "udp_diag", "vrf"];

/// Starts the line with the exit status.
const REPORT: &str = "steer-vm: exit status ";

/// The signature of a fault in QEMU's emulation of a kernel that patches its own code.
const EMULATOR_FAULT: &str = "Oops: int3";

/// The first program. `stty` waits until the console has sent everything; a power-off does not.
const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b mount -t bpf bpf /sys/fs/bpf
for module in /modules/*.ko; do
    [ -e $module ] && { $b insmod $module || echo \"insmod $module failed\"; }
done
# Linux 5.10 counts BPF memory against it.
ulimit -l unlimited
/bin/job
echo \"steer-vm: exit status $?\"
$b stty -echo
$b poweroff -f
";

/// What became of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The demonstration ended with this status.
    Exited(u8),
    /// The kernel died of something that is not its own fault.
    EmulatorTripped,
    /// The guest never reported.
    Silent,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => formatter.write_str("ok"),
            Self::Exited(status) => write!(formatter, "failed with status {status}"),
            Self::EmulatorTripped => formatter.write_str("the emulator failed"),
            Self::Silent => formatter.write_str("no report from the guest"),
        }
    }
}

/// Reads a console.
pub(super) fn verdict(console: &str) -> Verdict {
    let status = console.lines().find_map(|line| line.strip_prefix(REPORT)?.trim().parse().ok());
    match status {
        Some(status) => Verdict::Exited(status),
        None if console.contains(EMULATOR_FAULT) => Verdict::EmulatorTripped,
        None => Verdict::Silent,
    }
}

/// One at a time, for the machine is slow and its processor the only one.
const TESTS: &str = "#!/bin/busybox sh
export PATH=/bin STEER_BIN=/bin/steer STEER_PROBE=/bin/steer-probe STEER_ESCAPE=/bin/steer-escape
exec /bin/tests --color never --test-threads 1";

impl Job {
    /// What the first program starts.
    fn script(&self) -> String {
        match self {
            Self::Demo => "#!/bin/busybox sh\nexec /bin/steer demo\n".to_owned(),
            Self::Tests { filter, .. } => format!("{TESTS} '{filter}'\n"),
        }
    }

    fn programs(&self) -> &[(&'static str, PathBuf)] {
        match self {
            Self::Demo => &[],
            Self::Tests { programs, .. } => programs,
        }
    }

    /// A boot and the demonstration take seconds; what lasts longer than this hangs.
    pub(super) fn patience(&self) -> Duration {
        match self {
            Self::Demo => Duration::from_mins(3),
            Self::Tests { .. } => Duration::from_hours(1),
        }
    }
}

/// Builds the archive the guest starts from.
pub(super) fn initramfs(kernel: &Kernel, steer: &Path, job: &Job) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/dev", "/proc", "/sys", "/tmp", "/modules"] {
        archive.directory(directory);
    }
    archive.file("/init", INIT.as_bytes());
    let busybox = toolchain::program("busybox").context("busybox is gone")?;
    let mut libraries = Vec::new();
    archive.file("/bin/job", job.script().as_bytes());
    let tests = job.programs().iter().map(|(name, program)| (*name, program.as_path()));
    for (name, program) in [("busybox", busybox.as_path()), ("steer", steer)].into_iter().chain(tests) {
        archive.file(&format!("/bin/{name}"), &read(program)?);
        libraries.extend(shared_libraries(program)?);
    }
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        archive.file(&library, &read(Path::new(&library))?);
    }
    if let Some(directory) = &kernel.modules {
        let modules = Modules::read(directory)?.with_dependencies(&MODULES)?;
        for (position, Module { name, image }) in modules.iter().enumerate() {
            // The shell sorts them.
            archive.file(&format!("/modules/{position:03}-{name}.ko"), image);
        }
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The libraries a program is started with, the dynamic linker among them; none for a static one.
fn shared_libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("start ldd")?;
    Ok(library_paths(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads ldd(1): `libc.so.6 => /lib/x/libc.so.6 (0x...)`, or a path alone, or what has no file.
fn library_paths(listing: &str) -> Vec<String> {
    let path = |line: &str| {
        let words = || line.split_whitespace();
        words().find(|word| word.starts_with('/')).map(str::to_owned)
    };
    listing.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_own_line_counts() {
        for (console, expected) in [
            ("table\nsteer-vm: exit status 0\n", Verdict::Exited(0)),
            ("steer-vm: exit status 125\n[ 3.1] reboot: Power down\n", Verdict::Exited(125)),
            ("[ 1.0] Kernel panic\n", Verdict::Silent),
            ("", Verdict::Silent),
            ("echo steer-vm: exit status 0\n", Verdict::Silent),
            ("[ 0.9] Oops: int3: 0000 [#1] SMP\n", Verdict::EmulatorTripped),
        ] {
            assert_eq!(verdict(console), expected, "{console}");
        }
        assert!(INIT.contains(REPORT));
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let listing = "\tlinux-vdso.so.1 (0x0007)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x0007)\n\t/lib64/ld.so.2 (0x7)\n";
        assert_eq!(library_paths(listing), ["/lib/x/libc.so.6", "/lib64/ld.so.2"]);
        assert!(library_paths("\tnot a dynamic executable\n").is_empty());
    }
}
