//! Names with terminal escapes, line breaks and bidirectional overrides.

use std::{path::Path, process::Command};

use anyhow::{Context as _, ensure};
use steer_lab::Vector;
use steer_tests::{Bed, Outcome, User, copy_program};

/// The kernel refuses a line break in the name of a cgroup.
const CGROUP: &str = "\x1b[2J\r\u{202e}x";
/// A line that it forges begins with `forged`.
const PROCESS: &str = "\x1b[2J\nforged\r";
/// The kernel refuses white space in the name of a link.
const LINK: &str = "\x1b[1m\u{202e}\u{9b}a";

/// What would change a terminal, or how the rest of a line is read.
fn is_unsafe(c: char) -> bool {
    c != '\n' && c.is_control()
        || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn check(what: &str, text: &str) -> Outcome {
    ensure!(!text.contains(is_unsafe), "{what}: {text:?}");
    ensure!(!text.lines().any(|line| line.trim_start().starts_with("forged")), "{what}: {text:?}");
    Ok(())
}

pub(super) fn names_cannot_write_to_a_terminal() -> Outcome {
    let mut bed = Bed::new("hostile-names")?;
    let named = bed.cgroup.child(CGROUP)?;
    let inner = named.child("inner")?;
    bed.net.rename_uplink(1, LINK)?;
    bed.net.client.add_altname(LINK, "a1")?;
    let program = bed.directory.join(PROCESS);
    copy_program(Path::new("/bin/sleep"), &program)?;
    let mut command = Command::new(&program);
    bed.place(command.arg("1000"), Some(&inner), User::Root);
    let mut process = command.spawn()?;
    let daemon = bed.daemon(
        "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/*\"]\n\
                    [[policy]]\nname = \"no\"\ninterface = \"a7\"\ncgroups = [\"@/no/**\"]\n",
    )?;
    let _attempt = bed.attempt_in(&named, Vector::Bindtodevice)?;
    let pid = process.id().to_string();
    let no = format!("{}/no", named.path());
    let asked: [&[&str]; 13] = [
        &["status"],
        &["interfaces"],
        &["events", "--once"],
        &["top", "-n", "1", "-i", "0.1"],
        &["explain", &pid],
        &["explain", named.path()],
        &["explain", &no],
        &["doctor"],
        &["policy", "list"],
        &["attach", &no, "-i", "a1"],
        &["attach", named.path(), "-i", "a9"],
        &["attach", named.path(), "-i", "a0"],
        &["detach", named.path()],
    ];
    for arguments in asked {
        let said = bed.run(arguments)?;
        check(&format!("{arguments:?}"), &(said.stdout + "\n" + &said.stderr))?;
    }
    // JSON has the names themselves.
    ensure!(bed.policy("p")?["cgroups"][0]["path"] == named.path(), "{}", bed.policy("p")?);
    let explained: serde_json::Value = serde_json::from_str(&bed.succeed(&["explain", &pid, "--json"])?)?;
    ensure!(explained["target"]["cgroup"] == inner.path(), "{explained}");
    let links: serde_json::Value = serde_json::from_str(&bed.succeed(&["interfaces", "--json"])?)?;
    ensure!(links.as_array().context("a list")?.iter().any(|link| link["name"] == LINK), "{links}");
    process.kill()?;
    process.wait()?;
    inner.remove()?;
    named.remove()?;
    daemon.wait_for_log("is gone")?;
    check("the daemon's log", &daemon.log())?;
    ensure!(daemon.log().contains(r"\u{1b}[2J\r\u{202e}x"), "{}", daemon.log());
    drop(daemon);
    let _named = bed.cgroup.child(CGROUP)?;
    bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/*\"]\n")?;
    check("steer off", &bed.succeed(&["off"])?)
}
