//! The contents of the virtual machine: the init program, steer, the tests and their dependencies, and the guest's report.
//!
//! **Invariant**: the guest's report is one line of its console that nothing else prints.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    initramfs::Archive,
    kernel::Kernel,
    modules::{Module, Modules},
    programs::{self, Programs, Source},
};
use crate::dist::arch::Arch;

/// The tests to run.
pub(super) struct Job {
    /// The integration tests whose name contains this.
    filter: String,
    /// The names of the tests and of the programs that they need, below /bin.
    programs: Vec<&'static str>,
    /// These, and busybox, with all libraries. They are read once: every kernel gets the same, whatever is built meanwhile.
    files: Vec<(String, Vec<u8>)>,
    /// The image of the root file system for the tests; without it, they run in that of the initramfs.
    pub(super) disk: Option<PathBuf>,
}

impl Job {
    /// These tests, with the binaries of the workspace, in the initramfs.
    pub(super) fn of(filter: &str, arch: Arch) -> Result<Self> {
        let source = Source::of(arch)?;
        let programs = [programs::own(arch)?, source.tools()?].concat();
        Self::with(filter, &programs, &source, None)
    }

    /// These tests, in the root file system of a disk, which has all other programs.
    pub(super) fn on_disk(filter: &str, arch: Arch, disk: PathBuf) -> Result<Self> {
        Self::with(filter, &programs::own(arch)?, &Source::of(arch)?, Some(disk))
    }

    fn with(filter: &str, programs: &Programs, source: &Source, disk: Option<PathBuf>) -> Result<Self> {
        let (mut files, mut libraries) = (Vec::new(), BTreeMap::new());
        let busybox = ("busybox", source.busybox()?);
        for (name, program) in programs.iter().chain([&busybox]) {
            files.push((format!("/bin/{name}"), read(program)?));
            libraries.extend(source.libraries(program)?);
        }
        for (path, library) in libraries {
            files.push((path, read(&library)?));
        }
        let programs = programs.iter().map(|(name, _)| *name).collect();
        Ok(Self { filter: filter.to_owned(), programs, files, disk })
    }

    /// The script of the init program, with the names of the programs for the tests' root file system.
    fn script(&self) -> String {
        let root = if self.disk.is_some() { "/root" } else { "/" };
        format!("programs='{}' root={root} filter='{}'\n{INIT}", self.programs.join(" "), self.filter)
    }
}

/// The modules that the tests use, if they are not built in.
const MODULES: [&str; 9] = ["veth", "af_packet", "ipv6", "tun", "smc", "tcp_diag", "udp_diag", "vrf", "wireguard"];

/// Additional modules for a root file system on a disk, and for the tests there.
const DISK_MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "overlay"];

/// Timeout of boot and tests together.
pub(super) const TIMEOUT: Duration = Duration::from_hours(1);

/// The prefix of the line with the exit status.
const REPORT: &str = "steer-vm: exit status ";

/// The signature of a fault in QEMU's emulation of a kernel that patches its own code.
const EMULATOR_FAULT: &str = "Oops: int3";

/// The init program, after the names that [`Job::script`] sets. It runs one test at a time, because the machine is slow and has one
/// processor. `stty` waits until the console has sent everything; a power-off does not.
const INIT: &str = "b=/bin/busybox
$b mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
# What tests start beside the programs above, such as sh.
$b --install -s /bin
for module in /modules/*.ko; do
    [ -e $module ] && { $b insmod $module || echo \"insmod $module failed\"; }
done
if [ $root != / ]; then
    $b mount -t ext4 /dev/vda $root
    for directory in dev proc sys; do $b mount --move /$directory $root/$directory; done
    for directory in tmp run; do $b mount -t tmpfs tmpfs $root/$directory; done
    for program in $programs; do
        : > $root/bin/$program
        $b mount -o bind /bin/$program $root/bin/$program
    done
fi
$b mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
$b mount -t bpf bpf $root/sys/fs/bpf
cd $root
# Whoever enters a mount namespace made in it gets what is mounted on the very root.
[ $root = / ] || $b mount --move . /
# Linux 5.10 counts BPF memory against it.
ulimit -l unlimited
export PATH=/bin:/sbin STEER_BIN=/bin/steer STEER_PROBE=/bin/steer-probe STEER_ESCAPE=/bin/steer-escape STEER_DEMO=/bin/steer-demo
$b chroot . /bin/tests --color never --test-threads 1 \"$filter\"
echo \"steer-vm: exit status $?\"
$b stty -echo
$b poweroff -f
";

/// The result of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The tests ended with this status.
    Exited(u8),
    /// The kernel died of a fault of the emulator.
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

/// Parses the output of the console.
pub(super) fn verdict(console: &str) -> Verdict {
    let status = console.lines().find_map(|line| line.strip_prefix(REPORT)?.trim().parse().ok());
    match status {
        Some(status) => Verdict::Exited(status),
        None if console.contains(EMULATOR_FAULT) => Verdict::EmulatorTripped,
        None => Verdict::Silent,
    }
}

/// Builds the initramfs of the guest.
pub(super) fn initramfs(kernel: &Kernel, job: &Job) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/dev", "/proc", "/sys", "/tmp", "/run", "/modules", "/root"] {
        archive.directory(directory);
    }
    // Tests replace them.
    for file in ["/etc/resolv.conf", "/etc/nsswitch.conf"] {
        archive.file(file, b"");
    }
    archive.file("/init", format!("#!/bin/busybox sh\n{}", job.script()).as_bytes());
    for (path, contents) in &job.files {
        archive.file(path, contents);
    }
    if let Some(directory) = &kernel.modules {
        let names = if job.disk.is_some() { [&MODULES[..], &DISK_MODULES].concat() } else { MODULES.to_vec() };
        let modules = Modules::read(directory)?.with_dependencies(&names)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_report_counts() {
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
}
