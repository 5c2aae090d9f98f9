//! Errors of the kernel: a command either succeeds completely, or fails, reports why, and leaves nothing.

use std::process::Command;

use anyhow::{Context as _, ensure};
use steer_common::{Kind, Owner, PolicyRecord};
use steer_tests::{Bed, Fault, Outcome, Spy, check_uninterrupted, output, stride};

use super::killed::Waiting;

const ERRORS: [&str; 3] = ["ENOMEM", "ENOSPC", "EPERM"];

/// The attached cgroups.
fn attached(bed: &Bed) -> anyhow::Result<Vec<(String, bool)>> {
    let status = bed.status()?;
    let policies = status["policies"].as_array().context("no policies")?;
    let cgroups = policies.iter().flat_map(|policy| policy["cgroups"].as_array().cloned().unwrap_or_default());
    Ok(cgroups
        .map(|cgroup| (cgroup["path"].as_str().unwrap_or_default().to_owned(), cgroup["complete"] == true))
        .collect())
}

/// Runs `faulty` with each error of bpf(2) in turn.
fn everywhere(bed: &Bed, faulty: &[&str], input: Option<&std::path::Path>, target: &str) -> Outcome {
    let kept = bed.cgroup.child("kept")?;
    bed.succeed(&["attach", kept.path(), "-i", "a1"])?;
    let mut spy = Spy::on(bed, &["a1"])?;
    let load = bed.load(&kept)?;
    let run = |mut command: Command| {
        if let Some(input) = input {
            command.stdin(std::fs::File::open(input)?);
        }
        output(&mut command)
    };
    let (mut failed, mut number) = (0, 1);
    loop {
        let error = ERRORS[number % ERRORS.len()];
        let ended = run(bed.steer_with(Fault::Error(error), "bpf", number, faulty)?)?;
        let now = attached(bed)?;
        ensure!(now.iter().all(|(_, complete)| *complete), "{error} at {number}: half attached: {now:?}");
        let is_attached = now.iter().any(|(path, _)| path == target);
        ensure!(is_attached == (ended.code == 0), "{error} at {number}: {ended:?} {now:?}");
        ensure!([0, 1].contains(&ended.code), "{error} at {number}: {ended:?}");
        ensure!(ended.code == 0 || ended.stderr.starts_with("steer: "), "{error} at {number}: {ended:?}");
        failed += usize::from(ended.code != 0);
        bed.succeed(&["detach", target])?;
        // A run with fewer calls has met no error.
        if number > bed_calls(bed, faulty, input)? {
            break;
        }
        number += stride(7);
    }
    ensure!(failed > 5, "failed only {failed} times");
    check_uninterrupted(&load.stop()?)?;
    spy.saw_nothing()
}

/// The number of bpf(2) calls of the command; a higher number meets no fault.
fn bed_calls(bed: &Bed, faulty: &[&str], input: Option<&std::path::Path>) -> anyhow::Result<usize> {
    let trace = bed.directory.join("trace");
    if !trace.exists() {
        let mut command = bed.steer_traced(&["-e", "trace=bpf"], &trace, faulty)?;
        if let Some(input) = input {
            command.stdin(std::fs::File::open(input)?);
        }
        let ended = output(&mut command)?;
        ensure!(ended.code == 0, "{ended:?}");
        bed.succeed(&["detach", &format!("{}/target", bed.cgroup.path())])?;
    }
    Ok(steer_tests::count(&trace, "bpf")?)
}

pub(super) fn of_bpf_while_it_attaches() -> Outcome {
    let bed = Bed::new("error-attach")?;
    let target = bed.cgroup.child("target")?;
    everywhere(&bed, &["attach", target.path(), "-i", "a1"], None, target.path())
}

pub(super) fn of_bpf_in_a_hook() -> Outcome {
    let bed = Bed::new("error-hook")?;
    let target = bed.cgroup.child("target")?;
    let waiting = Waiting::start(&bed, &target)?;
    let state = waiting.state(&bed)?;
    let config = bed.config_file();
    let hook = ["hook", "oci", "--config", config.to_str().unwrap_or_default()];
    everywhere(&bed, &hook, Some(&state), target.path())
}

pub(super) fn full_disk() -> Outcome {
    let bed = Bed::new("error-disk")?;
    bed.write_config("[[policy]]\nname = \"old\"\ninterface = \"a0\"\ncgroups = [\"@/old\"]\n")?;
    let config = bed.config_file();
    let cgroup = format!("{}/new", bed.cgroup.path());
    let set =
        ["policy", "set", "new", "-i", "a1", "--cgroup", &cgroup, "--config", config.to_str().unwrap_or_default()];
    for call in ["fsync", "rename", "openat"] {
        // The dynamic loader makes the first calls of openat.
        let number = if call == "openat" { bed_openat(&bed, &set)? } else { 1 };
        let ended = output(&mut bed.steer_with(Fault::Error("ENOSPC"), call, number, &set)?)?;
        ensure!(ended.code == 1 && ended.stderr.contains("No space left on device"), "{call}: {ended:?}");
        let listed = bed.succeed(&["policy", "list", "--json", "--config", config.to_str().unwrap_or_default()])?;
        ensure!(listed.contains("old") && !listed.contains("\"new\""), "{listed}");
    }
    bed.succeed(&set)?;
    let listed = bed.succeed(&["policy", "list", "--json", "--config", config.to_str().unwrap_or_default()])?;
    ensure!(listed.contains("\"new\""), "{listed}");
    Ok(())
}

/// The number of the openat call that creates the new file.
fn bed_openat(bed: &Bed, set: &[&str]) -> anyhow::Result<usize> {
    let trace = bed.directory.join("openat");
    let ended = output(&mut bed.steer_traced(&["-e", "trace=openat"], &trace, set)?)?;
    ensure!(ended.code == 0, "{ended:?}");
    let text = std::fs::read_to_string(&trace)?;
    let number = text.lines().filter(|line| line.contains("openat(")).position(|line| line.contains("new.new"));
    bed.succeed(&["policy", "remove", "new", "--config", set[set.len() - 1]])?;
    Ok(number.with_context(|| format!("no file is made: {text}"))? + 1)
}

pub(super) fn no_slot_is_left() -> Outcome {
    let bed = Bed::new("error-slots")?;
    let (kept, target) = (bed.cgroup.child("kept")?, bed.cgroup.child("target")?);
    bed.succeed(&["attach", kept.path(), "-i", "a1"])?;
    let policies = aya::maps::MapData::from_pin(bed.abi().join("maps/POLICIES"))?;
    let mut policies = aya::maps::Array::<_, PolicyRecord>::try_from(aya::maps::Map::Array(policies))?;
    for slot in 1..steer_common::POLICY_SLOTS {
        if policies.get(&slot, 0)?.kind == 0 {
            let taken = PolicyRecord { kind: Kind::Steer as u32, owner: Owner::Config as u32, ..PolicyRecord::EMPTY };
            policies.set(slot, taken, 0)?;
        }
    }
    let refused = bed.run(&["attach", target.path(), "-i", "a0"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("policy slots are in use"), "{refused:?}");
    // The same policy needs no slot.
    bed.succeed(&["attach", target.path(), "-i", "a1"])?;
    bed.check_steered(&target, 1)?;
    bed.check_steered(&kept, 1)
}

pub(super) fn bpffs_that_is_unmounted() -> Outcome {
    let bed = Bed::new("error-bpffs")?;
    let target = bed.cgroup.child("target")?;
    let mount = bed.directory.join("bpffs");
    std::fs::create_dir(&mount)?;
    let pins = mount.to_str().context("a path")?;
    let steer = |arguments: &[&str]| {
        let mut command = Command::new(steer_tests::binary("STEER_BIN", "steer"));
        command.args(["--bpffs", pins]).args(arguments);
        output(bed.net.client.enter(&mut command))
    };
    let attached = steer(&["attach", target.path(), "-i", "a1"])?;
    ensure!(attached.code == 0, "{attached:?}");
    bed.check_steered(&target, 1)?;
    // A process that may do this can switch steering off: the links exist through their pins.
    nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH)?;
    steer_lab::wait_until("the kernel to detach it", steer_tests::PATIENCE, || {
        bed.check_unsteered(Some(&target)).is_ok()
    })?;
    let again = steer(&["attach", target.path(), "-i", "a1"])?;
    ensure!(again.code == 0, "{again:?}");
    bed.check_steered(&target, 1)?;
    let off = steer(&["off", "--forget"])?;
    ensure!(off.code == 0, "{off:?}");
    bed.check_unsteered(Some(&target))
}
