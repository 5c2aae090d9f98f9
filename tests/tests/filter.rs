//! What `steer exec` refuses where the kernel runs no security programs, by a seccomp filter.

use std::{os::unix::fs::PermissionsExt as _, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use steer_lab::{Family, Vector};
use steer_tests::{Bed, Level, NotHere, Outcome, Scene, Try, USERS, User, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("exec_refuses_what_no_program_sees", exec_refuses_what_no_program_sees),
    ("it_takes_no_privilege_away", it_takes_no_privilege_away),
    ("compat_calls_are_possible", compat_calls_are_possible),
    ("compat_calls_are_refused_and_reported", compat_calls_are_refused_and_reported),
    ("status_names_what_has_no_filter", status_names_what_has_no_filter),
    ("without_security_programs", without_security_programs),
];

const VECTORS: [Vector; 10] = [
    Vector::PacketRaw,
    Vector::PacketDgram,
    Vector::PacketLegacy,
    Vector::PacketUring,
    Vector::Xdp,
    Vector::Smc,
    Vector::CompatJoin,
    Vector::CompatJoinSocketcall,
    Vector::CompatJoinUring,
    Vector::CompatPacket,
];

/// `steer exec` for a user, in the bed's cgroup.
fn exec(bed: &Bed, user: User, options: &[&str]) -> std::process::Command {
    let mut command = bed.steer(&[&["exec", "-i", "a1"], options, &["--"]].concat());
    if user == User::Nobody {
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    bed.cgroup.enter(&mut command);
    command
}

fn exec_refuses_what_no_program_sees() -> Outcome {
    exec_refuses(&USERS, &[Family::V4, Family::V6])
}

/// What depends on the kernel of that.
pub(crate) fn exec_of_root_refuses_what_no_program_sees() -> Outcome {
    exec_refuses(&[User::Root], &[Family::V4])
}

fn exec_refuses(users: &[User], families: &[Family]) -> Outcome {
    for &user in users {
        for &family in families {
            let bed = Bed::new("filter-exec")?;
            bed.furnish_for_escapes()?;
            for vector in VECTORS {
                let timeout = Duration::from_millis(200);
                let this = Try { vector, user, family, scene: Scene::Steered, timeout };
                let mut program = exec(&bed, user, &[]);
                program.arg(bed.copy_of("STEER_ESCAPE", "steer-escape")?);
                bed.add_attempt(this, &mut program);
                let seen = bed.watch_attempt(this, program, &["a1"], || Ok(()))?;
                ensure!(seen.leaked.is_empty() && !seen.attempt.is_ok(), "{this:?}: {seen:?}");
                let is_refused = seen.attempt.outcome == "EPERM" || !seen.attempt.is_applicable();
                ensure!(is_refused, "{this:?}: {seen:?}");
            }
        }
    }
    Ok(())
}

/// Without strict enforcement such a call succeeds and its packets leave by another link: the rows about them tell something here.
pub(crate) fn compat_calls_are_possible() -> Outcome {
    let bed = Bed::new("filter-possible")?;
    bed.furnish_for_escapes()?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", "steer"])?;
    let timeout = Duration::from_millis(400);
    for vector in [Vector::CompatJoin, Vector::CompatJoinUring] {
        let this = Try { vector, user: User::Root, family: Family::V4, scene: Scene::Steered, timeout };
        let seen = bed.attempt(this, Level::Steer)?;
        // A ring sets socket options since Linux 6.7.
        if !seen.attempt.is_applicable() && vector == Vector::CompatJoin {
            return Err(NotHere("neither this kernel nor this processor has 32 bit system calls".to_owned()).into());
        }
        let leaks = seen.attempt.is_ok() && !seen.leaked.is_empty();
        ensure!(leaks || !seen.attempt.is_applicable(), "{this:?}: {seen:?}");
    }
    Ok(())
}

/// In any steered cgroup, by security programs.
pub(crate) fn compat_calls_are_refused_and_reported() -> Outcome {
    const VECTORS: [Vector; 4] =
        [Vector::CompatBindtodevice, Vector::CompatJoin, Vector::CompatJoinSocketcall, Vector::CompatJoinUring];
    let bed = Bed::new("filter-compat")?;
    bed.furnish_for_escapes()?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    if let Some(why) = bed.not_covered()? {
        return Err(NotHere(why).into());
    }
    for user in USERS {
        for family in [Family::V4, Family::V6] {
            let timeout = Duration::from_millis(400);
            let this = |vector| Try { vector, user, family, scene: Scene::Steered, timeout };
            for vector in VECTORS {
                let seen = bed.attempt(this(vector), Level::Strict)?;
                let is_refused = seen.attempt.outcome == "EPERM" || !seen.attempt.is_applicable();
                ensure!(seen.leaked.is_empty() && is_refused, "{vector:?} {user:?} {family:?}: {seen:?}");
            }
            let seen = bed.attempt(this(Vector::JoinByRoute), Level::Strict)?;
            ensure!(seen.leaked.is_empty() && seen.attempt.is_ok(), "64 bit, {user:?} {family:?}: {seen:?}");
        }
    }
    let events = bed.succeed(&["events", "--once"])?;
    ensure!(
        events.contains(" stopped_setsockopt policy=\"a1\"") && events.contains("option=SO_BINDTODEVICE"),
        "{events}"
    );
    Ok(())
}

/// The values of fields in /proc/PID/status of a command.
fn fields(bed: &Bed, options: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut command = exec(bed, User::Nobody, options);
    let ran = output(command.args(["grep", "-E", "^(NoNewPrivs|Seccomp):", "/proc/self/status"]))?;
    ensure!(ran.code == 0, "{ran:?}");
    Ok(ran.stdout.lines().filter_map(|line| Some(line.split_once('\t')?.1.to_owned())).collect())
}

fn it_takes_no_privilege_away() -> Outcome {
    let bed = Bed::new("filter-privilege")?;
    ensure!(fields(&bed, &["--enforce", "steer"])? == ["0", "0"], "a filter for nothing");
    // A set-user-ID program, such as sudo or ping, still gets its privilege.
    let strict = fields(&bed, &[])?;
    ensure!(strict[0] == "0", "{strict:?}");
    // A raw socket is one of the IP stack.
    let outcomes =
        output(exec(&bed, User::Root, &[]).arg(bed.copy_of("STEER_PROBE", "steer-probe")?).args(bed.everything()))?;
    steer_tests::check_outcomes(&steer_lab::parse_outcomes(&outcomes.stdout)?, User::Root, 1)
}

fn status_names_what_has_no_filter() -> Outcome {
    let bed = Bed::new("filter-status")?;
    let mut child = exec(&bed, User::Root, &[])
        .args(["sh", "-c", "echo ready; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take().context("no pipe")?;
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().context("no pipe")?), &mut line)?;
    ensure!(bed.not_covered()?.is_none(), "{:?}", bed.not_covered()?);
    let attached = bed.cgroup.child("attached")?;
    bed.succeed(&["attach", attached.path(), "-i", "a1"])?;
    if let Some(why) = bed.not_covered()? {
        ensure!(why.contains("32 bit") && why.contains("except in `steer exec`"), "{why}");
    }
    drop(stdin);
    child.wait()?;
    Ok(())
}

/// What steer says and does on a host whose kernel runs no security programs, such as Ubuntu's, and that it does neither elsewhere.
pub(crate) fn without_security_programs() -> Outcome {
    let bed = Bed::new("filter-host")?;
    let before = bed.doctor_text(&[])?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let not_covered = bed.not_covered()?;
    // The kernel alone shows it before the first policy. Whether it accepts the programs shows only once they are loaded.
    let by_kernel = ["is not among the active security modules", "is older than 6.0"];
    let known = not_covered.as_ref().is_some_and(|why| by_kernel.iter().any(|words| why.contains(words)));
    ensure!(before.code == 0, "{before:?}");
    ensure!(before.stdout.contains("info: lsm-bpf: ") == known, "{before:?}, {not_covered:?}");
    let said = [
        "a strict policy does not refuse packet and XDP sockets",
        "`steer exec` refuses both",
        "`steer unit` by settings",
    ];
    ensure!(!known || said.iter().all(|words| before.stdout.contains(words)), "{before:?}");
    let after = bed.doctor_text(&[])?;
    ensure!(after.stdout.contains("warning: lsm-bpf: ") == not_covered.is_some(), "{after:?}, {not_covered:?}");
    ensure!(after.code == i32::from(not_covered.is_some()), "{after:?}");
    if let Some(why) = &not_covered {
        ensure!(why.contains("AF_PACKET") && why.contains("except in `steer exec`"), "{why}");
    }

    let filter = if not_covered.is_some() { "2" } else { "0" };
    ensure!(fields(&bed, &[])?[1] == filter, "{not_covered:?}");

    // systemd is not asked: what it would answer for a service of root.
    let directory = bed.directory.join("systemd");
    std::fs::create_dir(&directory)?;
    let systemctl = directory.join("systemctl");
    std::fs::write(
        &systemctl,
        "#!/bin/sh\necho LoadState=loaded; echo NoNewPrivileges=no; echo DynamicUser=no; echo User=\n",
    )?;
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", directory.display(), std::env::var("PATH")?);
    let mut unit = bed.steer(&["unit", "x", "--interface", "a1", "--force", "--stdout"]);
    let unit = output(unit.env("PATH", path))?;
    ensure!(unit.code == 0, "{unit:?}");
    for line in [
        "RestrictAddressFamilies=~AF_PACKET ",
        "SystemCallFilter=~io_uring_setup:EPERM",
        "SystemCallArchitectures=native",
    ] {
        let is_there = unit.stdout.lines().any(|there| there.starts_with(line));
        ensure!(is_there == not_covered.is_some(), "{line}: {unit:?}, {not_covered:?}");
    }
    Ok(())
}
