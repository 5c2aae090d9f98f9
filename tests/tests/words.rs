//! The words of a user: units and processes instead of cgroups, and commands that run as another user.

use std::process::Command;

use anyhow::{Context as _, ensure};
use steer_lab::{parse_outcomes, wait_until};
use steer_tests::{
    Bed, Cgroup, Held, Machine, NOBODY, Outcome, PATIENCE, Spy, User, binary, check_outcomes, copy_program, output,
};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("units_are_found_in_any_slice", units_are_found_in_any_slice),
    ("units_as_systemd_knows_them", units_as_systemd_knows_them),
    ("a_process_stands_for_its_cgroup", a_process_stands_for_its_cgroup),
    ("only_one_process", only_one_process),
    ("as_another_user", as_another_user),
];

fn units_are_found_in_any_slice() -> Outcome {
    let mut bed = Bed::new("words.slice")?;
    // bpffs allows no dots.
    bed.pins.set_file_name(bed.pins.file_name().unwrap_or_default().to_string_lossy().replace('.', "-"));
    let name = format!("steer-{}", std::process::id());
    let inner_slice = bed.cgroup.child("words-inner.slice")?;
    let service = bed.cgroup.child(&format!("{name}.service"))?;
    let fake = service.child(&format!("{name}-x.service"))?;
    let config = format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nunits = [\"{name}\", \"{name}-*.service\"]\n");
    let daemon = bed.daemon(&config)?;
    bed.check_steered(&service, 1)?;
    ensure!(bed.policy("p")?["cgroups"].as_array().is_some_and(|cgroups| cgroups.len() == 1), "{}", bed.policy("p")?);
    // It appears later.
    let later = inner_slice.child(&format!("{name}-b@1.service"))?;
    wait_until("the unit to be steered", PATIENCE, || {
        bed.policy("p").is_ok_and(|policy| policy["cgroups"].to_string().contains(later.path()))
    })?;
    bed.check_steered(&later, 1)?;
    // The reasons are from the daemon's file.
    let explained = bed.succeed(&["explain", &name])?;
    ensure!(explained.contains(&format!("by the unit \"{name}.service\"")), "{explained}");
    what_has_no_effect(&bed, &service)?;
    what_is_released(&bed, &inner_slice.child("released.service")?)?;
    what_is_attached_by_hand(&bed, &bed.cgroup.child("hand")?)?;
    drop(daemon);
    let off = bed.succeed(&["off"])?;
    ensure!(off.contains("The next daemon steers 2 of them again, because its configuration names them"), "{off}");
    ensure!(bed.succeed(&["off"])? == "steer is off; nothing was steered\n");
    // What is made below a unit is none.
    let missing = bed.run(&["attach", fake.path().rsplit('/').next().unwrap_or_default(), "-i", "a1"])?;
    ensure!(missing.code == 1 && missing.stderr.contains("there is no unit"), "{missing:?}");
    let said = bed.succeed(&["attach", &name, "-i", "a1"])?;
    ensure!(
        said == format!(
            "attached {} to interface a1 until the cgroup is removed; processes in it: 0\n",
            service.path()
        ),
        "{said}"
    );
    bed.check_steered(&service, 1)?;
    let said = bed.succeed(&["detach", &format!("{name}.service")])?;
    ensure!(said.contains(&format!("detached {} from interface a1; its new sockets follow", service.path())), "{said}");
    ensure!(bed.succeed(&["detach", &name])?.contains("was not attached"));
    bed.check_unsteered(Some(&service))
}

/// A policy names by its path what another names as a unit, and links that do not exist.
fn what_has_no_effect(bed: &Bed, service: &Cgroup) -> Outcome {
    let by = ["policy", "set", "x", "-i", "wlan7", "--except", "10.0.0.0/8=eth9", "--cgroup", service.path()];
    let set = bed.run(&by)?;
    ensure!(set.code == 0 && !set.stdout.contains("running now"), "{set:?}");
    let shadowed = format!("policy x: {0} has no effect: policy p names {0}, too", service.path());
    for doubt in [
        &shadowed,
        "policy x: there is no interface wlan7;",
        "there is no interface eth9; until there is, 10.0.0.0/8 is",
    ] {
        ensure!(set.stderr.contains(doubt), "{doubt} in {set:?}");
    }
    let checked = bed.succeed(&["check", &bed.config_file().to_string_lossy()])?;
    ensure!(checked.contains(&format!("warning: {shadowed}")), "{checked}");
    let reloaded = bed.succeed(&["reload"])?;
    let missing =
        "warning: policy x: there is no interface wlan7; until there is, what the policy names has no network";
    ensure!(reloaded.contains(missing), "{reloaded}");
    let status = bed.succeed(&["status"])?;
    ensure!(status.contains(&format!("warning: {shadowed}")), "{status}");
    let findings = bed.doctor(&[])?.findings;
    let mut patterns = findings.iter().filter(|finding| finding.id == "cgroup-pattern");
    ensure!(patterns.any(|finding| finding.text("what").contains("has no effect")), "{findings:?}");
    let removed = bed.succeed(&["policy", "rm", "x"])?;
    ensure!(removed == "removed policy x\n", "{removed}");
    bed.check_steered(service, 1)
}

/// The configuration has the policy, and does not name the cgroup.
fn what_is_attached_by_hand(bed: &Bed, hand: &Cgroup) -> Outcome {
    let path = hand.path();
    let attach = |by: &[&str]| bed.succeed(&[&["attach", path], by].concat());
    let said = attach(&["-p", "p"])?;
    ensure!(said.contains(&format!("attached {path} to policy p until")), "{said}");
    let said = attach(&["-i", "a0"])?;
    ensure!(said.contains(&format!("attached {path} to interface a0 (was: policy p) until")), "{said}");
    attach(&["-p", "p"])?;
    let said = bed.succeed(&["detach", path])?;
    ensure!(said == format!("detached {path} from policy p; its new sockets follow the routing table\n"), "{said}");
    bed.check_unsteered(Some(hand))?;
    let removed = bed.run(&["policy", "rm", "pp"])?;
    ensure!(removed.code == 1 && removed.stderr.contains("there is no policy \"pp\";"), "{removed:?}");
    Ok(())
}

/// A change that ends the steering of what runs says so.
fn what_is_released(bed: &Bed, service: &Cgroup) -> Outcome {
    let _held = hold(bed, service)?;
    let path = service.path();
    let add = || bed.succeed(&["policy", "set", "z", "-i", "a1", "--cgroup", path]);
    let added = add()?;
    ensure!(added.contains(&format!("running now: {path}\n")), "{added}");
    for end in [&["policy", "set", "z", "--cgroup", "none"][..], &["policy", "rm", "z"]] {
        let ended = bed.succeed(end)?;
        ensure!(ended.contains(&format!("no longer steered: {path}; new sockets follow")), "{ended}");
        bed.check_unsteered(Some(service))?;
        if end.contains(&"set") {
            add()?;
        }
    }
    Ok(())
}

fn units_as_systemd_knows_them() -> Outcome {
    let bed = Bed::new("words-systemd")?;
    let machine = Machine::boot(&bed)?;
    machine.write(
        "/etc/systemd/system/held.service",
        "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sleep 1000\n",
    )?;
    machine.succeed(&["ln", "-s", "held.service", "/etc/systemd/system/other.service"])?;
    machine.install("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nunits = [\"other\"]\nusers = [\"nobody\"]\n")?;
    machine.succeed(&["systemctl", "start", "held"])?;
    let is_steered = |path: &str| {
        let named = format!("\"{path}\"");
        let found = wait_until(&format!("{path} to be steered"), PATIENCE, || {
            machine.status().is_ok_and(|status| status["policies"].to_string().contains(&named))
        });
        found.with_context(|| format!("{:?}", machine.run(&["steer", "doctor"])))
    };
    is_steered("/system.slice/held.service")?;
    let users = machine.cgroup("user.slice")?;
    let _user = users.child(&format!("user-{}.slice", NOBODY.0))?;
    is_steered(&format!("/user.slice/user-{}.slice", NOBODY.0))?;
    let checked = machine.succeed(&["steer", "check"])?;
    ensure!(!checked.contains("warning"), "{checked}");
    machine.write(
        "/tmp/wrong.toml",
        "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nunits = [\"hled\"]\nusers = [\"nobdy\"]\n\
         allow_groups = [\"no-such\"]\n",
    )?;
    let checked = machine.succeed(&["steer", "check", "/tmp/wrong.toml"])?;
    for doubt in [
        "there is no unit hled.service; perhaps held.service",
        "there is no user nobdy; perhaps nobody",
        "there is no group no-such",
    ] {
        ensure!(checked.contains(&format!("warning: policy p: {doubt}\n")), "{checked}");
    }
    let reloaded = machine.succeed(&["steer", "reload"])?;
    ensure!(reloaded.contains("steer.toml: no mistakes") && reloaded.contains("1 policy"), "{reloaded}");
    machine.succeed(&["steer", "explain", "other"])?;
    machine.succeed(&["systemctl", "stop", "held"])?;
    for (target, why) in [("held", "held.service does not run"), ("hled", "no unit hled.service; perhaps held.service")]
    {
        let refused = machine.run(&["steer", "attach", target, "-i", "a1"])?;
        ensure!(refused.code == 1 && refused.stderr.contains(why), "{refused:?}");
    }
    Ok(())
}

/// A client with sockets that were answered by the default uplink.
fn hold(bed: &Bed, cgroup: &Cgroup) -> anyhow::Result<Held> {
    let mut command = bed.client(Some(cgroup), User::Root)?;
    let port = bed.server.port().to_string();
    let mut held = Held::start(command.args(["--proto", "tcp", "--timeout-ms", "2000", "--port", &port]))?;
    check_outcomes(&held.round()?, User::Root, 0)?;
    Ok(held)
}

fn a_process_stands_for_its_cgroup() -> Outcome {
    let bed = Bed::new("words-process")?;
    let (one, other) = (hold(&bed, &bed.cgroup)?, hold(&bed, &bed.cgroup)?);
    let attached = bed.run(&["attach", &one.pid().to_string(), "-i", "a1"])?;
    let path = bed.cgroup.path();
    for text in [
        format!("process {} (", one.pid()),
        format!(") is in {path}, with {} (", other.pid()),
        format!("attached {path} to interface a1 until the cgroup is removed; processes in it: 2\n"),
    ] {
        ensure!(attached.stdout.contains(&text), "{attached:?}");
    }
    ensure!(attached.stderr.contains("`--only` steers the process"), "{attached:?}");
    bed.check_steered(&bed.cgroup, 1)?;
    let explained = bed.succeed(&["explain", &one.pid().to_string()])?;
    ensure!(explained.contains(path), "{explained}");
    bed.succeed(&["detach", &other.pid().to_string()])?;
    bed.check_unsteered(Some(&bed.cgroup))
}

fn only_one_process() -> Outcome {
    let bed = Bed::new("words-only")?;
    let (mut one, mut kept) = (hold(&bed, &bed.cgroup)?, hold(&bed, &bed.cgroup)?);
    let only =
        |pid: u32, existing: &str| bed.run(&["attach", &pid.to_string(), "--only", "-i", "a1", "--existing", existing]);
    let refused = bed.run(&["attach", &one.pid().to_string(), "--only", "-i", "a7"])?;
    ensure!(refused.code == 1 && bed.cgroup.children().is_empty(), "{refused:?}");
    let moved = only(one.pid(), "destroy")?;
    ensure!(moved.code == 0 && moved.stdout.contains(&format!("moved process {} (", one.pid())), "{moved:?}");
    ensure!(moved.stdout.contains("0 bound to a1, 2 destroyed"), "{moved:?}");
    let mut spy = Spy::on(&bed, &["a1"])?;
    ensure!(one.round()?.iter().all(|outcome| !outcome.is_ok()), "its connections have ended");
    check_outcomes(&one.round()?, User::Root, 1)?;
    spy.saw_nothing()?;
    // The others are not concerned.
    check_outcomes(&kept.round()?, User::Root, 0)?;
    bed.check_unsteered(Some(&bed.cgroup))?;
    // Sockets that are kept are not held, and it says so.
    let moved = only(kept.pid(), "keep")?;
    ensure!(moved.code == 0 && moved.stderr.contains("2 sockets that they made before belong to"), "{moved:?}");
    let again = only(kept.pid(), "keep")?;
    ensure!(again.code == 1 && again.stderr.contains("a cgroup of its own already"), "{again:?}");
    drop((one, kept));
    bed.wait_until_clean()
}

fn as_another_user() -> Outcome {
    let bed = Bed::new("words-user")?;
    let exec = |user: &str, command: &[&str]| {
        let mut steer = bed.steer(&["exec", "-i", "a1", "-u", user, "--"]);
        output(bed.cgroup.enter(steer.args(command).env("XDG_RUNTIME_DIR", "/run/user/0")))
    };
    let script = "id -u; id -G; echo $HOME $USER $LOGNAME.$XDG_RUNTIME_DIR; grep -h -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status; ls /proc/self/fd | wc -l";
    let ran = exec("nobody", &["sh", "-c", script])?;
    let expected =
        output(Command::new("sh").args(["-c", "id -u nobody; id -G nobody; getent passwd nobody | cut -d: -f6"]))?;
    let [uid, groups, home] = expected.stdout.lines().collect::<Vec<_>>()[..] else { anyhow::bail!("{expected:?}") };
    let lines: Vec<_> = ran.stdout.lines().collect();
    ensure!(ran.code == 0 && lines.len() == 8, "{ran:?}");
    ensure!(lines[..3] == [uid, groups, &format!("{home} nobody nobody.")], "{ran:?}");
    ensure!(lines[3..7].iter().all(|set| set.ends_with("0000000000000000")), "{ran:?}");
    // Standard ones, and that of ls.
    ensure!(lines[7].trim() == "4", "{ran:?}");
    let refused = exec("nobdy", &["true"])?;
    ensure!(refused.code == 125 && refused.stderr.contains("there is no user nobdy; perhaps nobody"), "{refused:?}");
    ensure!(bed.cgroup.children().is_empty());
    let probe = bed.directory.join("probe");
    copy_program(&binary("STEER_PROBE", "steer-probe"), &probe)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let everything = bed.everything();
    let arguments: Vec<_> =
        [probe.to_str().unwrap_or_default()].into_iter().chain(everything.iter().map(String::as_str)).collect();
    let ran = exec("nobody", &arguments)?;
    spy.saw_nothing()?;
    check_outcomes(&parse_outcomes(&ran.stdout)?, User::Nobody, 1)?;
    bed.wait_until_clean()
}
