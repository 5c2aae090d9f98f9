//! Under a real systemd: the daemon as a service, and services that a drop-in steers.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use nix::fcntl::{Flock, FlockArg};
use steer_lab::{parse_outcomes, wait_until};
use steer_tests::{Bed, Machine, NOBODY, Outcome, PATIENCE, Spy, User, check_outcomes, check_uninterrupted};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("starts_restarts_and_reloads", starts_restarts_and_reloads),
    ("a_reload_with_errors_fails", a_reload_with_errors_fails),
    ("restarted_after_a_kill", restarted_after_a_kill),
    ("its_sandbox_is_tight", its_sandbox_is_tight),
    ("logs_with_priorities", logs_with_priorities),
    ("without_its_policies_it_does_not_start", without_its_policies_it_does_not_start),
    ("a_unit_is_steered_from_its_first_command", a_unit_is_steered_from_its_first_command),
    ("a_unit_makes_no_packet_sockets", a_unit_makes_no_packet_sockets),
    ("a_unit_needs_no_daemon", a_unit_needs_no_daemon),
    ("a_unit_without_its_uplink_does_not_start", a_unit_without_its_uplink_does_not_start),
    ("a_unit_that_the_configuration_names_too", a_unit_that_the_configuration_names_too),
    ("a_unit_with_cgroups_of_its_own", a_unit_with_cgroups_of_its_own),
];

const CONFIG: &str = "[[policy]]\nname = \"second\"\ninterface = \"a1\"\ncgroups = [\"/guest\"]\n";

/// A service that runs the client before its main command and as its main command.
pub(crate) struct Client {
    before: PathBuf,
    main: PathBuf,
}

impl Client {
    /// Installs it as `client.service`.
    pub(crate) fn install(bed: &Bed, machine: &Machine, settings: &str) -> anyhow::Result<Self> {
        let command = bed.client(None, User::Nobody)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let arguments = bed.everything().join(" ");
        let client = Self { before: bed.directory.join("before.json"), main: bed.directory.join("main.json") };
        for file in [&client.before, &client.main] {
            fs::write(file, "")?;
            let nobody = Some(NOBODY.0);
            std::os::unix::fs::chown(file, nobody, nobody)?;
        }
        let run = |file: &PathBuf| format!("/bin/sh -c '{program} {arguments} > {}; true'", file.display());
        machine.write(
            "/etc/systemd/system/client.service",
            &format!(
                "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nUser=nobody\n{settings}\n\
                 ExecStartPre={}\nExecStart={}\n",
                run(&client.before),
                run(&client.main),
            ),
        )?;
        machine.succeed(&["systemctl", "daemon-reload"])?;
        Ok(client)
    }

    /// Checks that both left only by uplink `i`.
    pub(crate) fn check_steered(&self, bed: &Bed, machine: &Machine, i: u8) -> Outcome {
        let mut spy = Spy::on(bed, &[bed.net.link(i)])?;
        machine.succeed(&["systemctl", "start", "client"])?;
        spy.saw_nothing()?;
        for file in [&self.before, &self.main] {
            check_outcomes(&parse_outcomes(&fs::read_to_string(file)?)?, User::Nobody, i)
                .with_context(|| file.display().to_string())?;
        }
        Ok(())
    }

    /// Checks that it starts, and that none of its commands gets a packet out.
    pub(crate) fn check_closed(&self, bed: &Bed, machine: &Machine) -> Outcome {
        let mut spy = Spy::on(bed, &[])?;
        machine.succeed(&["systemctl", "start", "client"])?;
        spy.saw_nothing()?;
        let outcomes = parse_outcomes(&fs::read_to_string(&self.main)?)?;
        ensure!(outcomes.len() == 8 && outcomes.iter().all(|outcome| !outcome.is_ok()), "{outcomes:?}");
        Ok(())
    }

    /// Whether any of its commands has run.
    fn has_run(&self) -> anyhow::Result<bool> {
        Ok(fs::metadata(&self.before)?.len() + fs::metadata(&self.main)?.len() > 0)
    }
}

pub(crate) fn drop_in(machine: &Machine, arguments: &[&str]) -> Outcome {
    machine.succeed(&[&["steer", "unit", "client"], arguments].concat())?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    Ok(())
}

fn starts_restarts_and_reloads() -> Outcome {
    let bed = Bed::new("systemd-start")?;
    let machine = Machine::boot(&bed)?;
    let guest = machine.cgroup("guest")?;
    machine.install(CONFIG)?;
    bed.check_steered(&guest, 1)?;
    let load = bed.load(&guest)?;
    machine.succeed(&["systemctl", "restart", "steer"])?;
    machine.succeed(&["systemctl", "stop", "steer"])?;
    ensure!(machine.status()?["daemon"] == false);
    machine.succeed(&["systemctl", "start", "steer"])?;
    let report = load.stop()?;
    check_uninterrupted(&report)?;
    bed.check_steered(&guest, 1)?;
    // When systemctl returns, the new configuration is in force.
    machine.write("/etc/steer/steer.toml", &CONFIG.replace("a1", "a0"))?;
    machine.succeed(&["systemctl", "reload", "steer"])?;
    ensure!(machine.status()?["policies"][0]["interface"] == "a0", "{}", machine.status()?);
    bed.check_steered(&guest, 0)?;
    ensure!(machine.property("steer", "NRestarts")? == "0");
    // `steer off` ends the daemon, which is not a failure.
    machine.succeed(&["steer", "off"])?;
    wait_until("the daemon to end", PATIENCE, || {
        machine.property("steer", "ActiveState").is_ok_and(|state| state == "inactive")
    })?;
    bed.check_unsteered(Some(&guest))
}

fn a_reload_with_errors_fails() -> Outcome {
    let bed = Bed::new("systemd-reload")?;
    let machine = Machine::boot(&bed)?;
    let guest = machine.cgroup("guest")?;
    machine.install(CONFIG)?;
    for (mistake, complaint) in [("[[policy", "steer.toml:1:9: unclosed"), ("", "steer.toml has no policy")] {
        machine.write("/etc/steer/steer.toml", mistake)?;
        ensure!(machine.run(&["systemctl", "reload", "steer"])?.code != 0);
        let journal = machine.journal()?;
        ensure!(journal.contains(complaint), "{journal}");
        ensure!(machine.property("steer", "ActiveState")? == "active");
        bed.check_steered(&guest, 1)?;
    }
    Ok(())
}

fn restarted_after_a_kill() -> Outcome {
    let bed = Bed::new("systemd-kill")?;
    let machine = Machine::boot(&bed)?;
    let guest = machine.cgroup("guest")?;
    machine.install(CONFIG)?;
    bed.check_steered(&guest, 1)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&guest)?;
    // More often than systemd allows by default.
    for restarts in 1..=7 {
        machine.succeed(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "steer"])?;
        wait_until("the daemon to be back", PATIENCE, || {
            let is = |name, value: &str| machine.property("steer", name).is_ok_and(|now| now == value);
            is("NRestarts", &restarts.to_string()) && is("ActiveState", "active")
        })?;
    }
    let report = load.stop()?;
    spy.saw_nothing()?;
    check_uninterrupted(&report)?;
    bed.check_steered(&guest, 1)
}

fn its_sandbox_is_tight() -> Outcome {
    let bed = Bed::new("systemd-sandbox")?;
    let machine = Machine::boot(&bed)?;
    let guest = machine.cgroup("guest")?;
    machine.install(CONFIG)?;
    machine.succeed(&["systemd-analyze", "verify", "--man=no", "steer.service"])?;
    machine.succeed(&["systemd-analyze", "security", "--threshold=40", "--no-pager", "steer.service"])?;
    // It still works.
    bed.net.remove_uplink(1)?;
    wait_until("the policy to be closed", PATIENCE, || {
        machine.status().is_ok_and(|status| status["policies"][0]["ifindex"].is_null())
    })?;
    bed.check_closed(&guest)?;
    let journal = machine.journal()?;
    // A kernel that accepts no program on its security hooks rejects root's programs too, so the sandbox is not the
    // cause.
    let without_kernels = journal.lines().filter(|line| {
        !line.contains("the kernel does not take the program")
            && !line.contains("processes that leave steered cgroups are not reported")
    });
    let refused = |line: &str| ["ot permitted", "denied", "Read-only"].iter().any(|refusal| line.contains(refusal));
    ensure!(!without_kernels.into_iter().any(refused), "{journal}");
    // It may not remove the leftovers of a killed `steer exec` in a user's cgroups, and leaves them.
    let user = machine.cgroup("user")?;
    let scope = user.child("steer-exec-1-0")?;
    std::os::unix::fs::chown(user.directory(), Some(NOBODY.0), Some(NOBODY.1))?;
    let looked_after =
        Flock::lock(fs::File::open(scope.directory())?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    machine.succeed(&["steer", "attach", "/user/steer-exec-1-0", "--interface", "a0"])?;
    drop(looked_after);
    machine.succeed(&["systemctl", "reload", "steer"])?;
    ensure!(machine.journal()?.contains("left for the next command: remove"), "{}", machine.journal()?);
    ensure!(scope.directory().exists());
    machine.succeed(&["steer", "attach", "/user", "--interface", "a0"])?;
    ensure!(!scope.directory().exists());
    Ok(())
}

fn logs_with_priorities() -> Outcome {
    let bed = Bed::new("systemd-log")?;
    let machine = Machine::boot(&bed)?;
    machine.install(CONFIG)?;
    machine.write("/etc/steer/steer.toml", "[[policy]]\nname = \"x\"\nboth = 1\n")?;
    let entries = || {
        machine.run(&["journalctl", "--sync"])?;
        let text = machine.succeed(&["journalctl", "--no-pager", "--output=json", "_COMM=steer"])?;
        let entries = text.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
        anyhow::Ok(entries)
    };
    let logged = |message: &str, priority: &str| {
        let is_it = |entry: &serde_json::Value| {
            entry["MESSAGE"].as_str().is_some_and(|text| text.starts_with(message)) && entry["PRIORITY"] == priority
        };
        entries().is_ok_and(|entries| entries.iter().any(is_it))
    };
    for (message, priority) in [
        ("ready: steering by", "6"),
        // Each error is a journal entry.
        ("/etc/steer/steer.toml:3:1: policy \"x\": both = 1: unknown key", "3"),
        ("/etc/steer/steer.toml:1:1: policy \"x\": interface: missing", "3"),
    ] {
        wait_until(message, PATIENCE, || logged(message, priority))
            .with_context(|| machine.journal().unwrap_or_default())?;
    }
    Ok(())
}

fn without_its_policies_it_does_not_start() -> Outcome {
    let bed = Bed::new("systemd-emptied")?;
    let machine = Machine::boot(&bed)?;
    let guest = machine.cgroup("guest")?;
    // If nothing is in force, a configuration without policies is valid.
    machine.install("")?;
    machine.write("/etc/steer/steer.toml", CONFIG)?;
    machine.succeed(&["systemctl", "reload", "steer"])?;
    bed.check_steered(&guest, 1)?;
    machine.write("/etc/steer/steer.toml", "")?;
    ensure!(machine.run(&["systemctl", "restart", "steer"])?.code != 0);
    ensure!(machine.property("steer", "ActiveState")? == "failed");
    let journal = machine.journal()?;
    ensure!(journal.contains("has no policy, but policies of an earlier one are in force"), "{journal}");
    bed.check_steered(&guest, 1)
}

fn a_unit_is_steered_from_its_first_command() -> Outcome {
    let bed = Bed::new("systemd-unit")?;
    let machine = Machine::boot(&bed)?;
    machine.install(&CONFIG.replace("second", "50% of \\\"$HOME\\\""))?;
    let client = Client::install(&bed, &machine, "ProtectSystem=strict\nRestrictAddressFamilies=AF_INET AF_INET6")?;
    drop_in(&machine, &["--policy", "50% of \"$HOME\""])?;
    client.check_steered(&bed, &machine, 1)?;
    // Every start makes another cgroup.
    client.check_steered(&bed, &machine, 1)?;
    drop_in(&machine, &["--interface", "a0", "--enforce", "steer"])?;
    client.check_steered(&bed, &machine, 0)?;
    drop_in(&machine, &["--remove"])?;
    ensure!(!machine.path("/etc/systemd/system/client.service.d").exists());
    machine.succeed(&["systemctl", "start", "client"])?;
    let outcomes = parse_outcomes(&fs::read_to_string(&client.main)?)?;
    ensure!(outcomes.iter().all(|outcome| outcome.bound_ifindex <= 0), "{outcomes:?}");
    Ok(())
}

/// By a security program, or else by settings of systemd, but not where these would take privileges from the unit.
fn a_unit_makes_no_packet_sockets() -> Outcome {
    let bed = Bed::new("systemd-packet")?;
    let machine = Machine::boot(&bed)?;
    machine.install(CONFIG)?;
    let guest = machine.cgroup("guest")?;
    let status = machine.status()?;
    let is_guarded = !status["not_covered"].to_string().contains("sockets past the IP stack");
    drop(guest);
    let program = bed.copy_of("STEER_ESCAPE", "steer-escape")?;
    let seen = bed.directory.join("seen");
    let escape = |vector: &str| {
        format!(
            "{} --json --vector {vector} --other a0 --family v4 --port 1 --timeout-ms 100 --gateway 192.0.2.1 --source 192.0.2.2",
            program.display()
        )
    };
    let script = ["packet-raw", "packet-uring", "compat-join", "raw"].map(escape).join("; ");
    for (user, is_restricted) in
        [("", !is_guarded), ("User=nobody", false), ("User=nobody\nNoNewPrivileges=yes", !is_guarded)]
    {
        fs::write(&seen, "")?;
        std::os::unix::fs::chown(&seen, Some(NOBODY.0), Some(NOBODY.1))?;
        machine.write(
            "/etc/systemd/system/client.service",
            &format!(
                "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n{user}\n\
                 ExecStart=/bin/sh -c '(grep NoNewPrivs /proc/self/status; {script}) >{}; true'\n",
                seen.display()
            ),
        )?;
        machine.succeed(&["systemctl", "daemon-reload"])?;
        let written = machine.run(&["steer", "unit", "client", "--policy", "second"])?;
        machine.succeed(&["systemctl", "daemon-reload"])?;
        machine.succeed(&["systemctl", "start", "client"])?;
        let text = fs::read_to_string(machine.path("/etc/systemd/system/client.service.d/50-steer.conf"))?;
        ensure!(text.contains("RestrictAddressFamilies=") == is_restricted, "{user:?}: {text}");
        let is_warned = written.stderr.contains("would force NoNewPrivileges=");
        ensure!(is_warned == (!is_guarded && user == "User=nobody"), "{user:?}: {written:?}");
        let seen = fs::read_to_string(&seen)?;
        let lines: Vec<_> = seen.lines().collect();
        // The 32 bit call kills the program where systemd refuses such calls.
        ensure!(lines.len() == if is_restricted { 4 } else { 5 }, "{user:?}: {seen}");
        ensure!(lines[0].ends_with('1') == user.contains("NoNew"), "{user:?}: {seen}");
        if user.is_empty() {
            ensure!(lines[1..3].iter().all(|line| !line.contains("\"outcome\":\"ok\"")), "{seen}");
            ensure!(!lines[lines.len() - 1].contains("\"step\":\"socket\""), "raw ICMP: {seen}");
        }
        if is_restricted {
            ensure!(lines[1].contains("EAFNOSUPPORT") || lines[1].contains("CAP_NET_RAW"), "{user:?}: {seen}");
        }
    }
    Ok(())
}

fn a_unit_needs_no_daemon() -> Outcome {
    let bed = Bed::new("systemd-alone")?;
    let machine = Machine::boot(&bed)?;
    machine.install(CONFIG)?;
    machine.succeed(&["systemctl", "stop", "steer"])?;
    machine.succeed(&["steer", "off"])?;
    let client = Client::install(&bed, &machine, "")?;
    drop_in(&machine, &["--interface", "a1"])?;
    client.check_steered(&bed, &machine, 1)?;
    ensure!(machine.property("steer", "ActiveState")? == "inactive");
    Ok(())
}

fn a_unit_without_its_uplink_does_not_start() -> Outcome {
    let bed = Bed::new("systemd-missing")?;
    let machine = Machine::boot(&bed)?;
    machine.install(CONFIG)?;
    let client = Client::install(&bed, &machine, "")?;
    bed.net.remove_uplink(1)?;
    for (arguments, reason) in
        [(["--interface", "a1"], "no interface \"a1\""), (["--policy", "third"], "no policy \"third\" in force")]
    {
        let refused = machine.run(&[&["steer", "unit", "client"], &arguments as &[&str]].concat())?;
        ensure!(refused.code == 1 && refused.stderr.contains("--force"), "{refused:?}");
        drop_in(&machine, &[&arguments as &[&str], &["--force"]].concat())?;
        ensure!(machine.run(&["systemctl", "start", "client"])?.code != 0);
        ensure!(machine.property("client", "ActiveState")? == "failed");
        let journal = machine.journal()?;
        ensure!(journal.contains(reason), "{journal}");
        ensure!(!client.has_run()?, "a command of the unit was run");
    }
    // With a policy it starts closed.
    drop_in(&machine, &["--policy", "second"])?;
    client.check_closed(&bed, &machine)?;
    // Without the binary it does not start either, for example after the package was removed.
    fs::write(&client.before, "")?;
    fs::write(&client.main, "")?;
    fs::remove_file(machine.path("/usr/bin/steer"))?;
    ensure!(machine.run(&["systemctl", "start", "client"])?.code != 0);
    ensure!(machine.property("client", "ActiveState")? == "failed" && !client.has_run()?);
    Ok(())
}

fn a_unit_that_the_configuration_names_too() -> Outcome {
    let bed = Bed::new("systemd-both")?;
    let machine = Machine::boot(&bed)?;
    machine.install(&CONFIG.replace("/guest", "/system.slice/client.service"))?;
    let client = Client::install(&bed, &machine, "")?;
    drop_in(&machine, &["--policy", "second"])?;
    for _ in 0..3 {
        client.check_steered(&bed, &machine, 1)?;
    }
    Ok(())
}

fn a_unit_with_cgroups_of_its_own() -> Outcome {
    let bed = Bed::new("systemd-delegate")?;
    let machine = Machine::boot(&bed)?;
    machine.install(CONFIG)?;
    let client = Client::install(&bed, &machine, "Delegate=yes")?;
    drop_in(&machine, &["--policy", "second"])?;
    client.check_steered(&bed, &machine, 1)
}
