//! A command is killed at the system calls that write rules and routes: what is steered stays so, and `off` leaves neither rule nor route.

use std::{
    fs,
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use steer_lab::wait_until;
use steer_tests::{Bed, Cgroup, Fault, Outcome, PATIENCE, Spy, User, check_outcomes, stride};

use super::{killed::end_tracee, switches::writes};
use crate::reach::tables;

/// How many of the calls are tried usually, for each command.
const USUALLY: usize = 3;

pub(super) fn while_it_writes_rules() -> Outcome {
    let bed = Bed::new("kill-rules")?;
    let before = tables(&bed)?;
    let (kept, target) = (bed.cgroup.child("kept")?, bed.cgroup.child("target")?);
    let attach = |cgroup: &Cgroup, except: &str| {
        let words = ["attach", cgroup.path(), "-i", "a1", "--local", "host,lan", "--except", except];
        words.map(str::to_owned).to_vec()
    };
    let (keep, attach) = (attach(&kept, "192.0.2.0/24=a0"), attach(&target, "203.0.113.0/24=a0,2001:db8:1::/48=main"));
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    bed.write_config("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"host\"]\ncgroups = [\"@/named\"]\n")?;
    bed.cgroup.child("named")?;
    let start = words(&["daemon", "--config", &bed.config_file().to_string_lossy()]);
    let cases = [
        (vec![&keep], &attach, true),
        (vec![&keep, &attach], &words(&["detach", target.path()]), true),
        (vec![&keep], &start, true),
        (vec![&keep, &attach], &words(&["off", "--forget"]), false),
    ];
    for (first, faulty, keeps) in cases {
        let prepare = || first.iter().try_for_each(|command| run(&bed, command));
        prepare()?;
        let points = points(&bed, faulty)?;
        clear(&bed, &before)?;
        let step = if stride(0) == 1 { 1 } else { points.len().div_ceil(USUALLY) };
        let mut killed = 0;
        for &number in points.iter().step_by(step) {
            let context = || format!("{faulty:?}, call {number} of {points:?}");
            prepare()?;
            let arguments: Vec<&str> = faulty.iter().map(String::as_str).collect();
            let mut spy = Spy::on(&bed, &["a1"])?;
            let mut faulty = bed.steer_with(Fault::Killed, "sendto", number, &arguments)?;
            let mut faulty = faulty.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            let mut ended = None;
            wait_until("the command to end", PATIENCE, || {
                ended = faulty.try_wait().ok().flatten();
                ended.is_some()
            })
            .or_else(|error| end_tracee(&mut faulty).and(Err(error.into())))
            .with_context(context)?;
            killed += usize::from(ended.is_some_and(|status| status.signal() == Some(libc::SIGKILL)));
            if keeps {
                check_outcomes(&bed.probe(Some(&kept), User::Nobody)?, User::Nobody, 1).with_context(context)?;
                spy.saw_nothing().with_context(context)?;
            }
            clear(&bed, &before).with_context(context)?;
        }
        ensure!(killed > 0, "{faulty:?} was never killed at {points:?}");
    }
    Ok(())
}

fn run(bed: &Bed, command: &[String]) -> Outcome {
    bed.succeed(&command.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
}

/// Switches off and checks that nothing is left.
fn clear(bed: &Bed, before: &str) -> Outcome {
    bed.succeed(&["off", "--forget"])?;
    let left = tables(bed)?;
    ensure!(left == before, "off leaves {left}");
    ensure!(!bed.pins.exists(), "off leaves pins");
    Ok(())
}

/// The numbers of the calls of a command that write rules and routes. A daemon is ended when it is ready.
fn points(bed: &Bed, command: &[String]) -> anyhow::Result<Vec<usize>> {
    let trace = bed.directory.join("trace");
    let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut traced: Command = bed.steer_traced(&["-e", "trace=sendto"], &trace, &arguments)?;
    let mut traced = traced.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    if command[0] == "daemon" {
        wait_until("the daemon to listen", PATIENCE, || UnixStream::connect(bed.socket()).is_ok())?;
        end_tracee(&mut traced)?;
    } else {
        ensure!(traced.wait()?.success(), "{command:?}");
    }
    let points: Vec<_> = writes(&fs::read_to_string(&trace)?).into_iter().map(|(_, number)| number).collect();
    ensure!(!points.is_empty(), "{command:?} writes no rules: {points:?}");
    Ok(points)
}
