//! What is told of events: by a daemon to several listeners and to its log, by `exec` on its terminal, and about their reasons.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use steer_lab::{Family, SERVER_V4, SERVER_V6, Vector, client_v4, client_v6, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, Scene, Spy, Try, User, output};

use super::{attempt, backlog, follower::Follower, parse};
use crate::top::Terminal;

/// `--once` takes nothing from those who follow, nor from another `--once`.
pub(super) fn once_beside_a_listener() -> Outcome {
    let bed = Bed::new("events-beside")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    let (mut follower, _) = Follower::start(&bed, &["--json"])?;
    let pid = attempt(&bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4)?;
    for _ in 0..2 {
        let events = backlog(&bed)?;
        ensure!(events.len() == 2 && events[1]["pid"] == pid, "{events:#?}");
    }
    ensure!(parse(&follower.next()?)?[0]["pid"] == pid);
    let (local, utc) = (bed.succeed(&["events", "--once"])?, bed.succeed(&["events", "--once", "--utc"])?);
    ensure!(utc.lines().all(|line| line.split(' ').next().is_some_and(|time| time.ends_with('Z'))), "{utc}");
    let has_offset = |line: &str| line.split(' ').next().is_some_and(|time| time.len() == 32);
    ensure!(local.lines().count() == 2 && local.lines().all(has_offset), "{local}");
    let zoned = output(bed.steer(&["events", "--once"]).env("TZ", "Asia/Kolkata"))?;
    let zoned_as =
        |end: &str| zoned.stdout.lines().all(|line| line.split(' ').next().is_some_and(|time| time.ends_with(end)));
    ensure!(zoned_as("+05:30") || !std::path::Path::new("/usr/share/zoneinfo/Asia/Kolkata").exists(), "{zoned:?}");
    Ok(())
}

pub(super) fn stopped_traffic_is_in_the_log() -> Outcome {
    let bed = Bed::new("events-log")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    let pid = attempt(&bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4)?;
    daemon.wait_for_log(&format!("policy p: stopped_setsockopt once; last: steer-escape (PID {pid})"))?;
    ensure!(daemon.log().contains("`steer events --explain stopped_setsockopt`"), "{}", daemon.log());
    for _ in 0..5 {
        attempt(&bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4)?;
    }
    // Those of the same minute are in its next line.
    ensure!(backlog(&bed)?.len() == 6);
    ensure!(daemon.log().matches("policy p: stopped_setsockopt").count() == 1, "{}", daemon.log());
    Ok(())
}

/// As `curl --interface ADDRESS` and `wget --bind-address` do.
pub(super) fn an_address_of_another_link() -> Outcome {
    for local in ["[]", "[\"host\"]"] {
        let bed = Bed::new("events-source")?;
        let config = format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = {local}\ncgroups = [\"@\"]\n");
        let _daemon = bed.daemon(&config)?;
        let mut spy = Spy::on(&bed, &["a1"])?;
        let from = |source: IpAddr, server: IpAddr| {
            let mut curl = std::process::Command::new("curl");
            let url = format!("http://{}/", std::net::SocketAddr::new(server, bed.server.port()));
            curl.args(["--silent", "--globoff", "--max-time", "0.3", "--interface", &source.to_string(), &url]);
            bed.cgroup.enter(&mut curl);
            output(bed.net.client.enter(&mut curl))?;
            // curl tries first whether an interface has the address as its name.
            let events = backlog(&bed)?.into_iter();
            anyhow::Ok(events.filter(|event| event["option"].is_null()).collect::<Vec<_>>())
        };
        let own = [(client_v4(1).into(), SERVER_V4.into()), (client_v6(1).into(), SERVER_V6.into())];
        for (source, server) in own {
            let events = from(source, server)?;
            ensure!(events.is_empty(), "local = {local}: {events:#?}");
        }
        let foreign: [(IpAddr, IpAddr); 2] =
            [(client_v4(0).into(), SERVER_V4.into()), (client_v6(0).into(), SERVER_V6.into())];
        for (source, server) in foreign {
            let events = from(source, server)?;
            let event = events.last().with_context(|| format!("local = {local}, {source}: no event"))?;
            ensure!(event["reason"] == "foreign_source" && event["peer"] == source.to_string(), "{event:#}");
            ensure!(event["comm"] == "curl" && event["policy"] == "p", "{event:#}");
            ensure!(event["hint"].as_str().is_some_and(|hint| hint.contains("another link")), "{event:#}");
        }
        spy.saw_nothing()?;
        // A listener that this host reaches there is as it is meant.
        let mut listener = std::process::Command::new("python3");
        let script = "import socket, sys; s = socket.socket(); s.bind((sys.argv[1], 8765)); s.listen()";
        listener.args(["-c", script, &client_v4(0).to_string()]);
        bed.cgroup.enter(&mut listener);
        let ended = output(bed.net.client.enter(&mut listener))?;
        ensure!(ended.code == 0, "{ended:?}");
        let told = backlog(&bed)?.iter().any(|event| event["comm"] == "python3" && event["reason"] == "foreign_source");
        ensure!(told == (local == "[]"), "local = {local}");
        // A new address is known, too.
        bed.ip("addr add 192.0.2.77/32 dev a0")?;
        wait_until("the address to be known", PATIENCE, || {
            from(Ipv4Addr::new(192, 0, 2, 77).into(), SERVER_V4.into())
                .is_ok_and(|events| events.last().is_some_and(|event| event["peer"] == "192.0.2.77"))
        })?;
    }
    Ok(())
}

pub(super) fn exec_says_what_was_stopped() -> Outcome {
    let bed = Bed::new("events-exec")?;
    let run_at = |enforce: &str, vector: Option<Vector>| {
        let mut command = bed.steer(&["exec", "-i", "a1", "--enforce", enforce, "--"]);
        match vector {
            Some(vector) => {
                let timeout = Duration::from_millis(200);
                let this = Try { vector, user: User::Root, family: Family::V4, scene: Scene::Steered, timeout };
                command.arg(bed.copy_of("STEER_ESCAPE", "steer-escape")?);
                bed.add_attempt(this, &mut command);
            }
            None => drop(command.arg("true")),
        }
        bed.cgroup.enter(&mut command);
        anyhow::Ok(command)
    };
    let run = |vector| run_at("strict", vector);
    let mut terminal = Terminal::start(run(Some(Vector::Bindtodevice))?)?;
    terminal.wait_for("the reason", |screen| {
        let text = screen.contents();
        text.contains("steer: stopped_setsockopt once, last steer-escape (PID ")
            && text.contains("steer: what to change for stopped_setsockopt: Take the interface")
    })?;
    terminal.child.wait()?;
    let mut observing = Terminal::start(run_at("observe", Some(Vector::Bindtodevice))?)?;
    observing.wait_for("what was observed", |screen| {
        let text = screen.contents();
        text.contains("steer: stopped_setsockopt observed once, last steer-escape")
            && text.contains("strict would stop this.")
    })?;
    observing.child.wait()?;
    // The one before is not counted again; without a terminal, nothing is said.
    let mut quiet = Terminal::start(run(None)?)?;
    ensure!(quiet.child.wait()?.success());
    wait_until("the keeper to end", PATIENCE, || bed.cgroup.children().is_empty())?;
    quiet.wait_for("nothing", |screen| screen.contents().trim().is_empty())?;
    let ran = output(&mut run(Some(Vector::Bindtodevice))?)?;
    wait_until("the keeper to end", PATIENCE, || bed.cgroup.children().is_empty())?;
    ensure!(!ran.stderr.contains("stopped_setsockopt"), "{ran:?}");
    Ok(())
}

pub(super) fn reasons_are_explained() -> Outcome {
    let bed = Bed::new("events-explain")?;
    let explained = bed.succeed(&["events", "--explain", "stopped_local"])?;
    ensure!(explained.contains("What to change:") && explained.contains("local = [\"host\"]"), "{explained}");
    let all = bed.succeed(&["events", "--explain"])?;
    ensure!(all.contains("\nforeign_source: ") && all.contains("\nuplink_switch: "), "{all}");
    // A shell completes them, and other names that this host knows.
    let complete = |line: &str| {
        let script = "source \"$1\"; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _steer_and_values steer \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"; echo ${COMPREPLY[@]}";
        let file = bed.directory.join("completions");
        std::fs::write(&file, bed.succeed(&["completions", "bash"])?)?;
        let steer = steer_tests::binary("STEER_BIN", "steer");
        let path = format!("{}:/usr/bin:/bin", steer.parent().context("no directory")?.display());
        let mut bash = std::process::Command::new("bash");
        bash.args(["--norc", "-c", script, "bash"]).arg(&file).arg(line).env("PATH", path);
        Ok::<_, anyhow::Error>(output(bed.net.client.enter(&mut bash))?.stdout)
    };
    ensure!(complete("steer events --explain stopped_lo")? == "stopped_local\n");
    ensure!(complete("steer exec -i a")?.split_whitespace().any(|name| name == "a1"));
    ensure!(complete("steer exec -i a1 -- bas")?.split_whitespace().any(|name| name == "bash"));
    ensure!(complete("steer exec --interf")? == "--interface\n");
    let wrong = bed.run(&["events", "--explain", "stoped_local"])?;
    ensure!(wrong.code == 1 && wrong.stderr.contains("did you mean stopped_local?"), "{wrong:?}");
    ensure!(wrong.stderr.contains("the reasons are") && wrong.stdout.is_empty(), "{wrong:?}");
    Ok(())
}
