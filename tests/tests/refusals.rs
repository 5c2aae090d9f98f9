//! Requests that steer refuses, and its messages.

use std::os::unix::process::CommandExt as _;

use anyhow::ensure;
use steer_tests::{Bed, Cgroup, NOBODY, Outcome, User, exclusive_program, output, overridable_filter, program_beside};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("without_privilege", without_privilege),
    ("check_needs_no_privilege", check_needs_no_privilege),
    ("a_wrong_configuration", a_wrong_configuration),
    ("output_that_takes_no_more", output_that_takes_no_more),
    ("the_root_cgroup", the_root_cgroup),
    ("no_such_cgroup", no_such_cgroup),
    ("no_such_interface", no_such_interface),
    ("no_such_policy", no_such_policy),
    ("a_unit_that_is_not_its_own", a_unit_that_is_not_its_own),
    ("a_drop_in_of_somebody_else", a_drop_in_of_somebody_else),
    ("an_exclusive_program", an_exclusive_program),
    ("a_filter_that_gives_way", a_filter_that_gives_way),
    ("the_root_of_a_user_namespace", the_root_of_a_user_namespace),
];

/// A copy of the binary that all users can execute.
fn steer_for_all(bed: &Bed) -> anyhow::Result<std::path::PathBuf> {
    let copy = bed.directory.join("steer");
    steer_tests::copy_program(&steer_tests::binary("STEER_BIN", "steer"), &copy)?;
    Ok(copy)
}

fn without_privilege() -> Outcome {
    let bed = Bed::new("refuse-nobody")?;
    bed.write_config("")?;
    let steer = steer_for_all(&bed)?;
    let cases: [&[&str]; 6] = [
        &["exec", "-i", "a1", "--", "true"],
        &["attach", "/x", "-i", "a1"],
        &["detach", "/x"],
        &["off"],
        &["status"],
        &["events"],
    ];
    for arguments in cases {
        let refused = output(std::process::Command::new(&steer).args(arguments).uid(NOBODY.0).gid(NOBODY.1))?;
        let code = if arguments[0] == "exec" { 125 } else { 1 };
        ensure!(refused.code == code, "{arguments:?}: {refused:?}");
        for expected in [arguments[0], "CAP_BPF", "CAP_NET_ADMIN", "sudo"] {
            ensure!(refused.stderr.contains(expected), "{arguments:?}: {refused:?}");
        }
    }
    Ok(())
}

fn check_needs_no_privilege() -> Outcome {
    let bed = Bed::new("refuse-check")?;
    let steer = steer_for_all(&bed)?;
    bed.write_config(
        "[defaults]\nlocal = [\"host\", \"lan\"]\ndns = []\n[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"/x\"]\n",
    )?;
    let mut command = std::process::Command::new(&steer);
    command.args(["check", "--config"]).arg(bed.config_file());
    bed.net.client.enter_as(&mut command, NOBODY.0, NOBODY.1);
    let checked = output(&mut command)?;
    ensure!(checked.code == 0 && checked.stdout.contains(": no mistakes\n1 policy\n"), "{checked:?}");
    ensure!(checked.stdout.ends_with("default dns: none\ndefault local: host, lan\n"), "{checked:?}");
    let checked = output(command.arg("--json"))?;
    let said: serde_json::Value = serde_json::from_str(&checked.stdout)?;
    let expected = serde_json::json!({ "files": [bed.config_file()], "policies": 1, "problems": [], "warnings": [],
                                       "defaults": { "dns": [], "local": ["host", "lan"] } });
    ensure!(checked.code == 0 && said == expected, "{checked:?}");
    Ok(())
}

fn a_wrong_configuration() -> Outcome {
    let bed = Bed::new("refuse-config")?;
    bed.write_config("[[policy]]\nnam = \"p\"\ninterface = \"a1\"\ncgroups = [\"x\", \"/[\"]\n")?;
    let file = bed.config_file().to_string_lossy().into_owned();
    for command in ["check", "daemon"] {
        let refused = bed.run(&[command, "--config", &file])?;
        ensure!(refused.code == 2, "{refused:?}");
        for line in [
            format!("{file}:1:1: policy 1: name: missing"),
            format!("{file}:2:1: policy 1: nam = \"p\": unknown key"),
            format!("{file}:4:12: policy 1: cgroups = \"x\""),
            format!("{file}:4:17: policy 1: cgroups = \"/[\""),
        ] {
            ensure!(refused.stderr.contains(&line), "{line} in {refused:?}");
        }
    }
    let refused = bed.run(&["check", "--json", "--config", &file])?;
    let said: serde_json::Value = serde_json::from_str(&refused.stdout)?;
    ensure!(refused.code == 2 && said["files"][0] == file && said["policies"].is_null(), "{refused:?}");
    let expected = serde_json::json!({ "file": file, "line": 2, "column": 1, "key": "policy[0].nam", "value": "\"p\"",
                                       "message": said["problems"][1]["message"] });
    ensure!(said["problems"][1] == expected, "{said:#}");
    ensure!(said["problems"].as_array().is_some_and(|problems| problems.len() == 4), "{said:#}");
    let nowhere = bed.directory.join("none/steer.toml").to_string_lossy().into_owned();
    let refused = bed.run(&["policy", "rm", "z", "--config", &nowhere])?;
    ensure!(refused.code == 1 && !bed.directory.join("none").exists(), "{refused:?}");
    // Each is found before anything is done.
    let cases: [(&[&str], &str); 7] = [
        (&["explain"], "Usage: steer explain [OPTIONS] <TARGET>"),
        (&["daemon", "--config", &file, "--metrics", "0.0.0.0:9464"], "expected a loopback address"),
        (&["daemon", "--config", &file, "--socket-group", "steer-none"], "there is no group \"steer-none\""),
        (&["policy", "set", "p", "--dns", "1.2.3"], "Usage: steer policy set "),
        (&["explain", "1", "--to", "example.org"], "`getent ahosts example.org`"),
        (&["explain", "1", "--to", "1.2.3.4:x"], "expected an address"),
        (&["explain", "1", "--to", "1.2.3.4:53"], "expected an address without a port, as 1.2.3.4"),
    ];
    for (arguments, why) in cases {
        let refused = bed.run(arguments)?;
        ensure!(refused.code == 2 && refused.stderr.contains(why), "{arguments:?}: {refused:?}");
    }
    for (target, why) in
        [("steer-none/x", "begins with a slash: /steer-none/x;"), ("/steer-none", "no cgroup /steer-none")]
    {
        let refused = bed.run(&["explain", target])?;
        let is_right = refused.code == 1 && refused.stderr.contains(why) && !refused.stderr.contains("/proc/self/fd");
        ensure!(is_right, "{target}: {refused:?}");
    }
    ensure!(!bed.pins.exists(), "refused, but pins were made");
    let missing = bed.run(&["check", "--config", "/nonexistent.toml"])?;
    ensure!(missing.code == 1 && missing.stderr.contains("/nonexistent.toml"), "{missing:?}");
    let missing = bed.run(&["daemon", "--config", "/nonexistent.toml"])?;
    let text = "there is no configuration file /nonexistent.toml";
    ensure!(missing.code == 2 && missing.stderr.contains(text), "{missing:?}");
    let none = bed.run(&["policy", "list", "--config", &nowhere])?;
    ensure!(none.code == 0 && none.stderr.contains(&format!("there is no {nowhere}")), "{none:?}");
    Ok(())
}

/// An error, and no panic. A reader that has gone ends the command quietly.
fn output_that_takes_no_more() -> Outcome {
    let bed = Bed::new("refuse-full")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.write_config("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/p\"]\n")?;
    let config = bed.config_file().to_string_lossy().into_owned();
    let cgroup = bed.cgroup.path();
    let cases: [&[&str]; 13] = [
        &["status"],
        &["status", "--json"],
        &["check", "--config", &config],
        &["policy", "list", "--config", &config],
        &["interfaces", "--config", &config],
        &["completions", "bash"],
        &["explain", cgroup],
        &["doctor"],
        &["top", "--count", "1", "--interval", "0.1"],
        &["unit", "x", "--policy", "p", "--stdout", "--force"],
        &["policy", "set", "q", "-i", "a1", "--cgroup", "/q", "--config", &config],
        &["policy", "remove", "none", "--config", &config],
        &["off"],
    ];
    for arguments in cases {
        let full = || std::fs::File::options().write(true).open("/dev/full");
        let says_nothing = arguments.contains(&"remove");
        let said = output(bed.steer(arguments).stdout(full()?).stderr(std::process::Stdio::piped()))?;
        ensure!(said.code == 1 && !said.stderr.contains("panicked"), "{arguments:?}: {said:?}");
        ensure!(says_nothing || said.stderr.contains("No space left on device"), "{arguments:?}: {said:?}");
        let silent = bed.steer(arguments).stdout(full()?).stderr(full()?).status()?;
        ensure!(silent.code() == Some(1), "{arguments:?}: {silent:?}");
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let ended = output(bed.steer(arguments).stdout(writer).stderr(std::process::Stdio::piped()))?;
        ensure!(says_nothing || ended.stderr.is_empty(), "{arguments:?}: {ended:?}");
    }
    Ok(())
}

fn the_root_cgroup() -> Outcome {
    let bed = Bed::new("refuse-root")?;
    for path in ["/", "//"] {
        let refused = bed.run(&["attach", path, "-i", "a1"])?;
        ensure!(refused.code == 1 && refused.stderr.contains("--yes-the-root"), "{refused:?}");
    }
    ensure!(!bed.pins.exists(), "refused, but pins were made");
    Ok(())
}

fn no_such_cgroup() -> Outcome {
    let bed = Bed::new("refuse-cgroup")?;
    for (path, expected) in
        [("/no/such", "there is no cgroup /no/such"), ("relative", "there is no unit relative.service")]
    {
        let refused = bed.run(&["attach", path, "-i", "a1"])?;
        ensure!(refused.code == 1 && refused.stderr.contains(expected), "{refused:?}");
    }
    Ok(())
}

fn no_such_interface() -> Outcome {
    let bed = Bed::new("refuse-interface")?;
    let refused = bed.run(&["attach", bed.cgroup.path(), "-i", "wg0"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("no interface \"wg0\""), "{refused:?}");
    ensure!(!bed.pins.exists(), "refused, but pins were made");
    Ok(())
}

fn no_such_policy() -> Outcome {
    let bed = Bed::new("refuse-policy")?;
    let refused = bed.run(&["attach", bed.cgroup.path(), "--policy", "vpn"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("no policy \"vpn\""), "{refused:?}");
    ensure!(!bed.pins.exists(), "refused, but pins were made");
    Ok(())
}

fn an_exclusive_program() -> Outcome {
    let bed = Bed::new("refuse-exclusive")?;
    let inner = bed.cgroup.child("inner")?;
    exclusive_program(&bed.cgroup, "vrf_like")?;
    for cgroup in [&bed.cgroup, &inner] {
        let refused = bed.run(&["attach", cgroup.path(), "-i", "a1"])?;
        ensure!(refused.code == 1, "{refused:?}");
        for expected in ["\"vrf_like\"", bed.cgroup.path(), "ip vrf exec", "user 0"] {
            ensure!(refused.stderr.contains(expected), "{expected} in {refused:?}");
        }
        ensure!(!bed.pins.exists(), "refused, but pins are left");
    }
    let mut command = bed.steer(&["exec", "-i", "a1", "--", "true"]);
    let refused = output(inner.enter(&mut command))?;
    ensure!(refused.code == 125 && refused.stderr.contains("\"vrf_like\""), "{refused:?}");
    steer_lab::wait_until("the keeper to clean up", steer_tests::PATIENCE, || {
        inner.children().is_empty() && !bed.pins.exists()
    })?;
    // A reload attaches what it can, and fails.
    let other = Bed::new("refuse-beside")?;
    let free = &other.cgroup;
    let _daemon = bed.daemon("[[policy]]\nname = \"none\"\ninterface = \"a1\"\ncgroups = [\"@/none\"]\n")?;
    let cgroups = format!("cgroups = [\"{}\", \"{}\"]", inner.path(), free.path());
    bed.write_config(&format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\n{cgroups}\n"))?;
    let reload = bed.run(&["reload"])?;
    ensure!(reload.code == 1 && reload.stderr.contains(&format!("{} is NOT steered", inner.path())), "{reload:?}");
    bed.check_steered(free, 1)?;
    // A change of another policy is made, and says that.
    let set = bed.run(&["policy", "set", "q", "-i", "a0", "--cgroup", &format!("{}/q", free.path())])?;
    let warning = format!("warning: {} is not steered, although policy p names it", inner.path());
    ensure!(set.code == 0 && set.stderr.contains(&warning), "{set:?}");
    let removed = bed.run(&["policy", "remove", "q"])?;
    ensure!(removed.code == 0 && removed.stderr.contains(&warning), "{removed:?}");
    let below = inner.child("below")?;
    let set = bed.run(&["policy", "set", "r", "-i", "a0", "--cgroup", below.path()])?;
    ensure!(set.code == 1 && set.stderr.contains(&format!("{} is NOT steered", below.path())), "{set:?}");
    Ok(())
}

/// A program of another tool that the kernel runs only where no cgroup below has one of its own.
fn a_filter_that_gives_way() -> Outcome {
    let bed = Bed::new("refuse-override")?;
    let middle = bed.cgroup.child("middle")?;
    let inner = middle.child("inner")?;
    let _held = overridable_filter(&bed.cgroup, "filter")?;
    let is_on = |cgroup: &Cgroup| {
        let outcomes = bed.probe(Some(cgroup), User::Nobody)?;
        Ok::<_, anyhow::Error>(outcomes.iter().all(|outcome| outcome.bound_ifindex == -1))
    };
    ensure!(is_on(&inner)?, "it has no effect");
    let me = format!("held by process {} ", std::process::id());
    for cgroup in [&inner, &middle, &bed.cgroup] {
        let refused = bed.run(&["attach", cgroup.path(), "-i", "a1"])?;
        ensure!(refused.code == 1 && refused.stderr.contains("\"filter\""), "{refused:?}");
        ensure!(is_on(cgroup)? && !bed.pins.exists(), "{refused:?}");
        // On the same cgroup, the kernel refuses it.
        if cgroup.path() != bed.cgroup.path() {
            for expected in ["BPF_F_ALLOW_OVERRIDE", bed.cgroup.path(), &me, "user 0"] {
                ensure!(refused.stderr.contains(expected), "{expected} in {refused:?}");
            }
        }
    }
    let mut command = bed.steer(&["exec", "-i", "a1", "--", "true"]);
    let refused = output(inner.enter(&mut command))?;
    ensure!(refused.code == 125 && refused.stderr.contains("\"filter\""), "{refused:?}");
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/middle/inner\"]\n")?;
    daemon.wait_for_log("NOT steered")?;
    ensure!(is_on(&inner)?);
    ensure!(bed.only_finding("foreign-exclusive")?.text("what").contains("BPF_F_ALLOW_OVERRIDE"));
    // It is off already where another program is between.
    program_beside(&middle, "between")?;
    ensure!(!is_on(&inner)?);
    bed.succeed(&["reload"])?;
    bed.check_steered(&inner, 1)?;
    ensure!(is_on(&bed.cgroup)?);
    Ok(())
}

fn the_root_of_a_user_namespace() -> Outcome {
    // It has every capability, but not in this namespace.
    let bed = Bed::new("refuse-userns")?;
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net"]).arg(steer_tests::binary("STEER_BIN", "steer"));
    command.arg("--bpffs").arg(&bed.pins).args(["exec", "-i", "none", "--", "true"]);
    let refused = output(bed.cgroup.enter(&mut command))?;
    ensure!(refused.code == 125 && refused.stderr.contains("needs CAP_BPF"), "{refused:?}");
    ensure!(refused.stderr.matches("Operation not permitted").count() == 1, "{refused:?}");
    bed.wait_until_clean()
}

fn a_unit_that_is_not_its_own() -> Outcome {
    let bed = Bed::new("refuse-unit")?;
    let inner = bed.cgroup.child("x.service")?;
    let attach = ["attach", "--unit", "x.service", "--interface", "a1"];
    let refused = bed.run(&attach)?;
    ensure!(refused.code == 1 && refused.stderr.contains("not in a cgroup of x.service"), "{refused:?}");
    ensure!(!bed.pins.exists());
    let attached = output(inner.enter(&mut bed.steer(&attach)))?;
    ensure!(attached.code == 0, "{attached:?}");
    bed.check_steered(&inner, 1)?;
    bed.check_unsteered(Some(&bed.cgroup))
}

fn a_drop_in_of_somebody_else() -> Outcome {
    let bed = Bed::new("refuse-drop-in")?;
    let directory = bed.directory.to_string_lossy().into_owned();
    let unit = |arguments: &[&str]| bed.run(&[&["unit", "x", "--dir", &directory], arguments].concat());
    for (arguments, why) in [
        (&["--interface", "a1"] as &[&str], "there is no unit x.service"),
        (&["--policy", "p"], "there is no unit x.service"),
    ] {
        let refused = unit(arguments)?;
        ensure!(refused.code == 1 && refused.stderr.contains(why), "{arguments:?}: {refused:?}");
    }
    std::fs::write(bed.directory.join("x.service"), "[Service]\n")?;
    for (arguments, why) in [
        (&["--interface", "a7"] as &[&str], "no interface \"a7\""),
        (&["--interface", "a0,a1"], "for several interfaces, use --uplink a0+a1"),
        (&["--uplink", "u"], "there is no [[uplink]] \"u\" in /etc/steer/steer.toml"),
        (&["--uplink", "a1"], "a1 is an interface: use --interface a1"),
        (&["--policy", "p"], "there is no policy p; the service would not start (--force"),
    ] {
        let refused = unit(arguments)?;
        ensure!(refused.code == 1 && refused.stderr.contains(why), "{arguments:?}: {refused:?}");
    }
    ensure!(!bed.directory.join("x.service.d").exists());
    let confined = unit(&["--interface", "lo"])?;
    ensure!(confined.code == 0 && confined.stderr.contains("lo is the loopback interface"), "{confined:?}");
    // It writes and removes its own drop-in any number of times.
    for arguments in [&["--policy", "p", "--force"] as &[&str], &["--interface", "a1"], &["--remove"], &["--remove"]] {
        let done = unit(arguments)?;
        ensure!(done.code == 0, "{arguments:?}: {done:?}");
    }
    let drop_ins = bed.directory.join("x.service.d");
    ensure!(!drop_ins.exists(), "the directory is left");
    std::fs::create_dir(&drop_ins)?;
    std::fs::write(drop_ins.join("50-steer.conf"), "[Service]\n")?;
    for arguments in [&["--interface", "a1"] as &[&str], &["--remove"]] {
        let refused = unit(arguments)?;
        ensure!(refused.code == 1 && refused.stderr.contains("not written by `steer unit`"), "{refused:?}");
    }
    ensure!(std::fs::read_to_string(drop_ins.join("50-steer.conf"))? == "[Service]\n");
    Ok(())
}
