//! One run of QEMU: a kernel, an initramfs, and the output of the serial console.
//!
//! **Invariant**: pure emulation with one virtual CPU. KVM is never used, because a /dev/kvm that opens may not work. With
//! several CPUs under emulation, kernels sometimes die while they patch their own code.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use crate::dist::arch::Arch;

/// What is the same for all processors.
const COMMON: &[&str] = &[
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-display",
    "none",
    "-serial",
    "stdio",
    "-accel",
    "tcg",
    "-smp",
    "1",
    "-m",
    "2G",
];

/// A panic reboots, and a reboot ends QEMU. The low log level keeps kernel messages out of the tests' output.
const PARAMETERS: &str = "panic=-1 loglevel=1";

/// The program, and its package.
pub(super) fn program(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::Amd64 => ("qemu-system-x86_64", "qemu-system-x86"),
        Arch::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
    }
}

/// The machine, its processor, and its serial console. That of amd64 has no wide vectors, which are slow to emulate. That of arm64 also
/// runs 32 bit programs.
fn machine(arch: Arch) -> ([&'static str; 4], &'static str) {
    match arch {
        Arch::Amd64 => (["-machine", "q35,usb=off,vmport=off,hpet=off", "-cpu", "Nehalem"], "ttyS0"),
        Arch::Arm64 => (["-machine", "virt", "-cpu", "cortex-a72"], "ttyAMA0"),
    }
}

/// Boots and returns the console's output, complete or up to the timeout. Changes of the disk are discarded.
pub(super) fn boot(kernel: &Kernel, initramfs: &Path, disk: Option<&Path>, time_limit: Duration) -> Result<String> {
    let (machine, console) = machine(kernel.arch);
    let mut command = Command::new(program(kernel.arch).0);
    command.args(COMMON).args(machine).arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.arg("-append").arg(format!("console={console} {PARAMETERS} {}", kernel.parameters));
    if let Some(disk) = disk {
        command.arg("-drive").arg(format!("file={},if=virtio,format=raw,snapshot=on", disk.display()));
    }
    let mut qemu = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start QEMU")?;
    let mut console = qemu.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    // The pipe ends with QEMU, and the thread with the pipe.
    let reader = thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = console.read(&mut chunk) {
            if sender.send(chunk[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let start = Instant::now();
    let mut output = Vec::new();
    let ended = loop {
        match receiver.recv_timeout(time_limit.saturating_sub(start.elapsed())) {
            Ok(chunk) => output.extend(chunk),
            Err(mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(mpsc::RecvTimeoutError::Timeout) => break false,
        }
    };
    if !ended {
        qemu.kill().context("end QEMU")?;
        output.extend(format!("\n(ended after {} s)\n", time_limit.as_secs()).bytes());
    }
    qemu.wait().context("wait for QEMU")?;
    drop(receiver);
    reader.join().expect("the reader does not panic");
    Ok(String::from_utf8_lossy(&output).replace('\r', ""))
}
