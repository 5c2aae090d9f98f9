//! `steer explain`: its output for a process matches the behaviour of the process's sockets.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use steer_tests::{Bed, Cgroup, Outcome, User, exclusive_program, output};

use crate::Test;

pub(crate) mod host;
pub(crate) mod packet;

pub(crate) const TESTS: &[Test] = &[
    ("by_a_glob_of_the_configuration", by_a_glob_of_the_configuration),
    ("the_same_without_a_daemon", the_same_without_a_daemon),
    ("a_nested_exemption", a_nested_exemption),
    ("attached_manually_in_a_configured_cgroup", attached_manually_in_a_configured_cgroup),
    ("closed_without_its_uplink", closed_without_its_uplink),
    ("not_steered", not_steered),
    ("in_another_network_namespace", in_another_network_namespace),
    ("an_incomplete_attachment", an_incomplete_attachment),
    ("incomplete_pins", incomplete_pins),
    ("a_wrong_target", a_wrong_target),
    ("without_privilege", without_privilege),
];

const CONFIG: &str = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ndns = [\"203.0.113.53\"]\ncgroups = [\"@/app-*\"]\n\
                      [[policy]]\nname = \"direct\"\ninterface = \"none\"\ncgroups = [\"@/**/inner\"]\n";

/// An idle process. On drop, it is ended.
struct Idle(Child);

impl Idle {
    fn start(bed: &Bed, cgroup: Option<&Cgroup>) -> anyhow::Result<Self> {
        let mut command = Command::new("sleep");
        bed.place(&mut command, cgroup, User::Nobody);
        Ok(Self(command.arg("1000").spawn()?))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With the bed's configuration, if it was written.
fn arguments<'a>(bed: &Bed, file: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    let config: &[&str] = if bed.config_file().exists() { &["--config", file] } else { &[] };
    [&["explain"], rest, config].concat()
}

fn explain(bed: &Bed, rest: &[&str]) -> anyhow::Result<Value> {
    let file = bed.config_file().display().to_string();
    let said = bed.succeed(&[&arguments(bed, &file, rest)[..], &["--json"]].concat())?;
    serde_json::from_str(&said).with_context(|| said)
}

fn text(bed: &Bed, rest: &[&str]) -> anyhow::Result<String> {
    let file = bed.config_file().display().to_string();
    bed.succeed(&arguments(bed, &file, rest))
}

/// The last element of the chain.
fn innermost(said: &Value) -> anyhow::Result<&Value> {
    said["chain"].as_array().and_then(|chain| chain.last()).with_context(|| format!("no chain: {said:#}"))
}

fn reasons(said: &Value) -> Vec<&str> {
    said["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn concludes(said: &Value, outcome: &str, part: &str) -> Outcome {
    let conclusion = said["conclusion"].as_str().context("no conclusion")?;
    ensure!(said["outcome"] == outcome && conclusion.contains(part), "not {outcome}, {part:?}: {said:#}");
    Ok(())
}

fn by_a_glob_of_the_configuration() -> Outcome {
    let bed = Bed::new("explain-glob")?;
    let app = bed.cgroup.child("app-1.scope")?;
    let below = app.child("below")?;
    let _daemon = bed.daemon(CONFIG)?;
    let process = Idle::start(&bed, Some(&below))?;
    let said = explain(&bed, &[&process.pid()])?;
    let index = bed.net.ifindex(1)?;
    let (file, app_path) = (bed.config_file().display().to_string(), app.path());
    let conclusion = format!(
        "new sockets of process {} (sleep) are bound to a1 (index {index}), by policy p on {app_path}, from {file}",
        process.pid()
    );
    ensure!(said["conclusion"] == conclusion && said["outcome"] == "bound", "{said:#}");
    ensure!(said["daemon"] == true && said["configuration"]["policies"] == 2, "{said:#}");
    let target = &said["target"];
    ensure!(target["process"] == json!({ "pid": process.0.id(), "comm": "sleep", "uid": 65534 }), "{target:#}");
    ensure!(target["cgroup"] == below.path() && target["netns"]["own"] == true, "{target:#}");
    ensure!(target["netns"]["cookie"] == bed.net.client.cookie()?, "{target:#}");
    let chain = said["chain"].as_array().context("no chain")?;
    let paths: Vec<_> = chain.iter().map(|cgroup| cgroup["path"].as_str().unwrap_or_default()).collect();
    ensure!(paths == ["/", bed.cgroup.path(), app_path, below.path()], "{paths:?}");
    ensure!(chain[1]["attached"].is_null() && chain[3]["attached"].is_null(), "{said:#}");
    let attached = &chain[2]["attached"];
    let expected = json!({ "policy": "p", "origin": "config", "interface": "a1", "enforce": "strict", "manual": false,
                           "complete": true, "missing": [], "superfluous": [], "programs": attached["programs"] });
    ensure!(*attached == expected, "{attached:#}");
    ensure!(attached["programs"].as_array().is_some_and(|programs| programs.contains(&json!("egress"))), "{said:#}");
    let pattern = format!("{}/app-*", bed.cgroup.path());
    let matched =
        json!([{ "policy": "p", "key": "cgroups", "pattern": pattern, "kind": "glob", "file": file, "wins": true }]);
    ensure!(chain[2]["matches"] == matched, "{said:#}");
    ensure!(said["decision"]["cgroup"] == app_path && said["decision"]["policy"] == "p", "{said:#}");
    let uplink = json!({ "interface": "a1", "ifindex": index, "present_ifindex": index, "link": "a1", "state": "up" });
    ensure!(said["uplink"] == uplink, "{said:#}");
    ensure!(said["resolver"]["dns"] == json!(["203.0.113.53"]), "{said:#}");
    ensure!(said["sockets"] == json!({ "open": 0, "elsewhere": [], "problem": null }), "{said:#}");
    ensure!(reasons(&said)[0] == format!("policy p names {app_path} by the glob {pattern:?}, in {file}"), "{said:#}");
    // The sockets behave accordingly.
    bed.check_steered(&below, 1)?;
    let text = text(&bed, &[&process.pid()])?;
    for part in [&conclusion, app_path, "p (strict)", "a1 (index", "203.0.113.53", "by a1 via 10.0.1.1"] {
        ensure!(text.contains(part), "{part:?} in {text}");
    }
    ensure!(!text.contains('\u{1b}'), "coloured without a terminal: {text:?}");
    Ok(())
}

fn the_same_without_a_daemon() -> Outcome {
    let bed = Bed::new("explain-pins")?;
    let app = bed.cgroup.child("app-1.scope")?;
    let daemon = bed.daemon(CONFIG)?;
    let mut with = explain(&bed, &[app.path()])?;
    daemon.end(nix::sys::signal::Signal::SIGTERM)?;
    let without = explain(&bed, &[app.path()])?;
    ensure!(with["daemon"] == true && without["daemon"] == false);
    with["daemon"] = json!(false);
    ensure!(with == without, "{with:#} {without:#}");
    concludes(&without, "bound", &format!("new sockets of processes in {} are bound to a1", app.path()))?;
    ensure!(without["target"]["process"].is_null() && without["sockets"].is_null(), "{without:#}");
    // The same with its directory.
    ensure!(explain(&bed, &[&app.directory().display().to_string()])? == without);
    // Without the configuration the attachment still holds.
    bed.write_config("")?;
    let said = explain(&bed, &[app.path()])?;
    concludes(&said, "bound", "from a configuration that was not read")?;
    ensure!(reasons(&said)[0].ends_with("does not name it now"), "{said:#}");
    bed.write_config("[[policy]]\nname = 1\n")?;
    let said = explain(&bed, &[app.path()])?;
    let problem = said["configuration"]["problem"].as_str().context("no problem")?;
    ensure!(said["outcome"] == "bound" && problem.contains("steer.toml:2:8"), "{said:#}");
    Ok(())
}

fn a_nested_exemption() -> Outcome {
    let bed = Bed::new("explain-exempt")?;
    let app = bed.cgroup.child("app-1.scope")?;
    let inner = app.child("inner")?;
    let _daemon = bed.daemon(CONFIG)?;
    let said = explain(&bed, &[inner.path()])?;
    concludes(&said, "exempt", &format!("not steered: they are exempt by policy direct on {}", inner.path()))?;
    let outer = format!("policy p on {} does not apply: the most specific cgroup wins", app.path());
    ensure!(reasons(&said).iter().any(|reason| reason.starts_with(&outer)), "{said:#}");
    ensure!(said["uplink"].is_null() && said["resolver"].is_null(), "{said:#}");
    ensure!(said["routes"][0]["steered"].is_null(), "{said:#}");
    bed.check_unsteered(Some(&inner))?;
    ensure!(text(&bed, &[inner.path()])?.contains("direct (exempt)"));
    Ok(())
}

fn attached_manually_in_a_configured_cgroup() -> Outcome {
    let bed = Bed::new("explain-hand")?;
    let app = bed.cgroup.child("app-1.scope")?;
    let inner = app.child("inner")?;
    bed.succeed(&["attach", inner.path(), "-i", "a0", "--enforce", "steer"])?;
    let _daemon = bed.daemon(CONFIG)?;
    let said = explain(&bed, &[inner.path()])?;
    concludes(&said, "bound", &format!("bound to a0 (index {})", bed.net.ifindex(0)?))?;
    concludes(&said, "bound", "attached manually")?;
    let decision = &said["decision"];
    ensure!(decision["manual"] == true && decision["origin"] == "manual" && decision["enforce"] == "steer", "{said:#}");
    ensure!(decision["not_covered"].to_string().contains("their packets are not stopped"), "{said:#}");
    let reasons = reasons(&said);
    ensure!(reasons[0].contains("manually") && reasons[1].starts_with("policy direct names"), "{said:#}");
    ensure!(reasons[1].ends_with("the daemon does not change manual attachments"), "{said:#}");
    bed.check_steered(&inner, 0)
}

fn closed_without_its_uplink() -> Outcome {
    let bed = Bed::new("explain-closed")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.net.remove_uplink(1)?;
    let said = explain(&bed, &[bed.cgroup.path()])?;
    concludes(&said, "closed", "because its uplink a1 is missing")?;
    ensure!(said["uplink"]["state"] == "missing" && said["uplink"]["present_ifindex"].is_null(), "{said:#}");
    ensure!(said["routes"][0]["steered"].is_null(), "{said:#}");
    bed.check_closed(&bed.cgroup)?;
    // The uplink exists again, but the policy was not updated.
    let mut bed = bed;
    bed.net.create_uplink(1)?;
    let said = explain(&bed, &[bed.cgroup.path()])?;
    concludes(&said, "closed", "the policy was not updated")?;
    ensure!(said["uplink"]["present_ifindex"] == bed.net.ifindex(1)?, "{said:#}");
    bed.check_closed(&bed.cgroup)?;
    // Closed by a daemon.
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"wg0\"\ncgroups = [\"@/closed\"]\n")?;
    let closed = bed.cgroup.child("closed")?;
    steer_lab::wait_until("the daemon to see the cgroup", steer_tests::PATIENCE, || {
        explain(&bed, &[closed.path()]).is_ok_and(|said| said["decision"]["policy"] == "p")
    })?;
    let said = explain(&bed, &[closed.path()])?;
    concludes(&said, "closed", "because its uplink wg0 is missing")?;
    ensure!(said["uplink"]["ifindex"].is_null(), "{said:#}");
    ensure!(text(&bed, &[closed.path()])?.contains("wg0, missing: closed"));
    bed.check_closed(&closed)
}

fn not_steered() -> Outcome {
    let bed = Bed::new("explain-not")?;
    let app = bed.cgroup.child("app-1.scope")?;
    let process = Idle::start(&bed, Some(&app))?;
    let said = explain(&bed, &[&process.pid()])?;
    concludes(&said, "unsteered", "nothing is attached to")?;
    concludes(&said, "unsteered", "no configuration was read")?;
    ensure!(said["decision"].is_null() && said["sockets"].is_null(), "{said:#}");
    ensure!(!bed.pins.exists(), "explain made pins");
    bed.write_config(CONFIG)?;
    let said = explain(&bed, &[&process.pid()])?;
    concludes(&said, "unsteered", "but nothing is attached there: no daemon runs")?;
    bed.check_unsteered(Some(&app))?;
    let said = explain(&bed, &[bed.cgroup.path()])?;
    concludes(&said, "unsteered", "steer.toml names one of them")?;
    // Another owner's program prevents the daemon from attaching.
    exclusive_program(&app, "vrf_like")?;
    let _daemon = bed.daemon(CONFIG)?;
    let said = explain(&bed, &[&process.pid()])?;
    concludes(&said, "unsteered", "\"vrf_like\", loaded by user 0")?;
    ensure!(innermost(&said)?["foreign"][0]["exclusive"] == true, "{said:#}");
    Ok(())
}

fn in_another_network_namespace() -> Outcome {
    let bed = Bed::new("explain-netns")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    // The process is in the server's namespace.
    let mut command = Command::new("sleep");
    bed.cgroup.enter(&mut command);
    bed.net.server.enter(&mut command);
    let process = Idle(command.arg("1000").stdin(Stdio::null()).spawn()?);
    let said = explain(&bed, &[&process.pid()])?;
    concludes(&said, "other_netns", "whose interface index is not valid there")?;
    ensure!(said["target"]["netns"]["own"] == false, "{said:#}");
    ensure!(said["target"]["netns"]["cookie"] == bed.net.server.cookie()?, "{said:#}");
    ensure!(said["uplink"].is_null() && said["sockets"].is_null(), "{said:#}");
    // It uses the routes of that namespace.
    let said = explain(&bed, &[&process.pid(), "--to", "10.0.1.2"])?;
    ensure!(said["routes"][0]["unsteered"][0]["interface"] == bed.net.server_link(1), "{said:#}");
    ensure!(text(&bed, &[&process.pid()])?.contains("(not this one)"));
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--other-netns", "refuse"])?;
    concludes(&explain(&bed, &[&process.pid()])?, "refused", "other_netns = \"refuse\"")?;
    // Seen from another namespace, a process in the policy's namespace is explained as if from there.
    let here = Idle::start(&bed, Some(&bed.cgroup))?;
    let said = output(&mut bed.steer_here(&["explain", &here.pid(), "--json"]))?;
    let said: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
    concludes(&said, "bound", &format!("bound to a1 (index {})", bed.net.ifindex(1)?))?;
    ensure!(
        said["target"]["netns"]["own"] == false && said["routes"][0]["steered"][0]["interface"] == "a1",
        "{said:#}"
    );
    Ok(())
}

fn an_incomplete_attachment() -> Outcome {
    let bed = Bed::new("explain-incomplete")?;
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.succeed(&["attach", inner.path(), "-i", "a0"])?;
    let pins = bed.abi().join("links").join(inner.id()?.to_string());
    std::fs::remove_file(pins.join("egress"))?;
    let said = explain(&bed, &[inner.path()])?;
    concludes(&said, "bound", "bound to a0")?;
    ensure!(said["decision"]["complete"] == false && said["decision"]["missing"] == json!(["egress"]), "{said:#}");
    ensure!(said["decision"]["not_covered"].to_string().contains("egress"), "{said:#}");
    // Without the program that binds, the outer policy decides.
    std::fs::remove_file(pins.join("sock_create"))?;
    let said = explain(&bed, &[inner.path()])?;
    concludes(&said, "bound", "bound to a1")?;
    ensure!(said["decision"]["cgroup"] == bed.cgroup.path(), "{said:#}");
    ensure!(reasons(&said)[1].contains("its program sock_create is missing"), "{said:#}");
    ensure!(text(&bed, &[inner.path()])?.contains("MISSING egress sock_create"));
    Ok(())
}

fn incomplete_pins() -> Outcome {
    let bed = Bed::new("explain-torn")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    std::fs::remove_file(bed.abi().join("maps/POLICIES"))?;
    let refused = bed.run(&["explain", bed.cgroup.path()])?;
    ensure!(refused.code == 1 && refused.stderr.contains("are incomplete"), "{refused:?}");
    // What it cannot read holds.
    bed.check_steered(&bed.cgroup, 1)
}

fn a_wrong_target() -> Outcome {
    let bed = Bed::new("explain-wrong")?;
    for (target, expected) in [
        ("4194305", "there is no process 4194305; `pgrep"),
        ("99999999999999999999", "there is no process 99999999999999999999"),
        ("0", "there is no process 0"),
        ("curl", "there is no unit curl.service; `pgrep"),
        ("", "is not a target: it is not the name of a unit; expected a unit like"),
        ("user:steer-nobody", "there is no user steer-nobody"),
        ("container:steer-none", "there is no running container steer-none"),
        ("/no/such", "there is no cgroup /no/such"),
        ("/a/../b", "not a cgroup path"),
    ] {
        let refused = bed.run(&["explain", target])?;
        ensure!(refused.code == 1 && refused.stderr.contains(expected), "{target:?}: {refused:?}");
        ensure!(refused.stdout.is_empty(), "{refused:?}");
    }
    // A process that has ended and that its parent has not waited for.
    let mut ended = Command::new("true").spawn()?;
    let stat = format!("/proc/{}/stat", ended.id());
    steer_lab::wait_until("the process to end", steer_tests::PATIENCE, || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
    })?;
    let refused = bed.run(&["explain", &ended.id().to_string()])?;
    ended.wait()?;
    ensure!(refused.code == 1 && refused.stderr.contains("has ended"), "{refused:?}");
    Ok(())
}

fn without_privilege() -> Outcome {
    let bed = Bed::new("explain-nobody")?;
    let steer = bed.directory.join("steer");
    steer_tests::copy_program(&steer_tests::binary("STEER_BIN", "steer"), &steer)?;
    let process = Idle::start(&bed, Some(&bed.cgroup))?;
    let mut command = Command::new(steer);
    bed.place(&mut command, None, User::Nobody);
    let refused = output(command.arg("--bpffs").arg(&bed.pins).args(["explain", &process.pid()]))?;
    ensure!(refused.code == 1 && refused.stderr.contains("`steer explain` needs CAP_BPF"), "{refused:?}");
    Ok(())
}
