//! Processes that leave a steered cgroup, and the place of the cgroup of `steer exec`, which a user cannot change.

use std::{fs, io::Read as _, os::unix::fs::chown, process::Stdio};

use anyhow::{Context as _, ensure};
use steer_lab::wait_until;
use steer_tests::{
    Bed, Cgroup, Held, NOBODY, NotHere, Outcome, PATIENCE, PinnedMap, Spy, USERS, User, check_outcomes, output,
};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("exec_is_out_of_reach_of_the_owner_of_its_cgroup", exec_is_out_of_reach_of_the_owner_of_its_cgroup),
    ("the_keeper_of_exec_survives_the_callers_cgroup", the_keeper_of_exec_survives_the_callers_cgroup),
    ("sockets_of_a_moved_process_stay_held", sockets_of_a_moved_process_stay_held),
    ("a_move_is_reported", a_move_is_reported),
    ("a_full_map_is_logged_once", a_full_map_is_logged_once),
];

/// A cgroup that belongs to nobody, as systemd delegates one.
fn delegated(parent: &Cgroup, name: &str) -> anyhow::Result<Cgroup> {
    let cgroup = parent.child(name)?;
    for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        chown(cgroup.directory().join(file), Some(NOBODY.0), Some(NOBODY.1))?;
    }
    Ok(cgroup)
}

fn exec_is_out_of_reach_of_the_owner_of_its_cgroup() -> Outcome {
    let bed = Bed::new("moved-exec")?;
    let own = bed.cgroup.child("own")?;
    let user = delegated(&bed.cgroup, "user")?;
    let terminal = delegated(&user, "terminal")?;
    let inside = user.child("of-root")?;
    let manager = bed.cgroup.child("user@0.service")?;
    let service = manager.child("service")?;
    // Where it starts, and where its cgroup is.
    let cases = [
        (&own, own.path()),
        (&user, bed.cgroup.path()),
        (&terminal, bed.cgroup.path()),
        (&inside, bed.cgroup.path()),
        (&service, bed.cgroup.path()),
    ];
    let script = "sed -n 's/^0:://p' /proc/self/cgroup; echo 0 2>/dev/null >\"$1\" && echo out || echo in";
    for (from, place) in cases {
        let mut command = bed.steer(&["exec", "-i", "a1", "--"]);
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script, "x"]);
        command.arg(terminal.directory().join("cgroup.procs"));
        from.enter(&mut command);
        let ran = output(&mut command)?;
        let expected = format!("{place}/steer-exec-");
        let mut lines = ran.stdout.lines();
        let is_there =
            lines.next().and_then(|line| line.strip_prefix(&expected)).is_some_and(|name| !name.contains('/'));
        ensure!(ran.code == 0 && is_there && lines.next() == Some("in"), "from {}: {ran:?}", from.path());
    }
    Ok(())
}

/// The owner of a cgroup may kill what is in it, as a user's manager does with a terminal that is closed.
fn the_keeper_of_exec_survives_the_callers_cgroup() -> Outcome {
    let bed = Bed::new("moved-keeper")?;
    let user = delegated(&bed.cgroup, "user")?;
    let mut command = bed.steer(&["exec", "-i", "a1", "--", "sh", "-c", "echo ready; read _"]);
    user.enter(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut child = command.spawn()?;
    let mut ready = [0; 6];
    child.stdout.as_mut().context("no pipe")?.read_exact(&mut ready)?;
    // The command's cgroup, and the keeper's.
    wait_until("the keeper to leave", PATIENCE, || bed.cgroup.children().len() == 3)?;
    wait_until("the cgroup to be empty", PATIENCE, || {
        fs::write(user.directory().join("cgroup.kill"), "1").is_ok()
            && fs::read_to_string(user.directory().join("cgroup.procs")).is_ok_and(|text| text.is_empty())
    })?;
    bed.ip("link del a1")?;
    wait_until("the keeper to follow", PATIENCE, || bed.policy("a1").is_ok_and(|policy| policy["ifindex"].is_null()))?;
    user.remove()?;
    drop(child.stdin.take());
    ensure!(child.wait()?.code() == Some(1), "`read` ended with its input");
    bed.wait_until_clean()
}

fn move_to(cgroup: &Cgroup, pid: u32) -> Outcome {
    Ok(fs::write(cgroup.directory().join("cgroup.procs"), pid.to_string())?)
}

/// A socket belongs to the cgroup in which it was made.
fn sockets_of_a_moved_process_stay_held() -> Outcome {
    let bed = Bed::new("moved-sockets")?;
    let (inside, outside) = (bed.cgroup.child("in")?, bed.cgroup.child("out")?);
    for user in USERS {
        let start = || Held::start(bed.client(Some(&inside), user)?.args(bed.everything()));
        // Its sockets are not bound: the wall holds them.
        let mut older = start()?;
        check_outcomes(&older.round()?, user, 0)?;
        bed.succeed(&["attach", inside.path(), "-i", "a1"])?;
        let mut spy = Spy::on(&bed, &["a1"])?;
        let mut held = start()?;
        check_outcomes(&held.round()?, user, 1)?;
        for process in [&older, &held] {
            move_to(&outside, process.pid())?;
        }
        check_outcomes(&held.round()?, user, 1).with_context(|| format!("{user:?}, moved"))?;
        let unbound = older.round()?;
        ensure!(unbound.iter().all(|outcome| !outcome.is_ok()), "{user:?}: {unbound:?}");
        spy.saw_nothing().with_context(|| format!("{user:?}"))?;
        bed.succeed(&["detach", inside.path()])?;
    }
    Ok(())
}

fn a_move_is_reported() -> Outcome {
    let bed = Bed::new("moved-report")?;
    let inside = bed.cgroup.child("in")?;
    let (below, outside) = (inside.child("below")?, bed.cgroup.child("out")?);
    let (exempt, other) = (bed.cgroup.child("exempt")?, bed.cgroup.child("other")?);
    bed.succeed(&["attach", inside.path(), "-i", "a1"])?;
    bed.succeed(&["attach", exempt.path(), "-i", "none"])?;
    bed.succeed(&["attach", other.path(), "-i", "a0"])?;
    if let Some(why) = bed.not_covered_of("processes that are moved out")? {
        return Err(NotHere(why).into());
    }
    let moved_out = || Ok::<_, anyhow::Error>((bed.sockets("a1", "moved_out")?, bed.sockets("a0", "moved_out")?));
    let process = Held::start(bed.client(None, User::Nobody)?.args(bed.everything()))?;
    let pid = process.pid();
    // None of these leaves what is steered.
    for cgroup in [&outside, &inside, &below, &inside, &other, &inside] {
        move_to(cgroup, pid)?;
    }
    // Another kind of hierarchy.
    if let Ok(directory) = fs::read_dir("/sys/fs/cgroup/pids") {
        drop(directory);
        fs::write("/sys/fs/cgroup/pids/cgroup.procs", pid.to_string())?;
    }
    ensure!(moved_out()? == (0, 0), "{:?}", moved_out()?);
    move_to(&below, pid)?;
    move_to(&outside, pid)?;
    move_to(&other, pid)?;
    move_to(&exempt, pid)?;
    let events = bed.succeed(&["events", "--once", "--json"])?;
    let events: Vec<serde_json::Value> = events.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let seen: Vec<_> = events.iter().map(|event| (&event["cgroup"], &event["policy"], &event["pid"])).collect();
    let (below, other) = (below.path().into(), other.path().into());
    let (a0, a1, pid) = ("a0".into(), "a1".into(), pid.into());
    let expected = [(&below, &a1, &pid), (&other, &a0, &pid)];
    ensure!(seen == expected, "{seen:?}");
    ensure!(events.iter().all(|event| event["reason"] == "moved_out"), "{events:?}");
    ensure!(events[0]["comm"] == "steer-probe", "{events:?}");
    ensure!(moved_out()? == (1, 1), "{:?}", moved_out()?);
    let status = bed.succeed(&["status"])?;
    ensure!(
        status.contains("a1: processes that were moved out of its cgroups, and are not steered since: 1"),
        "{status}"
    );
    Ok(())
}

/// The map of what is looked up when a process is moved has room for as many cgroups as this fills in.
fn a_full_map_is_logged_once() -> Outcome {
    let bed = Bed::new("moved-full")?;
    bed.succeed(&["attach", bed.cgroup.path(), "--interface", "a1"])?;
    let map = PinnedMap::<4>::open(&bed, "STEERED")?;
    let room = (1..=1_u64 << 20).find(|id| map.set(&id.to_ne_bytes(), &1_u32.to_ne_bytes()).is_err());
    ensure!(room.is_some_and(|room| room > 60_000), "{room:?}");
    let inner = ["x", "y", "z"].map(|name| bed.cgroup.child(name));
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a0\"\ncgroups = [\"@/*\"]\n")?;
    let log = daemon.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("of the steered cgroups are not reported")).collect();
    ensure!(lines.len() == 1 && lines[0].contains("leave 3 of the steered cgroups"), "{log}");
    inner.into_iter().try_for_each(|cgroup| bed.check_steered(&cgroup?, 0))
}
