//! `steer exec --policy` without privilege: who may, what leaves, and what a hostile user may try.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::IntoRawFd as _,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::sys::{
    resource::{Resource, setrlimit},
    signal::Signal,
    socket::{self, AddressFamily, SockFlag, SockType, UnixAddr},
};
use steer_lab::{Family, Vector, parse_outcomes, wait_until};
use steer_tests::{Bed, NOBODY, Outcome, PATIENCE, Scene, Spy, Try, User, check_outcomes, output};

use crate::{Test, top::Terminal};

pub(crate) const TESTS: &[Test] = &[
    ("an_allowed_user_is_steered", an_allowed_user_is_steered),
    ("a_user_learns_what_was_stopped", a_user_learns_what_was_stopped),
    ("others_are_refused", others_are_refused),
    ("a_steered_process_does_not_escape", a_steered_process_does_not_escape),
    ("the_user_cannot_leave_by_himself", the_user_cannot_leave_by_himself),
    ("nothing_else_is_answered", nothing_else_is_answered),
    ("a_flood_of_strangers_delays_nobody", a_flood_of_strangers_delays_nobody),
    ("commands_are_limited", commands_are_limited),
];

fn config(keys: &str) -> String {
    format!("[[policy]]\nname = \"second\"\ninterface = \"a1\"\ncgroups = [\"@/held\"]\n{keys}\n")
}

fn allowed() -> String {
    config(&format!("allow_users = [\"{}\"]", NOBODY.0))
}

/// `steer exec` as user nobody, in a cgroup of the bed.
fn exec(bed: &Bed, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(bed.copy_of("STEER_BIN", "steer")?);
    command.arg("--bpffs").arg(&bed.pins).arg("--socket").arg(bed.socket()).arg("exec").args(arguments);
    bed.place(&mut command, Some(&bed.cgroup), User::Nobody);
    Ok(command)
}

fn an_allowed_user_is_steered() -> Outcome {
    let bed = Bed::new("user-exec")?;
    let groups = config(&format!("allow_groups = [\"{}\"]", NOBODY.1));
    for config in [allowed(), groups] {
        let daemon = bed.daemon(&config)?;
        let probe = bed.copy_of("STEER_PROBE", "steer-probe")?;
        let mut spy = Spy::on(&bed, &["a1"])?;
        let ran = output(exec(&bed, &["--policy", "second", "--"])?.arg(probe).args(bed.everything()))?;
        spy.saw_nothing()?;
        let outcomes = parse_outcomes(&ran.stdout).with_context(|| format!("{ran:?}"))?;
        check_outcomes(&outcomes, User::Nobody, 1)?;
        let ran = output(&mut exec(&bed, &["--policy", "second", "--", "sh", "-c", "id -u; exit 7"])?)?;
        ensure!(ran.code == 7 && ran.stdout == format!("{}\n", NOBODY.0), "{ran:?}");
        wait_until("the cgroups of the commands to be removed", PATIENCE, || bed.cgroup.children().is_empty())?;
        daemon.end(Signal::SIGTERM)?;
    }
    // Without a daemon nobody can do it.
    let ran = output(&mut exec(&bed, &["--policy", "second", "--", "true"])?)?;
    ensure!(ran.code == 125 && ran.stderr.contains("the daemon has to run the command"), "{ran:?}");
    Ok(())
}

/// On the user's terminal, although the keeper is the daemon's; and nobody else learns it.
fn a_user_learns_what_was_stopped() -> Outcome {
    let bed = Bed::new("user-told")?;
    let _daemon = bed.daemon(&allowed())?;
    let run = |vector: Option<Vector>| {
        let mut command = exec(&bed, &["--policy", "second", "--"])?;
        match vector {
            Some(vector) => {
                let timeout = std::time::Duration::from_millis(200);
                let this = Try { vector, user: User::Nobody, family: Family::V4, scene: Scene::Steered, timeout };
                command.arg(bed.copy_of("STEER_ESCAPE", "steer-escape")?);
                bed.add_attempt(this, &mut command);
            }
            None => drop(command.arg("true")),
        }
        anyhow::Ok(command)
    };
    let mut terminal = Terminal::start_for(run(Some(Vector::Bindtodevice))?, Some(NOBODY))?;
    terminal.wait_for("the reason", |screen| {
        let text = screen.contents();
        text.contains("steer: stopped_setsockopt once, last steer-escape (PID ") && text.contains("what to change for")
    })?;
    terminal.child.wait()?;
    let mut quiet = Terminal::start_for(run(None)?, Some(NOBODY))?;
    ensure!(quiet.child.wait()?.success());
    wait_until("the cgroups of the commands to be removed", PATIENCE, || bed.cgroup.children().is_empty())?;
    quiet.wait_for("nothing", |screen| screen.contents().trim().is_empty())?;
    Ok(())
}

fn others_are_refused() -> Outcome {
    let bed = Bed::new("user-refused")?;
    let _daemon =
        bed.daemon(&config("allow_users = [\"root\", \"12345\"]\nallow_groups = [\"54321\", \"no-such-group\"]"))?;
    for (arguments, expected) in [
        (&["--policy", "second", "--", "true"] as &[&str], "does not allow user 65534"),
        (&["--policy", "third", "--", "true"], "no policy \"third\""),
        (&["--interface", "a1", "--", "true"], "CAP_BPF"),
        (&["--policy", "second", "--user", "root", "--", "true"], "CAP_BPF"),
    ] {
        let ran = output(&mut exec(&bed, arguments)?)?;
        ensure!(ran.code == 125 && ran.stderr.contains(expected), "{arguments:?}: {ran:?}");
    }
    for arguments in [&["reload"] as &[&str], &["policy", "list"]] {
        let mut steer = Command::new(bed.copy_of("STEER_BIN", "steer")?);
        steer.arg("--bpffs").arg(&bed.pins).arg("--socket").arg(bed.socket()).args(arguments);
        bed.place(&mut steer, Some(&bed.cgroup), User::Nobody);
        let refused = output(&mut steer)?;
        ensure!(refused.code == 1 && refused.stderr.contains("permission denied"), "{refused:?}");
    }
    // The administrator changes the file, and the next command may.
    bed.write_config(&allowed())?;
    bed.succeed(&["reload"])?;
    let ran = output(&mut exec(&bed, &["--policy", "second", "--", "true"])?)?;
    ensure!(ran.code == 0, "{ran:?}");
    // In another network namespace, the uplink is another.
    let mut elsewhere = Command::new(bed.copy_of("STEER_BIN", "steer")?);
    elsewhere.arg("--bpffs").arg(&bed.pins).arg("--socket").arg(bed.socket());
    elsewhere.args(["exec", "--policy", "second", "--", "true"]).stdin(Stdio::null());
    bed.cgroup.enter(&mut elsewhere);
    bed.net.server.enter_as(&mut elsewhere, NOBODY.0, NOBODY.1);
    let ran = output(&mut elsewhere)?;
    ensure!(ran.code == 125 && ran.stderr.contains("another network namespace"), "{ran:?}");
    Ok(())
}

/// What the administrator has steered stays so, although the user may use another policy.
fn a_steered_process_does_not_escape() -> Outcome {
    let bed = Bed::new("user-held")?;
    let first = format!("[[policy]]\nname = \"first\"\ninterface = \"a0\"\ncgroups = [\"{}\"]\n", bed.cgroup.path());
    let second =
        format!("[[policy]]\nname = \"second\"\ninterface = \"a1\"\ncgroups = []\nallow_users = [\"{}\"]\n", NOBODY.0);
    let _daemon = bed.daemon(&format!("{first}{second}"))?;
    let ran = output(&mut exec(&bed, &["--policy", "second", "--", "true"])?)?;
    ensure!(ran.code == 125 && ran.stderr.contains("steer holds already"), "{ran:?}");
    ensure!(bed.cgroup.children().is_empty(), "{:?}", bed.cgroup.children());
    Ok(())
}

fn the_user_cannot_leave_by_himself() -> Outcome {
    let bed = Bed::new("user-leaves")?;
    let _daemon = bed.daemon(&allowed())?;
    // The user owns the cgroup that the command comes from, as with a manager of systemd.
    let own = bed.cgroup.child("delegated")?;
    for file in [own.directory().to_owned(), own.directory().join("cgroup.procs")] {
        std::os::unix::fs::chown(file, Some(NOBODY.0), Some(NOBODY.1))?;
    }
    let procs = own.directory().join("cgroup.procs").display().to_string();
    let script = "cat /proc/self/cgroup; for f in \"$1\" \"$2\"/*/cgroup.procs; do echo $$ >\"$f\" && echo LEFT by $f; \
                  done 2>/dev/null; rmdir \"$2\"/steer-exec-* 2>/dev/null && echo REMOVED; cat /proc/self/cgroup";
    let mut command = Command::new(bed.copy_of("STEER_BIN", "steer")?);
    command.arg("--bpffs").arg(&bed.pins).arg("--socket").arg(bed.socket());
    command.args(["exec", "--policy", "second", "--", "sh", "-c", script, "sh", &procs]).arg(bed.cgroup.directory());
    bed.place(&mut command, Some(&own), User::Nobody);
    let ran = output(&mut command)?;
    let paths: Vec<_> = ran.stdout.lines().filter(|line| line.starts_with("0::")).collect();
    ensure!(ran.code == 0 && !ran.stdout.contains("LEFT by") && !ran.stdout.contains("REMOVED"), "{ran:?}");
    ensure!(paths.len() == 2 && paths[0] == paths[1] && paths[0].contains("/steer-exec-"), "{ran:?}");
    ensure!(!paths[0].contains("delegated"), "{ran:?}");
    Ok(())
}

/// The socket is everybody's, so it answers one request, for the process that asks.
fn nothing_else_is_answered() -> Outcome {
    let bed = Bed::new("user-socket")?;
    let daemon = bed.daemon(&allowed())?;
    let socket = bed.socket().with_extension("exec.sock");
    let send = |request: &str| -> anyhow::Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: steer\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    for (request, expected) in [
        ("GET /v1/status HTTP/1.1\r\nHost: steer\r\n\r\n".to_owned(), "404"),
        (post("/v1/reload", ""), "404"),
        (post("/v1/exec", ""), "422"),
        (post("/v1/exec", "{\"policy\": \"second\", \"pid\": 1}"), "422"),
        (post("/v1/exec", "{\"policy\": 1}"), "422"),
        (post("/v1/exec/stopped", "{\"cgroup_id\": 1}"), "404"),
        (post("/v1/exec/stopped", "{\"cgroup_id\": -1}"), "422"),
    ] {
        let answer = send(&request)?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{request}: {answer}");
    }
    // A client that says nothing is disconnected, and others are answered meanwhile.
    let silent: Vec<_> = (0..8).map(|_| UnixStream::connect(&socket)).collect::<Result<_, _>>()?;
    let ran = output(&mut exec(&bed, &["--policy", "second", "--", "true"])?)?;
    ensure!(ran.code == 0, "{ran:?}");
    drop(silent);
    daemon.end(Signal::SIGTERM)?;
    ensure!(!socket.exists(), "the socket is left");
    Ok(())
}

/// Some clients end at once, others do not finish their request. No policy allows their user.
fn a_flood_of_strangers_delays_nobody() -> Outcome {
    let bed = Bed::new("user-flood")?;
    let daemon = bed.daemon(&allowed())?;
    let socket = bed.socket().with_extension("exec.sock");
    let descriptors = || Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count());
    let before = descriptors()?;
    daemon.freeze(&bed)?;
    for _ in 0..150 {
        let address = UnixAddr::new(&socket)?;
        let mut client = Command::new("true");
        // SAFETY: two system calls.
        unsafe {
            client.pre_exec(move || {
                let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
                socket::connect(socket.into_raw_fd(), &address)?;
                Ok(())
            });
        }
        ensure!(client.status()?.success());
    }
    let mut unfinished = Vec::new();
    for _ in 0..100 {
        let mut stream = UnixStream::connect(&socket)?;
        stream.write_all(b"POST /v1/exec HTTP/1.1\r\nHost: steer\r\nContent-Length: 10\r\n\r\n")?;
        unfinished.push(stream);
    }
    daemon.signal(Signal::SIGCONT)?;
    // It waits for its answer for 10 s, as long as an unfinished request may take.
    let ran = output(&mut exec(&bed, &["--policy", "second", "--", "true"])?)?;
    ensure!(ran.code == 0, "{ran:?}");
    let now = descriptors()?;
    ensure!(now < before + 100, "{now} descriptors, {before} before");
    // Commands of one user at once, also right after others have ended.
    for _ in 0..2 {
        let commands = (0..12).map(|_| exec(&bed, &["--policy", "second", "--", "true"])?.spawn().map_err(Into::into));
        let commands = commands.collect::<anyhow::Result<Vec<_>>>()?;
        for mut command in commands {
            ensure!(command.wait()?.success());
        }
    }
    // Without free descriptors it fails as with any other cause.
    let mut poor = exec(&bed, &["--policy", "second", "--", "true"])?;
    // SAFETY: one system call.
    unsafe { poor.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_NOFILE, 6, 6)?)) };
    let ran = output(&mut poor)?;
    ensure!(ran.code == 125 && ran.stderr.contains("Too many open files"), "{ran:?}");
    Ok(())
}

fn commands_are_limited() -> Outcome {
    let bed = Bed::new("user-many")?;
    let _daemon = bed.daemon(&allowed())?;
    let mut sleepers = Vec::new();
    let mut run = |uid: u32, number: u32| {
        let cgroup = bed.cgroup.child(&format!("steer-exec-user{uid}-0-{number}"))?;
        sleepers.push((cgroup.enter(Command::new("sleep").arg("1000")).spawn()?, cgroup));
        anyhow::Ok(())
    };
    // Those of others do not count.
    (0..64).try_for_each(|number| run(1, number))?;
    (1..64).try_for_each(|number| run(NOBODY.0, number))?;
    let ran = output(&mut exec(&bed, &["--policy", "second", "--", "true"])?)?;
    ensure!(ran.code == 0, "{ran:?}");
    run(NOBODY.0, 0)?;
    let refused = output(&mut exec(&bed, &["--policy", "second", "--", "true"])?)?;
    for (child, _) in &mut sleepers {
        child.kill()?;
        child.wait()?;
    }
    ensure!(refused.code == 125 && refused.stderr.contains("64 commands of user"), "{refused:?}");
    let ran = output(&mut exec(&bed, &["--policy", "second", "--", "true"])?)?;
    ensure!(ran.code == 0, "{ran:?}");
    Ok(())
}
