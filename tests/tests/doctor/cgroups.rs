//! Cgroups of the configuration, and other owners' programs on them.

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use steer_tests::{Bed, Daemon, Outcome, User, exclusive_program, program_beside};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("patterns_that_match_nothing", patterns_that_match_nothing),
    ("a_daemon_that_has_not_seen_a_cgroup", a_daemon_that_has_not_seen_a_cgroup),
    ("a_service_that_restarts_without_a_daemon", a_service_that_restarts_without_a_daemon),
    ("a_manual_attachment_before_the_daemon", a_manual_attachment_before_the_daemon),
    ("an_exclusive_program", an_exclusive_program),
    ("a_program_that_runs_after", a_program_that_runs_after),
];

fn patterns_that_match_nothing() -> Outcome {
    let bed = Bed::new("doctor-pattern")?;
    let slice = bed.cgroup.child("slice")?;
    let _service = slice.child("one.service")?;
    let policy =
        |patterns: &str| format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\", {patterns}]\n");
    let daemon = bed.daemon(&policy("\"@/none.service\""))?;
    let finding = bed.only_finding("cgroup-pattern")?;
    ensure!(finding.json["subject"]["policy"] == "p" && finding.text("severity") == "info", "{finding:?}");
    ensure!(finding.text("what").contains(&format!("\"{}/none.service\"", bed.cgroup.path())), "{finding:?}");
    let none = bed.cgroup.child("none.service")?;
    bed.is_healthy()?;
    drop(none);
    // The cgroup is somewhere else.
    bed.write_config(&policy("\"@/one.service\""))?;
    daemon.wait_for_log("reloaded")?;
    let finding = bed.only_finding("cgroup-pattern")?;
    ensure!(finding.text("severity") == "warning", "{finding:?}");
    ensure!(finding.advice()?.contains(&format!("\"{}/slice/one.service\"", bed.cgroup.path())), "{finding:?}");
    Ok(())
}

fn a_daemon_that_has_not_seen_a_cgroup() -> Outcome {
    let bed = Bed::new("doctor-unseen")?;
    let policy = |name: &str, interface: &str, cgroups: &str| {
        format!("[[policy]]\nname = \"{name}\"\ninterface = \"{interface}\"\ncgroups = [{cgroups}]\n")
    };
    let seen = bed.cgroup.child("inner")?;
    let daemon = bed.daemon(&[policy("p", "a1", "\"@\""), policy("q", "a0", "\"@/in*\"")].concat())?;
    bed.is_healthy()?;
    daemon.freeze(&bed)?;
    let unseen = bed.cgroup.child("in-between")?;
    let findings = bed.doctor(&[])?.findings;
    let [silent, finding] = &findings[..] else { bail!("{findings:?}") };
    ensure!(silent.id == "daemon" && silent.text("what").contains("does not answer"), "{silent:?}");
    let wake = format!("`kill -CONT {}`", daemon.pid());
    ensure!(silent.advice()?.contains(&wake), "{silent:?}");
    // It is asked once.
    for command in ["status", "doctor"] {
        let started = std::time::Instant::now();
        bed.run(&[command])?;
        ensure!(started.elapsed() < std::time::Duration::from_millis(3500), "{command}: {:?}", started.elapsed());
    }
    let status = bed.succeed(&["status"])?;
    ensure!(status.lines().next().is_some_and(|line| line.ends_with("; the daemon does not answer")), "{status}");
    ensure!(status.contains("daemon: running, but") && status.contains(&wake), "{status}");
    let events = bed.run(&["events"])?;
    ensure!(events.code == 1 && events.stderr.contains(&wake), "{events:?}");
    ensure!(finding.json["subject"]["cgroup"] == unseen.path(), "{finding:?}");
    ensure!(finding.text("what").starts_with("policy q names it"), "{finding:?}");
    ensure!(finding.command()? == format!("{} reload", bed.steer_words()), "{finding:?}");
    daemon.signal(Signal::SIGCONT)?;
    ensure!(bed.repair(finding)?);
    bed.is_healthy()?;
    bed.check_steered(&unseen, 0)?;
    bed.check_steered(&seen, 0)
}

fn a_manual_attachment_before_the_daemon() -> Outcome {
    let bed = Bed::new("doctor-manual")?;
    bed.succeed(&["attach", bed.cgroup.path(), "--interface", "none"])?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    daemon.wait_for_log("has a manual attachment, which goes before policy p of the configuration")?;
    let finding = bed.only_finding("manual-attachment")?;
    ensure!(finding.json["subject"]["cgroup"] == bed.cgroup.path(), "{finding:?}");
    ensure!(finding.text("severity") == "warning" && finding.text("what").contains("policy p names it"), "{finding:?}");
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()?;
    bed.check_steered(&bed.cgroup, 1)
}

fn a_service_that_restarts_without_a_daemon() -> Outcome {
    let bed = Bed::new("doctor-restart")?;
    let config = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/x.service\"]\n";
    let service = bed.cgroup.child("x.service")?;
    let daemon = bed.daemon(config)?;
    let file = bed.config_file().display().to_string();
    let unsteered = || {
        let status: serde_json::Value = serde_json::from_str(&bed.succeed(&["status", "--json", "--config", &file])?)?;
        anyhow::Ok(status["unsteered"].clone())
    };
    ensure!(unsteered()? == serde_json::json!([]));
    ensure!(!bed.ask(User::Root, "GET", "/metrics", None)?.text.contains("steer_unsteered_cgroups{"));
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait()?;
    service.remove()?;
    let service = bed.cgroup.child("x.service")?;
    bed.check_unsteered(Some(&service))?;
    ensure!(
        unsteered()? == serde_json::json!([{"path": service.path(), "policy": "p", "released": false}]),
        "{}",
        unsteered()?
    );
    let text = bed.succeed(&["status", "--config", &file])?;
    ensure!(text.contains(&format!("error: {} is not steered, although policy p names it", service.path())), "{text}");
    let said = bed.doctor(&[])?;
    let finding = said.findings.iter().find(|finding| finding.id == "cgroup-steered").context("no finding")?;
    ensure!(finding.text("severity") == "error" && finding.json["subject"]["cgroup"] == service.path(), "{finding:?}");
    // A daemon that is there and cannot attach it.
    exclusive_program(&service, "vrf_like")?;
    let _daemon = Daemon::start(&bed)?;
    let metrics = bed.ask(User::Root, "GET", "/metrics", None)?.text;
    let line = format!("steer_unsteered_cgroups{{cgroup=\"{}\",policy=\"p\"}} 1", service.path());
    ensure!(metrics.contains(&line), "{metrics}");
    Ok(())
}

fn an_exclusive_program() -> Outcome {
    let bed = Bed::new("doctor-exclusive")?;
    exclusive_program(&bed.cgroup, "vrf_like")?;
    let inner = bed.cgroup.child("inner")?;
    let config = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/inner\"]\n";
    let _daemon = bed.daemon(config)?;
    let finding = bed.only_finding("foreign-exclusive")?;
    ensure!(finding.text("severity") == "error", "{finding:?}");
    ensure!(finding.json["subject"]["cgroup"] == bed.cgroup.path(), "{finding:?}");
    for text in ["\"vrf_like\"", "user 0", "sock_create"] {
        ensure!(finding.text("what").contains(text), "{text} in {finding:?}");
    }
    ensure!(finding.text("why").contains(inner.path()), "{finding:?}");
    if !bed.repair(&finding)? {
        return Ok(());
    }
    // The daemon is not notified.
    let finding = bed.only_finding("cgroup-steered")?;
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()?;
    // If it is attached above later, it does not run for steered cgroups.
    exclusive_program(&bed.cgroup, "vrf_like")?;
    let finding = bed.only_finding("foreign-exclusive")?;
    ensure!(finding.text("severity") == "warning", "{finding:?}");
    bed.check_steered(&inner, 1)?;
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()
}

fn a_program_that_runs_after() -> Outcome {
    let bed = Bed::new("doctor-after")?;
    let inner = bed.cgroup.child("inner")?;
    // It runs before steer's program.
    program_beside(&inner, "before")?;
    bed.succeed(&["attach", inner.path(), "-i", "a1"])?;
    bed.is_healthy()?;
    for holder in [&bed.cgroup, &inner] {
        program_beside(holder, "binder")?;
        let finding = bed.only_finding("foreign-binding")?;
        ensure!(finding.text("severity") == "warning", "{finding:?}");
        ensure!(finding.json["subject"]["cgroup"] == holder.path(), "{finding:?}");
        ensure!(finding.text("what").contains("\"binder\", loaded by user 0 at sock_create"), "{finding:?}");
        if !bed.repair(&finding)? {
            return Ok(());
        }
        bed.is_healthy()?;
    }
    Ok(())
}
