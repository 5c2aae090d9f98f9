//! The host's state besides the policy: the uplink, routes, other owners' programs, and older sockets.

use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::json;
use steer_tests::{Bed, Held, Outcome, User, output, program_beside};

use super::{concludes, explain, innermost, text};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("an_uplink_that_is_down", an_uplink_that_is_down),
    ("routes", routes),
    ("programs_of_others", programs_of_others),
    ("older_sockets", older_sockets),
];

fn an_uplink_that_is_down() -> Outcome {
    let bed = Bed::new("explain-down")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.net.client.set_down("a1")?;
    let said = explain(&bed, &[bed.cgroup.path()])?;
    concludes(&said, "bound", "which is down (ENETUNREACH)")?;
    ensure!(said["uplink"]["state"] == "down" && said["routes"][0]["steered"] == json!([]), "{said:#}");
    bed.check_closed(&bed.cgroup)
}

fn routes() -> Outcome {
    let bed = Bed::new("explain-routes")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let (a0, a1) = (bed.net.ifindex(0)?, bed.net.ifindex(1)?);
    let said = explain(&bed, &[bed.cgroup.path()])?;
    let way =
        |link: &str, index: u32, gateway: &str| json!([{ "interface": link, "ifindex": index, "gateway": gateway }]);
    let expected = json!([
        { "destination": "198.41.0.4", "steered": way("a1", a1, "10.0.1.1"), "unsteered": way("a0", a0, "10.0.0.1") },
        { "destination": "2001:503:ba3e::2:30", "steered": way("a1", a1, "fd00:1::1"), "unsteered": way("a0", a0, "fd00::1") },
    ]);
    ensure!(said["routes"] == expected, "{said:#}");
    let near = explain(&bed, &[bed.cgroup.path(), "--to", "10.0.1.9"])?;
    let direct = json!([{ "interface": "a1", "ifindex": a1, "gateway": null }]);
    ensure!(
        near["routes"] == json!([{ "destination": "10.0.1.9", "steered": direct, "unsteered": direct }]),
        "{near:#}"
    );
    let here = text(&bed, &[bed.cgroup.path(), "--to", "127.0.0.53"])?;
    ensure!(here.contains("refused (EPERM)") && here.contains("`dns`"), "{here}");
    // There is no route by the uplink; the result depends on the family.
    for family in ["-4", "-6"] {
        let mut command = Command::new("ip");
        bed.net.client.enter(&mut command);
        let ran = output(command.args([family, "route", "del", "default", "dev", "a1"]))?;
        ensure!(ran.code == 0, "{ran:?}");
    }
    // No daemon follows the routes.
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let said = explain(&bed, &[bed.cgroup.path()])?;
    ensure!(said["routes"][0]["steered"] == json!([]) && said["routes"][1]["steered"] == json!([]), "{said:#}");
    let text = text(&bed, &[bed.cgroup.path()])?;
    ensure!(text.contains("treated as a neighbour") && text.contains("ENETUNREACH"), "{text}");
    let wrong = bed.run(&["explain", bed.cgroup.path(), "--to", "example.org"])?;
    ensure!(wrong.code == 2 && wrong.stderr.contains("--to <ADDRESS>"), "{wrong:?}");
    Ok(())
}

fn programs_of_others() -> Outcome {
    let bed = Bed::new("explain-foreign")?;
    let inner = bed.cgroup.child("inner")?;
    program_beside(&inner, "before")?;
    bed.succeed(&["attach", inner.path(), "-i", "a1"])?;
    let said = explain(&bed, &[inner.path()])?;
    let foreign = &innermost(&said)?["foreign"][0];
    ensure!(foreign["name"] == "before" && foreign["last_word"] == false, "{said:#}");
    ensure!(!said["conclusion"].to_string().contains("another program runs"), "{said:#}");
    program_beside(&bed.cgroup, "after")?;
    let said = explain(&bed, &[inner.path()])?;
    let foreign = &said["chain"][1]["foreign"][0];
    ensure!(foreign["name"] == "after" && foreign["last_word"] == true && foreign["uid"] == 0, "{said:#}");
    concludes(&said, "bound", "another program runs after steer's")
}

fn older_sockets() -> Outcome {
    let bed = Bed::new("explain-older")?;
    let mut command = bed.client(Some(&bed.cgroup), User::Nobody)?;
    let port = bed.server.port().to_string();
    command.args(["--json", "--proto", "tcp", "--family", "v4", "--port", &port]);
    let mut client = Held::start(&mut command)?;
    client.round()?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let said = explain(&bed, &[&client.pid().to_string()])?;
    let elsewhere = said["sockets"]["elsewhere"].as_array().context("no sockets")?;
    let [older] = &elsewhere[..] else { anyhow::bail!("expected one socket: {said:#}") };
    let expected = format!("to 198.51.100.1:{port} (not bound)");
    ensure!(
        older.as_str().is_some_and(|older| older.starts_with("TCP socket 10.0.0.2:") && older.ends_with(&expected)),
        "{said:#}"
    );
    ensure!(said["sockets"]["open"] == 1, "{said:#}");
    ensure!(text(&bed, &[&client.pid().to_string()])?.contains("1 open, 1 not bound to the uplink"));
    Ok(())
}
