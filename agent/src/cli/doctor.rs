//! `steer doctor`: find problems, and print the commands that repair them.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::output::{Unwritten, paragraph, say};
use crate::{
    model::quote::shown,
    observe::doctor::{self, Applied, Finding, How, Options, Report, Severity},
    run::instance::Instance,
};

/// Arguments of `steer doctor`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 if there are at most findings of level info, 1 if there are warnings or errors, 2 for a wrong \
                        command line."
)]
pub(super) struct Args {
    /// The configuration file to check, in addition to the state in force [default: that of the daemon, or /etc/steer/steer.toml, if it exists]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Make the repairs that harm no connection, print them, and check again
    #[arg(long)]
    fix: bool,
    /// Print JSON: all checks and all findings
    #[arg(long)]
    json: bool,
}

/// The output of `--json`. The field names are stable.
#[derive(Serialize)]
struct Output<'a> {
    /// The repairs of `--fix`. The checks ran after them.
    applied: &'a [Applied],
    #[serde(flatten)]
    report: &'a Report,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let (blind_spots, silent) = super::block_on(super::status::told(&instance.socket))?;
    let options = Options {
        blind_spots,
        silent,
        uplinks: super::block_on(super::uplinks::of_daemon(&instance.socket))?,
        pin_directory: instance.pins.0.clone(),
        steer: instance.command(),
        config_is_named: args.config.is_some(),
        store: instance.store(&super::config_file(args.config.as_deref(), instance)),
    };
    let mut report = super::block_on(doctor::examine(&options))?;
    let applied = if args.fix { doctor::repair(&options, &report) } else { Vec::new() };
    if !applied.is_empty() {
        report = super::block_on(doctor::examine(&options))?;
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&Output { applied: &applied, report: &report })?)?;
    } else {
        print(&applied, &report)?;
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(applied: &[Applied], report: &Report) -> Result<(), Unwritten> {
    for Applied { id, subject, fix, error } in applied {
        let (How::Command(done) | How::Advice(done)) = &fix.how;
        match error {
            None => say!("repaired {id}: {subject}: {done}")?,
            Some(error) => say!("could not repair {id}: {subject}: {error}")?,
        }
        if let Some(persistent) = &fix.persistent {
            say!("    until the next boot; permanently: {persistent}")?;
        }
    }
    report.findings.iter().try_for_each(print_finding)?;
    let count = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    say!("{}, {}", count(report.checks.len(), "check"), count(report.findings.len(), "finding"))
}

fn print_finding(finding: &Finding) -> Result<(), Unwritten> {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    // Mistakes in a file begin with its name.
    let subject = finding.subject.to_string();
    let named =
        if finding.what.starts_with(&format!("{subject}:")) { String::new() } else { format!("{}: ", shown(&subject)) };
    for (index, line) in finding.what.lines().enumerate() {
        let before = if index == 0 { format!("{severity}: {}: {named}", finding.id) } else { "    ".to_owned() };
        paragraph(&format!("{before}{}", shown(line)), 4)?;
    }
    paragraph(&format!("    why: {}", shown(&finding.why)), 9)?;
    let Some(fix) = &finding.fix else { return Ok(()) };
    match &fix.how {
        How::Command(command) if fix.is_safe() => say!("    fix: {command}    (--fix does it)")?,
        How::Command(command) => say!("    fix: {command}")?,
        How::Advice(advice) => paragraph(&format!("    advice: {advice}"), 12)?,
    }
    if let Some(persistent) = &fix.persistent {
        say!("    permanently: {persistent}")?;
    }
    Ok(())
}
