//! `steer exec`.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram, process::CommandExt as _},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::{Mode, umask},
    },
    unistd::Pid,
};
use steer_lab::{parse_outcomes, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, Spy, User, check_outcomes, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("everything_leaves_by_the_uplink", everything_leaves_by_the_uplink),
    ("as_if_run_directly", as_if_run_directly),
    ("signals_reach_the_command", signals_reach_the_command),
    ("a_missing_interface_is_an_error_before_the_command", a_missing_interface_is_an_error_before_the_command),
    ("nothing_is_left", nothing_is_left),
    ("nothing_is_left_of_a_killed_command", nothing_is_left_of_a_killed_command),
    ("steered_while_a_descendant_lives", steered_while_a_descendant_lives),
    ("leftovers_of_a_killed_keeper_are_removed_by_the_next", leftovers_of_a_killed_keeper_are_removed_by_the_next),
    ("the_keeper_logs_its_errors", the_keeper_logs_its_errors),
    ("killed_at_any_moment_leaves_nothing", killed_at_any_moment_leaves_nothing),
    ("follows_the_uplink_without_a_daemon", follows_the_uplink_without_a_daemon),
    ("many_at_once", many_at_once),
    ("by_policy_of_the_daemon", by_policy_of_the_daemon),
    ("under_a_private_sys", under_a_private_sys),
    ("with_the_umask_of_the_caller", with_the_umask_of_the_caller),
];

/// `steer exec` in a cgroup of the bed, so that tests do not share a cgroup.
fn exec(bed: &Bed, arguments: &[&str]) -> std::process::Command {
    let mut command = bed.steer(&["exec"]);
    command.args(arguments);
    bed.cgroup.enter(&mut command);
    command
}

/// steer itself creates files that only their owner may write, whatever the umask.
fn with_the_umask_of_the_caller() -> Outcome {
    let bed = Bed::new("exec-umask")?;
    let runtime = bed.directory.join("runtime");
    fs::write(&runtime, "#!/bin/sh\numask\n")?;
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
    let runtime = runtime.display().to_string();
    for arguments in
        [&["exec", "--interface", "a1", "--", &runtime] as &[_], &["hook", "wrap", "--", &runtime, "state", "one"]]
    {
        let mut command = bed.steer(arguments);
        bed.cgroup.enter(&mut command);
        // SAFETY: one system call.
        unsafe {
            command.pre_exec(|| {
                umask(Mode::from_bits_truncate(0o002));
                Ok(())
            })
        };
        let said = output(&mut command)?;
        ensure!(said.code == 0 && said.stdout == "0002\n", "{arguments:?}: {said:?}");
    }
    Ok(())
}

fn everything_leaves_by_the_uplink() -> Outcome {
    let bed = Bed::new("exec")?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let probe = steer_tests::binary("STEER_PROBE", "steer-probe");
    let mut command = exec(&bed, &["--interface", "a1", "--"]);
    let output = output(command.arg(probe).args(bed.everything()))?;
    spy.saw_nothing()?;
    let outcomes = parse_outcomes(&output.stdout)?;
    ensure!(outcomes.len() == 8, "{output:?}");
    check_outcomes(&outcomes, User::Root, 1)?;
    bed.check_unsteered(None)
}

fn as_if_run_directly() -> Outcome {
    let bed = Bed::new("exec-direct")?;
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15)] {
        let ran = output(exec(&bed, &["-i", "a1", "--", "sh", "-c", script]).stdin(Stdio::null()))?;
        ensure!(ran.code == code, "{script}: {ran:?}");
        ensure!(ran.stderr.is_empty(), "{script}: {ran:?}");
    }
    for (program, code) in [("/nonexistent/program", 127), ("/etc/passwd", 126)] {
        let ran = output(&mut exec(&bed, &["-i", "a1", "--", program]))?;
        ensure!(ran.code == code && ran.stderr.contains(program), "{ran:?}");
    }

    // The same PID, standard input and output, and arguments with dashes, and no additional descriptor.
    let descriptors = output(std::process::Command::new("ls").arg("/proc/self/fd"))?.stdout.replace('\n', " ");
    let script = "read line; echo \"$line $1 $$\"; ls /proc/self/fd | tr '\\n' ' '";
    let mut child = exec(&bed, &["-i", "a1", "--", "sh", "-c", script, "name", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    child.stdin.take().context("no pipe")?.write_all(b"hello\n")?;
    let printed = steer_tests::read_all(&mut child)?;
    ensure!(printed == format!("hello --json {pid}\n{descriptors}"), "{printed:?}");
    bed.wait_until_clean()
}

fn signals_reach_the_command() -> Outcome {
    let bed = Bed::new("exec-signal")?;
    let script = "trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.01; done";
    let mut child = exec(&bed, &["-i", "a1", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn()?;
    let mut reader = std::io::BufReader::new(child.stdout.take().context("no pipe")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader, &mut line)?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGUSR1)?;
    std::io::BufRead::read_line(&mut reader, &mut line)?;
    ensure!(line == "ready\ngot it\n", "{line:?}");
    ensure!(child.wait()?.code() == Some(3));
    bed.wait_until_clean()
}

fn a_missing_interface_is_an_error_before_the_command() -> Outcome {
    let bed = Bed::new("exec-missing")?;
    let witness = bed.directory.join("ran");
    let ran = output(exec(&bed, &["-i", "wg9", "--", "touch"]).arg(&witness))?;
    ensure!(ran.code == 125, "{ran:?}");
    ensure!(ran.stderr.contains("\"wg9\"") && ran.stderr.contains("a0, a1"), "{ran:?}");
    ensure!(!witness.exists(), "the command ran");
    let own = steer_lab::client_v4(0).to_string();
    let options = ["-i", "a1", "--except", "10.0.0.0/8=wg9", "--dns", &own];
    let warned = output(&mut exec(&bed, &[&options[..], &["--", "true"]].concat()))?;
    ensure!(warned.code == 0, "{warned:?}");
    for warning in [
        "steer: warning: there is no interface wg9; until there is, 10.0.0.0/8 cannot be reached\n".to_owned(),
        format!("steer: warning: --dns {own} is an address of this host, so names are not resolved"),
    ] {
        ensure!(warned.stderr.contains(&warning), "{warned:?}");
    }
    for (options, mistake) in [
        (&["-i", "a1", "--ingress", "uplink", "--enforce", "steer"][..], "--ingress uplink needs --enforce strict"),
        (&["--iface", "a1"], "similar argument exists: '--interface'"),
        (&["--uplink", "a0,a1"], "a list is written with `+`, as a0+a1"),
    ] {
        let refused = output(&mut exec(&bed, &[options, &["--", "true"]].concat()))?;
        ensure!(refused.code == 2 && refused.stderr.contains(mistake), "{refused:?}");
    }
    let down = output(bed.net.client.enter(std::process::Command::new("ip").args(["link", "set", "a1", "down"])))?;
    ensure!(down.code == 0, "{down:?}");
    let warned = output(&mut exec(&bed, &["-i", "a1", "--", "true"]))?;
    ensure!(warned.code == 0 && warned.stderr.contains("steer: warning: a1 is down"), "{warned:?}");
    bed.wait_until_clean()
}

fn nothing_is_left() -> Outcome {
    let bed = Bed::new("exec-clean")?;
    // The command makes cgroups and does not remove them.
    let script = "mkdir -p /proc/self/root$1/$(cut -d: -f3 /proc/self/cgroup | tail -1)/sub/deeper";
    let mount = bed.cgroup.directory().parent().context("no parent")?.to_string_lossy().into_owned();
    let ran = output(&mut exec(&bed, &["-i", "a1", "--", "sh", "-c", script, "x", &mount]))?;
    ensure!(ran.code == 0, "{ran:?}");
    bed.wait_until_clean()
}

fn nothing_is_left_of_a_killed_command() -> Outcome {
    let bed = Bed::new("exec-kill")?;
    let mut child = exec(&bed, &["-i", "a1", "--", "sleep", "1000"]).spawn()?;
    wait_until("the command to be steered", PATIENCE, || {
        bed.policy("a1").is_ok_and(|policy| policy["cgroups"][0]["complete"] == true)
    })?;
    child.kill()?;
    child.wait()?;
    bed.wait_until_clean()
}

fn steered_while_a_descendant_lives() -> Outcome {
    let bed = Bed::new("exec-descendant")?;
    // The command ends at once; its background process is still steered.
    let fifo = bed.directory.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let probe = steer_tests::binary("STEER_PROBE", "steer-probe");
    let answer = bed.directory.join("answer");
    let script = "(read go <\"$1\"; shift; out=$1; shift; exec \"$@\" >\"$out\") </dev/null >/dev/null 2>&1 &";
    let mut command = exec(&bed, &["-i", "a1", "--", "sh", "-c", script, "x"]);
    command.arg(&fifo).arg(&answer).arg(probe).args(bed.everything());
    let ran = output(&mut command)?;
    ensure!(ran.code == 0, "{ran:?}");
    let mut spy = Spy::on(&bed, &["a1"])?;
    fs::write(&fifo, "go\n")?;
    bed.wait_until_clean()?;
    spy.saw_nothing()?;
    check_outcomes(&parse_outcomes(&fs::read_to_string(&answer)?)?, User::Root, 1)
}

/// PIDs of the keepers of a bed.
fn keepers(bed: &Bed) -> Vec<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pins = bed.pins.to_string_lossy().into_owned();
    processes
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with("steer-keeper") && line.contains(&pins))
        })
        .collect()
}

fn leftovers_of_a_killed_keeper_are_removed_by_the_next() -> Outcome {
    let bed = Bed::new("exec-keeper")?;
    let mut child = exec(&bed, &["-i", "a1", "--", "sleep", "1000"]).spawn()?;
    wait_until("the keeper", PATIENCE, || keepers(&bed).len() == 1)?;
    wait_until("the command to be steered", PATIENCE, || {
        bed.policy("a1").is_ok_and(|policy| policy["cgroups"][0]["complete"] == true)
    })?;
    for pid in keepers(&bed) {
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    wait_until("the keeper to be gone", PATIENCE, || keepers(&bed).is_empty())?;

    // While the command lives, its cgroup is not treated as abandoned.
    ensure!(output(&mut exec(&bed, &["-i", "a1", "--", "true"]))?.code == 0);
    wait_until("the second command's keeper to be gone", PATIENCE, || keepers(&bed).is_empty())?;
    ensure!(bed.policy("a1")?["cgroups"][0]["complete"] == true, "the first is no longer steered");

    child.kill()?;
    child.wait()?;
    ensure!(bed.cgroup.children().len() == 1, "the killed keeper cleaned up");
    ensure!(output(&mut exec(&bed, &["-i", "a1", "--", "true"]))?.code == 0);
    bed.wait_until_clean()
}

/// To the system log, for it has no terminal.
fn the_keeper_logs_its_errors() -> Outcome {
    let bed = Bed::new("exec-log")?;
    let socket = UnixDatagram::bind(bed.directory.join("log"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // A directory where a pin should be cannot be removed as one.
    let script = "for attachment in \"$1\"/links/*; do mkdir \"$attachment/stray\"; done";
    let mut own = exec(&bed, &["-i", "a1", "--", "sh", "-c", script, "x"]);
    own.arg(bed.abi());
    // A /dev of its own, with this log.
    let dev = "mount -t tmpfs none \"$1/dev\" && cp -a /dev/null /dev/zero /dev/urandom \"$1/dev\" && touch \"$1/dev/log\" && \
               mount --bind \"$1/log\" \"$1/dev/log\" && mount --rbind \"$1/dev\" /dev && shift && exec \"$@\"";
    fs::create_dir(bed.directory.join("dev"))?;
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-c", dev, "x"]).arg(&bed.directory);
    command.arg(own.get_program()).args(own.get_args());
    bed.cgroup.enter(&mut command);
    bed.net.client.enter(&mut command);
    let ran = output(&mut command)?;
    ensure!(ran.code == 0, "{ran:?}");
    let mut message = [0; 4096];
    let length = socket.recv(&mut message)?;
    let message = String::from_utf8_lossy(&message[..length]);
    ensure!(message.contains("steer-keeper[") && message.contains("stray"), "{message}");
    for attachment in fs::read_dir(bed.abi().join("links"))? {
        fs::remove_dir(attachment?.path().join("stray"))?;
    }
    Ok(())
}

fn killed_at_any_moment_leaves_nothing() -> Outcome {
    let bed = Bed::new("exec-any")?;
    // From before its first action until after it has become its command.
    for microseconds in (0..40_000).step_by(1_000) {
        let mut child = exec(&bed, &["-i", "a1", "--", "sleep", "1000"]).spawn()?;
        let until = std::time::Instant::now() + std::time::Duration::from_micros(microseconds);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        child.kill()?;
        child.wait()?;
    }
    wait_until("the keepers to be gone", PATIENCE, || keepers(&bed).is_empty())?;
    // The next one removes the leftovers of the killed ones.
    ensure!(output(&mut exec(&bed, &["-i", "a1", "--", "true"]))?.code == 0);
    bed.wait_until_clean()
}

fn follows_the_uplink_without_a_daemon() -> Outcome {
    let mut bed = Bed::new("exec-follow")?;
    let mut child = exec(&bed, &["-i", "a1", "--", "sleep", "1000"]).spawn()?;
    wait_until("the command to be steered", PATIENCE, || {
        bed.policy("a1").is_ok_and(|policy| policy["ifindex"].is_i64())
    })?;
    bed.net.remove_uplink(1)?;
    wait_until("the keeper to miss the uplink", PATIENCE, || {
        bed.policy("a1").is_ok_and(|policy| policy["ifindex"].is_null())
    })?;
    bed.net.create_uplink(1)?;
    let index = bed.net.ifindex(1)?;
    wait_until("the keeper to find the uplink", PATIENCE, || {
        bed.policy("a1").is_ok_and(|policy| policy["ifindex"] == index)
    })?;
    child.kill()?;
    child.wait()?;
    bed.wait_until_clean()
}

fn many_at_once() -> Outcome {
    let bed = Bed::new("exec-many")?;
    let children = (0..12)
        .map(|i: u8| exec(&bed, &["-i", if i.is_multiple_of(2) { "a0" } else { "a1" }, "--", "true"]).spawn())
        .collect::<Result<Vec<_>, _>>()?;
    for mut child in children {
        let status = child.wait()?;
        ensure!(status.success(), "{status}");
    }
    bed.wait_until_clean()
}

fn by_policy_of_the_daemon() -> Outcome {
    let bed = Bed::new("exec-policy")?;
    let config = "[[policy]]\nname = \"second\"\ninterface = \"a1\"\ncgroups = [\"@/unused\"]\n";
    let daemon = bed.daemon(config)?;
    let ran = output(&mut exec(&bed, &["--policy", "third", "--", "true"]))?;
    ensure!(ran.code == 125 && ran.stderr.contains("\"third\""), "{ran:?}");
    let probe = steer_tests::binary("STEER_PROBE", "steer-probe");
    let mut spy = Spy::on(&bed, &["a1"])?;
    let ran = output(exec(&bed, &["--policy", "second", "--"]).arg(probe).args(bed.everything()))?;
    spy.saw_nothing()?;
    check_outcomes(&parse_outcomes(&ran.stdout)?, User::Root, 1)?;
    ensure!(bed.sockets("second", "bound")? >= 8);
    daemon.end(Signal::SIGTERM)?;
    Ok(())
}

/// `ip netns exec` gives its command a mount namespace with a new /sys: neither cgroup2 nor bpffs is visible.
fn under_a_private_sys() -> Outcome {
    let bed = Bed::new("exec-sys")?;
    let probe = steer_tests::binary("STEER_PROBE", "steer-probe");
    let steer = steer_tests::binary("STEER_BIN", "steer");
    let script = "umount -R -l /sys && mount -t sysfs sysfs /sys && ! test -d /sys/fs/cgroup/unified && exec \"$@\"";
    let hidden = |arguments: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-c", script, "x"]);
        command.arg(&steer).arg("--bpffs").arg(&bed.pins).args(arguments);
        bed.net.client.enter(&mut command);
        command
    };
    let mut command = hidden(&["exec", "-i", "a1", "--"]);
    command.arg(probe).args(bed.everything());
    bed.cgroup.enter(&mut command);
    let mut spy = Spy::on(&bed, &["a1"])?;
    let ran = output(&mut command)?;
    spy.saw_nothing()?;
    check_outcomes(&parse_outcomes(&ran.stdout).with_context(|| format!("{ran:?}"))?, User::Root, 1)
        .with_context(|| format!("{ran:?}"))?;
    bed.wait_until_clean()?;
    // Cgroups have their paths there, too.
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let status = output(&mut hidden(&["status", "--json"]))?;
    ensure!(status.stdout.contains(&format!("\"path\": \"{}\"", bed.cgroup.path())), "{status:?}");
    Ok(())
}
