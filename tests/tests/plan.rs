//! `steer plan` and `steer reload --dry-run`: what they print is what a reload does.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use steer_tests::{Bed, Daemon, Held, Outcome, User};

use crate::Test;

pub(crate) const TESTS: &[Test] =
    &[("is_what_a_reload_does", is_what_a_reload_does), ("without_a_daemon", without_a_daemon)];

/// Configurations, one after the other. `@` is the bed's cgroup.
const STEPS: [(&str, &str); 8] = [
    ("a first policy", "[[policy]]\nname = \"p\"\ninterface = \"a0\"\ncgroups = [\"@/one\", \"@/hand\"]\n"),
    (
        "another uplink, a policy by a glob, and one inside",
        "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nexisting = \"rebind\"\ncgroups = [\"@/one\", \"@/hand\"]\n\
         [[policy]]\nname = \"q\"\ninterface = \"a0\"\ncgroups = [\"@/tw*/**\"]\n\
         [[policy]]\nname = \"in\"\ninterface = \"a1\"\ncgroups = [\"@/two/x\"]\n",
    ),
    (
        "other keys, and a cgroup that comes back to the policy around it",
        "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"host\"]\ncgroups = [\"@/one\"]\n\
         [[policy]]\nname = \"q\"\ninterface = \"a0\"\nenforce = \"steer\"\ncgroups = [\"@/two\"]\n",
    ),
    (
        "a group of uplinks, and an exemption",
        "[[uplink]]\nname = \"g\"\nmembers = [\"a0\", \"a1\"]\n\
         [[policy]]\nname = \"p\"\nuplink = \"g\"\ncgroups = [\"@/one\"]\n\
         [[policy]]\nname = \"q\"\ninterface = \"none\"\ncgroups = [\"@/two\", \"@/two/x\"]\n",
    ),
    (
        "another group of the same name",
        "[[uplink]]\nname = \"g\"\nmembers = [\"a1\"]\n\
         [[policy]]\nname = \"p\"\nuplink = \"g\"\ncgroups = [\"@/one\"]\n\
         [[policy]]\nname = \"q\"\ninterface = \"none\"\ncgroups = [\"@/two\", \"@/two/x\"]\n",
    ),
    ("a parent", "[[policy]]\nname = \"s\"\ninterface = \"a1\"\ncgroups = [\"@/two/x\"]\nparent = \"@/two\"\n"),
    ("a missing uplink", "[[policy]]\nname = \"s\"\ninterface = \"a9\"\ncgroups = [\"@/one\"]\n"),
    ("the policy of an attachment by hand again", "[[policy]]\nname = \"p\"\ninterface = \"a0\"\ncgroups = []\n"),
];

/// The attachments in force: by path, the policy's name and slot, its interface, and whether it is by hand.
type Attachments = BTreeMap<String, (String, u64, String, bool)>;

fn attachments(bed: &Bed) -> anyhow::Result<Attachments> {
    let mut found = BTreeMap::new();
    for policy in bed.status()?["policies"].as_array().into_iter().flatten() {
        let name = policy["name"].as_str().unwrap_or_default().to_owned();
        let interface = policy["interface"].as_str().unwrap_or("none").to_owned();
        for cgroup in policy["cgroups"].as_array().into_iter().flatten() {
            ensure!(cgroup["complete"] == true, "{cgroup}");
            let path = cgroup["path"].as_str().context("no path")?.to_owned();
            let manual = cgroup["manual"].as_bool().unwrap_or_default();
            found.insert(path, (name.clone(), policy["slot"].as_u64().unwrap_or_default(), interface.clone(), manual));
        }
    }
    Ok(found)
}

/// What has changed, as `path action`, with the names of the policies that the cgroup is attached to.
fn changes(before: &Attachments, after: &Attachments) -> Vec<String> {
    let mut changes = Vec::new();
    for path in before.keys().chain(after.keys().filter(|path| !before.contains_key(*path))) {
        changes.extend(match (before.get(path), after.get(path)) {
            (None, Some((policy, ..))) => Some(format!("{path} attach {policy}")),
            (Some(_), None) => Some(format!("{path} detach")),
            // An empty name is that of no interface.
            (Some(before), Some(after)) if before.1 == after.1 && before.2 != after.2 && after.2.is_empty() => {
                Some(format!("{path} close"))
            }
            (Some((_, before, ..)), Some((policy, after, ..))) if before != after => {
                Some(format!("{path} change {policy}"))
            }
            _ => None,
        });
    }
    changes.sort();
    changes
}

/// The same of a plan.
fn planned(plan: &Value) -> Vec<String> {
    let cgroups = plan["cgroups"].as_array().cloned().unwrap_or_default();
    let texts = cgroups.iter().map(|cgroup| {
        let (path, action) =
            (cgroup["path"].as_str().unwrap_or_default(), cgroup["action"].as_str().unwrap_or_default());
        match (action, cgroup["after"].as_str()) {
            ("detach" | "close", _) | (_, None) => format!("{path} {action}"),
            (_, Some(policy)) => format!("{path} {action} {policy}"),
        }
    });
    let mut texts: Vec<_> = texts.collect();
    texts.sort();
    texts
}

fn plan(bed: &Bed, arguments: &[&str]) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&bed.succeed(&[&["plan", "--json"], arguments].concat())?)?)
}

fn is_what_a_reload_does() -> Outcome {
    let bed = Bed::new("plan")?;
    let (one, two, hand) = (bed.cgroup.child("one")?, bed.cgroup.child("two")?, bed.cgroup.child("hand")?);
    let _x = two.child("x")?;
    let mut client = bed.client(Some(&one), User::Root)?;
    let port = bed.server.port().to_string();
    let sockets =
        ["--proto", "tcp", "--proto", "udp", "--proto", "udp-unconnected", "--timeout-ms", "2000", "--port", &port];
    let mut held = Held::start(client.args(sockets))?;
    ensure!(held.round()?.iter().all(steer_lab::Outcome::is_ok));
    let daemon = bed.daemon("[[policy]]\nname = \"none\"\ninterface = \"none\"\ncgroups = []\n")?;
    let next = bed.directory.join("next");
    let file = next.display().to_string();
    for (what, text) in STEPS {
        fs::write(&next, text.replace('@', bed.cgroup.path()))?;
        let (before, plan) = (attachments(&bed)?, plan(&bed, &[&file])?);
        let printed = bed.succeed(&["plan", &file])?;
        ensure!(printed.lines().all(|line| line.len() <= 80 || line.contains("/steer-test-")), "{what}: {printed}");
        ensure!(attachments(&bed)? == before, "{what}: planning changes nothing");
        fs::copy(&next, bed.config_file())?;
        bed.succeed(&["reload"])?;
        let after = attachments(&bed)?;
        let (done, planned) = (changes(&before, &after), planned(&plan));
        ensure!(planned == done, "{what}: planned {planned:#?}, done {done:#?}\n{printed}");
        ensure!(planned.is_empty() != printed.contains("cgroups: "), "{what}: {printed}");
        for arguments in [&["plan"][..], &["reload", "--dry-run"]] {
            ensure!(bed.succeed(arguments)? == "nothing to do\n", "{what}: {arguments:?} after the reload");
        }
        match what {
            "a first policy" => {
                bed.succeed(&["detach", hand.path()]).expect_err("the configuration names it");
            }
            "another uplink, a policy by a glob, and one inside" => {
                // 2 of UDP without a connection are bound; the others have the address of the other link.
                let concerned = &plan["cgroups"].as_array().context("none")?.iter().find(|it| it["path"] == one.path());
                let concerned = concerned.context("the cgroup")?;
                ensure!(concerned["processes"].as_array().map(Vec::len) == Some(1), "{concerned}");
                let said = format!(
                    "existing sockets of {}: {} bound to a1, {} destroyed",
                    one.path(),
                    concerned["bound"],
                    concerned["destroyed"]
                );
                ensure!(daemon.log().contains(&said), "{said:?} is not in {}", daemon.log());
                ensure!(concerned["sockets"] == 6 && concerned["bound"] == 2, "{concerned}");
                ensure!(
                    printed.contains("  interface: a1 (was a0)\n") && printed.contains("policy q is new\n"),
                    "{printed}"
                );
            }
            // From here on, one is attached by hand to the policy by its name.
            "other keys, and a cgroup that comes back to the policy around it" => {
                bed.succeed(&["attach", hand.path(), "--policy", "p"])?;
            }
            "a group of uplinks, and an exemption" => {
                let moved = format!("{} change p", hand.path());
                ensure!(planned.contains(&moved), "{planned:?}");
            }
            "a parent" => ensure!(planned.contains(&format!("{} close", hand.path())), "{planned:?}"),
            "a missing uplink" => ensure!(printed.contains("  a9 is missing: closed until it exists\n"), "{printed}"),
            _ => {}
        }
    }
    refused(&bed, &file)
}

/// A plan of what a reload refuses has the reason and the same status.
fn refused(bed: &Bed, file: &str) -> Outcome {
    for (text, code, why) in [("", 1, "has no policy and would be refused"), ("[[policy]]\nname = 1\n", 2, "name = 1")]
    {
        fs::write(file, text)?;
        let ran = bed.run(&["plan", file])?;
        ensure!(ran.code == code && ran.stderr.contains(why), "{ran:?}");
    }
    Ok(())
}

fn without_a_daemon() -> Outcome {
    let bed = Bed::new("plan-alone")?;
    let (one, hand) = (bed.cgroup.child("one")?, bed.cgroup.child("hand")?);
    bed.write_config("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/one\"]\n")?;
    let file = bed.config_file().display().to_string();
    let attach = format!("{} attach p", one.path());
    let ran = bed.run(&["reload", "--dry-run"])?;
    ensure!(ran.code == 1 && ran.stderr.contains("no daemon answers"), "{ran:?}");
    // Nothing is pinned yet.
    ensure!(planned(&plan(&bed, &[&file])?) == std::slice::from_ref(&attach));
    ensure!(!bed.abi().exists(), "planning pins nothing");
    // What `steer off` has released comes back, too.
    bed.succeed(&["attach", hand.path(), "-i", "a1"])?;
    bed.succeed(&["off"])?;
    let (before, planned) = (attachments(&bed)?, planned(&plan(&bed, &[&file])?));
    let _daemon = Daemon::start(&bed)?;
    let done = changes(&before, &attachments(&bed)?);
    ensure!(planned == done && planned.len() == 2, "planned {planned:#?}, done {done:#?}");
    Ok(())
}
