//! Trees of cgroups that the owner of a delegated cgroup can make.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::{
        signal::{Signal, kill},
        stat::{Mode, mkdirat},
    },
    unistd::{Pid, UnlinkatFlags, unlinkat},
};
use steer_lab::wait_until;
use steer_tests::{Bed, Cgroup, Finding, Outcome, PATIENCE, User, strace};

/// The longest name of a cgroup.
const NAME_BYTES: usize = 255;

/// Nested cgroups, outermost first. Removed on drop.
struct Nested(Vec<(File, String)>);

impl Nested {
    fn new(outermost: &Cgroup) -> anyhow::Result<Self> {
        Ok(Self(vec![(File::open(outermost.directory())?, String::new())]))
    }

    /// One more cgroup, in the innermost one.
    fn deepen(&mut self, name: &str) -> Outcome {
        let (innermost, _) = self.0.last().context("it is empty")?;
        mkdirat(innermost, name, Mode::from_bits_truncate(0o755))?;
        let opened = openat(innermost, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        self.0.push((opened.into(), name.to_owned()));
        Ok(())
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        while let Some((_, name)) = self.0.pop() {
            if let Some((outer, _)) = self.0.last() {
                let removed = unlinkat(outer, name.as_str(), UnlinkatFlags::RemoveDir);
                assert!(matches!(removed, Ok(()) | Err(Errno::ENOENT)), "{removed:?}");
            }
        }
    }
}

/// The daemon's blind spots: the cgroup of each, and why.
fn blind_spots(bed: &Bed) -> anyhow::Result<Vec<(String, String)>> {
    let status = bed.status()?;
    let spots = status["blind_spots"].as_array().context("no blind spots")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(spots.iter().map(|spot| (text(&spot["cgroup"]), text(&spot["why"]))).collect())
}

/// Checks that status, doctor and metrics report blind spots.
fn check_reported(bed: &Bed, why: &str) -> Outcome {
    let text = bed.succeed(&["status"])?;
    ensure!(text.lines().any(|line| line.starts_with("error: ") && line.contains(why)), "{text}");
    let found = bed.doctor(&[])?.findings;
    let is_it = |finding: &Finding| finding.text("severity") == "error" && finding.text("what").contains(why);
    ensure!(found.iter().any(|finding| finding.id == "cgroup-watch" && is_it(finding)), "{found:?}");
    let metrics = metrics(bed)?;
    let count = metrics.lines().find_map(|line| line.strip_prefix("steer_blind_spots "));
    ensure!(count.is_some_and(|count| count != "0"), "{metrics}");
    Ok(())
}

fn metrics(bed: &Bed) -> anyhow::Result<String> {
    Ok(bed.ask(User::Root, "GET", "/metrics", None)?.text)
}

/// Deep in levels, and in bytes.
pub(super) fn deep_cgroups_do_not_stop_the_daemon() -> Outcome {
    for (levels, name) in [(20, "d".repeat(NAME_BYTES)), (200, "d".to_owned())] {
        check_deep(levels, &name)?;
    }
    Ok(())
}

fn check_deep(levels: usize, name: &str) -> Outcome {
    let bed = Bed::new("hostile-deep")?;
    let (other, user) = (bed.cgroup.child("other")?, bed.cgroup.child("user")?);
    let shallow = user.child("x.scope")?;
    let mut nested = Nested::new(&user)?;
    for _ in 0..levels {
        nested.deepen(name)?;
    }
    nested.deepen("x.scope")?;
    let config = |uplink: &str| {
        format!(
            "[[policy]]\nname = \"other\"\ninterface = \"{uplink}\"\ncgroups = [\"@/other\"]\n\
             [[policy]]\nname = \"user\"\ninterface = \"a1\"\ncgroups = [\"@/user/**/x.scope\"]\n"
        )
    };
    let daemon = bed.daemon(&config("a1"))?;
    bed.check_steered(&other, 1)?;
    bed.check_steered(&shallow, 1)?;
    let spots = blind_spots(&bed)?;
    ensure!(spots.len() == 1 && spots[0].0.starts_with(user.path()) && spots[0].1.contains("4096 bytes"), "{spots:?}");
    check_reported(&bed, "4096 bytes")?;
    // Deeper, and a reload.
    nested.deepen(&"e".repeat(NAME_BYTES))?;
    bed.write_config(&config("a0"))?;
    bed.succeed(&["reload"])?;
    bed.check_steered(&other, 0)?;
    ensure!(daemon.log().matches("4096 bytes").count() == 1, "logged once: {}", daemon.log());
    // New cgroups are still seen.
    let late = user.child("late")?;
    let scope = late.child("x.scope")?;
    wait_until("the new cgroup to be steered", PATIENCE, || {
        bed.policy("user").is_ok_and(|policy| policy["cgroups"].as_array().map_or(0, Vec::len) == 2)
    })?;
    bed.check_steered(&scope, 1)?;
    // What is attached above the deep cgroups gets all its state without them.
    bed.succeed(&["attach", user.path(), "-i", "a1"])?;
    bed.succeed(&["detach", user.path()])?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    bed.daemon(&config("a1"))?.end(Signal::SIGTERM)?;
    bed.succeed(&["off"])?;
    drop(nested);
    Ok(())
}

/// Makes a system call of a process fail. Ends on drop.
struct Failing(Child);

impl Failing {
    fn start(pid: u32, call: &str, error: &str) -> anyhow::Result<Self> {
        let mut tracer = Command::new(strace()?);
        tracer.args(["-f", "-q", "-o", "/dev/null", "-e", &format!("trace={call}")]);
        tracer.args(["-e", &format!("inject={call}:error={error}"), "-p", &pid.to_string()]);
        let tracer = Self(tracer.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let is_traced = || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            tasks.map(|task| std::fs::read_to_string(task.path().join("status")).unwrap_or_default()).all(|status| {
                status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
            })
        };
        wait_until("the process to be traced", PATIENCE, is_traced)?;
        Ok(tracer)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

pub(super) fn without_inotify_watches() -> Outcome {
    let bed = Bed::new("hostile-watches")?;
    let user = bed.cgroup.child("user")?;
    let first = user.child("first")?;
    let _steered = first.child("x.scope")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/user/*/x.scope\"]\n")?;
    ensure!(blind_spots(&bed)?.is_empty());
    let failing = Failing::start(daemon.pid(), "inotify_add_watch", "ENOSPC")?;
    let session = user.child("session")?;
    let path = session.path().to_owned();
    wait_until("the blind spot", PATIENCE, || {
        blind_spots(&bed).is_ok_and(|spots| spots.iter().any(|(cgroup, _)| *cgroup == path))
    })?;
    check_reported(&bed, "fs.inotify.max_user_watches")?;
    ensure!(metrics(&bed)?.lines().any(|line| line == "steer_healthy 0"));
    // It is found nevertheless.
    let scope = session.child("x.scope")?;
    wait_until("the cgroup to be steered", PATIENCE, || {
        let path = serde_json::Value::from(scope.path());
        bed.policy("p")
            .is_ok_and(|p| p["cgroups"].as_array().is_some_and(|all| all.iter().any(|one| one["path"] == path)))
    })?;
    bed.check_steered(&scope, 1)?;
    let logged = daemon.log().matches(&format!("{}: new cgroups", session.path())).count();
    ensure!(logged == 1, "logged {logged} times: {}", daemon.log());
    drop(failing);
    wait_until("the end of the blind spot", PATIENCE, || blind_spots(&bed).is_ok_and(|spots| spots.is_empty()))?;
    bed.is_healthy()
}
