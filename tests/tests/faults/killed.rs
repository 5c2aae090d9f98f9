//! A command is killed at a system call and run again: steered cgroups stay steered, and nothing is left half done.
//!
//! In each test a client makes sockets continuously, in a steered cgroup, and every other link is captured.

use std::{
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
};

use anyhow::ensure;
use nix::sys::signal::Signal;
use steer_lab::wait_until;
use steer_tests::{
    Bed, CHANGES, Cgroup, Daemon, Fault, Outcome, PATIENCE, Spy, check_uninterrupted, count_of_one_thread, output,
    stride,
};

/// The command line of the client's policy, for a cgroup.
fn attach(cgroup: &Cgroup) -> [&str; 4] {
    ["attach", cgroup.path(), "-i", "a1"]
}

/// Runs `faulty` killed at each system call in turn, each time followed by `then`. Meanwhile a steered client must not
/// be interrupted.
fn everywhere(
    bed: &Bed,
    usual_stride: usize,
    faulty: &[&str],
    before: impl Fn() -> Outcome,
    then: impl Fn() -> Outcome,
) -> Outcome {
    let kept = bed.cgroup.child("kept")?;
    bed.succeed(&attach(&kept))?;
    let mut spy = Spy::on(bed, &["a1"])?;
    let load = bed.load(&kept)?;
    let mut killed = 0;
    for call in CHANGES {
        before()?;
        let calls = bed.count_calls(call, faulty)?;
        then()?;
        // Each call that is rare.
        let stride = if calls < 9 { 1 } else { stride(usual_stride) };
        for number in (1..=calls).step_by(stride) {
            before()?;
            let ended = output(&mut bed.steer_with(Fault::Killed, call, number, faulty)?)?;
            // Calls are counted per thread.
            ensure!(ended.was_killed() || ended.code == 0, "{call} {number}: {ended:?}");
            killed += usize::from(ended.was_killed());
            then()?;
        }
    }
    ensure!(killed > 5, "killed only {killed} times");
    check_uninterrupted(&load.stop()?)?;
    spy.saw_nothing()?;
    bed.check_steered(&kept, 1)
}

/// Whether a cgroup is attached with all programs; an error if it has only some.
fn is_attached(bed: &Bed, cgroup: &Cgroup) -> anyhow::Result<bool> {
    let status = bed.status()?;
    let policies = status["policies"].as_array().cloned().unwrap_or_default();
    let attached = policies.iter().flat_map(|policy| policy["cgroups"].as_array().cloned().unwrap_or_default());
    let found: Vec<_> = attached.filter(|attached| attached["path"] == cgroup.path()).collect();
    ensure!(found.iter().all(|attached| attached["complete"] == true), "half attached: {found:?}");
    Ok(!found.is_empty())
}

pub(super) fn while_it_attaches() -> Outcome {
    let bed = Bed::new("kill-attach")?;
    let target = bed.cgroup.child("target")?;
    everywhere(
        &bed,
        9,
        &attach(&target),
        || Ok(()),
        || {
            bed.succeed(&attach(&target))?;
            ensure!(is_attached(&bed, &target)?);
            bed.succeed(&["detach", target.path()])?;
            ensure!(!is_attached(&bed, &target)?);
            Ok(())
        },
    )
}

pub(super) fn while_it_attaches_the_first_cgroup() -> Outcome {
    let bed = Bed::new("kill-first")?;
    let target = bed.cgroup.child("target")?;
    for call in CHANGES {
        let calls = bed.count_calls(call, &attach(&target))?;
        for number in (1..=calls).step_by(stride(29)) {
            bed.succeed(&["off"])?;
            let ended = output(&mut bed.steer_with(Fault::Killed, call, number, &attach(&target))?)?;
            ensure!(ended.was_killed() || ended.code == 0, "{call} {number}: {ended:?}");
            bed.succeed(&attach(&target))?;
            ensure!(is_attached(&bed, &target)?, "{call} {number}");
        }
    }
    bed.check_steered(&target, 1)?;
    bed.succeed(&["detach", target.path()])?;
    ensure!(!bed.pins.exists(), "something is left");
    Ok(())
}

pub(super) fn while_it_detaches() -> Outcome {
    detaches(&Bed::new("kill-detach")?)
}

/// The daemon is notified, and takes the attachment over.
pub(super) fn while_it_detaches_beside_a_daemon() -> Outcome {
    let bed = Bed::new("kill-handing-over")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/none\"]\n")?;
    detaches(&bed)
}

fn detaches(bed: &Bed) -> Outcome {
    let target = bed.cgroup.child("target")?;
    let before = || bed.succeed(&attach(&target)).map(drop);
    everywhere(bed, 9, &["detach", target.path()], before, || {
        bed.succeed(&["detach", target.path()])?;
        ensure!(!is_attached(bed, &target)?);
        Ok(())
    })
}

/// A process that waits in a cgroup, as a container's does before its start. On drop, it is killed.
pub(super) struct Waiting(Child);

impl Waiting {
    pub(super) fn start(bed: &Bed, cgroup: &Cgroup) -> anyhow::Result<Self> {
        let mut command = Command::new("cat");
        bed.place(&mut command, Some(cgroup), steer_tests::User::Root);
        Ok(Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?))
    }

    /// Writes the state of a container of this process, with one annotation. Returns a shell command that passes it to
    /// the hook.
    pub(super) fn state(&self, bed: &Bed) -> anyhow::Result<std::path::PathBuf> {
        let state = serde_json::json!({
            "ociVersion": "1.0.2", "id": "c", "status": "creating", "pid": self.0.id(), "bundle": "/",
            "annotations": {"steer.interface": "a1"},
        });
        let file = bed.directory.join("state.json");
        std::fs::write(&file, state.to_string())?;
        bed.write_config("[containers]\ninterfaces = [\"a1\"]\n")?;
        Ok(file)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn as_a_hook() -> Outcome {
    let bed = Bed::new("kill-hook")?;
    let (kept, target) = (bed.cgroup.child("kept")?, bed.cgroup.child("target")?);
    let waiting = Waiting::start(&bed, &target)?;
    let state = waiting.state(&bed)?;
    let config = bed.config_file();
    let hook = ["hook", "oci", "--config", config.to_str().unwrap_or_default()];
    bed.succeed(&attach(&kept))?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&kept)?;
    let mut killed = 0;
    for number in (1..).step_by(stride(5)) {
        let mut faulty = bed.steer_with(Fault::Killed, "bpf", number, &hook)?;
        let ended = output(faulty.stdin(std::fs::File::open(&state)?))?;
        // If the hook is killed, the runtime refuses the start. A second try succeeds.
        let again = output(bed.steer(&hook).stdin(std::fs::File::open(&state)?))?;
        ensure!(again.code == 0 && is_attached(&bed, &target)?, "{number}: {again:?}");
        bed.succeed(&["detach", target.path()])?;
        if !ended.was_killed() {
            ensure!(ended.code == 0, "{ended:?}");
            break;
        }
        killed += 1;
    }
    ensure!(killed > 5, "killed only {killed} times");
    check_uninterrupted(&load.stop()?)?;
    spy.saw_nothing()
}

pub(super) fn while_it_starts_a_command() -> Outcome {
    let bed = Bed::new("kill-exec")?;
    let caller = bed.cgroup.child("caller")?;
    let exec = ["exec", "-i", "a1", "--", "true"];
    for call in CHANGES {
        for number in (1..=60).step_by(stride(13)) {
            let mut faulty = bed.steer_with(Fault::Killed, call, number, &exec)?;
            let ended = output(caller.enter(&mut faulty))?;
            let again = output(caller.enter(&mut bed.steer(&exec)))?;
            ensure!(again.code == 0, "{call} {number}: {again:?}");
            wait_until("the cgroups of both to be gone", PATIENCE, || caller.children().is_empty())?;
            if ended.code == 0 {
                break;
            }
        }
    }
    wait_until("the pins to be gone", PATIENCE, || !bed.pins.exists())?;
    Ok(())
}

pub(super) fn as_a_daemon_that_starts() -> Outcome {
    let bed = Bed::new("kill-daemon")?;
    let kept = bed.cgroup.child("kept")?;
    bed.cgroup.child("other")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/*\"]\n")?;
    daemon.end(Signal::SIGKILL)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&kept)?;
    let config = bed.config_file();
    let start = ["daemon", "--config", config.to_str().unwrap_or_default()];
    // The number of calls of a start is counted with a daemon that is ended when it is ready.
    let trace = bed.directory.join("trace");
    let mut traced = bed.steer_traced(&["-e", "trace=bpf"], &trace, &start)?.stderr(Stdio::null()).spawn()?;
    // The daemon gets no request, because that would add calls. The trace is complete when strace has ended.
    wait_until("the daemon to listen", PATIENCE, || UnixStream::connect(bed.socket()).is_ok())?;
    end_tracee(&mut traced)?;
    // A few less: the number differs a little from start to start.
    let calls = count_of_one_thread(&trace, "bpf")?.saturating_sub(4);
    ensure!(calls > 31, "only {calls} calls by one thread");
    for number in (1..calls).step_by(stride(31)) {
        let ended = output(&mut bed.steer_with(Fault::Killed, "bpf", number, &start)?)?;
        ensure!(ended.was_killed(), "{number} of {calls}: {ended:?}");
        Daemon::start(&bed)?.end(Signal::SIGKILL)?;
        ensure!(is_attached(&bed, &kept)?, "{number}");
    }
    check_uninterrupted(&load.stop()?)?;
    spy.saw_nothing()?;
    bed.check_steered(&kept, 1)
}

/// Ends the traced process, and so strace.
pub(super) fn end_tracee(strace: &mut Child) -> Outcome {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", strace.id()))?;
    for pid in children.split_whitespace() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse()?), Signal::SIGTERM)?;
    }
    strace.wait()?;
    Ok(())
}

pub(super) fn while_it_switches_off() -> Outcome {
    let bed = Bed::new("kill-off")?;
    let target = bed.cgroup.child("target")?;
    for call in ["bpf", "unlink", "rmdir"] {
        for number in (1..).step_by(stride(17)) {
            bed.succeed(&attach(&target))?;
            let ended = output(&mut bed.steer_with(Fault::Killed, call, number, &["off"])?)?;
            // Whatever is left is no obstacle.
            bed.succeed(&["status"])?;
            bed.succeed(&["detach", target.path()])?;
            bed.succeed(&attach(&target))?;
            ensure!(is_attached(&bed, &target)?, "{call} {number}");
            bed.succeed(&["off"])?;
            ensure!(!bed.pins.exists(), "{call} {number}: something is left");
            if !ended.was_killed() {
                ensure!(ended.code == 0, "{ended:?}");
                break;
            }
        }
    }
    bed.check_unsteered(Some(&target))
}

/// The policy moves between memory and the disk.
pub(super) fn while_it_stores_a_policy() -> Outcome {
    let bed = Bed::new("kill-policy")?;
    bed.write_config("# no policy yet\n")?;
    let config = bed.config_file().to_string_lossy().into_owned();
    let set = ["policy", "set", "p", "-i", "a1", "--cgroup", "/p", "--config", &config];
    let runtime = [&set[..], &["--runtime"]].concat();
    let remove = ["policy", "remove", "p", "--config", &config];
    for (faulty, other) in [(&set[..], &runtime[..]), (&runtime, &set), (&remove, &set)] {
        for call in ["openat", "mkdir", "write", "fsync", "rename", "unlink"] {
            for number in (1..).step_by(stride(2)) {
                bed.succeed(other)?;
                let ended = output(&mut bed.steer_with(Fault::Killed, call, number, faulty)?)?;
                let listed = bed.run(&["policy", "list", "--json", "--config", &config])?;
                ensure!(listed.code == 0, "{faulty:?}, {call} {number}: {listed:?}");
                if !ended.was_killed() {
                    ensure!(ended.code == 0, "{faulty:?}, {call} {number}: {ended:?}");
                    break;
                }
            }
        }
    }
    bed.succeed(&set)?;
    bed.succeed(&remove)?;
    bed.succeed(&["off"])?;
    Ok(())
}

pub(super) fn while_it_writes_a_drop_in() -> Outcome {
    let bed = Bed::new("kill-unit")?;
    let directory = bed.directory.to_string_lossy().into_owned();
    let unit = ["unit", "x", "--policy", "p", "--force", "--dir", &directory];
    let drop_in = bed.directory.join("x.service.d/50-steer.conf");
    for call in ["openat", "mkdir", "write", "fsync", "rename"] {
        for number in 1.. {
            let ended = output(&mut bed.steer_with(Fault::Killed, call, number, &unit)?)?;
            if let Ok(text) = std::fs::read_to_string(&drop_in) {
                ensure!(text.contains("ExecCondition="), "{call} {number}: incomplete: {text}");
            }
            bed.succeed(&unit)?;
            bed.succeed(&["unit", "x", "--remove", "--dir", &directory])?;
            ensure!(!drop_in.exists());
            if !ended.was_killed() {
                break;
            }
        }
    }
    Ok(())
}
