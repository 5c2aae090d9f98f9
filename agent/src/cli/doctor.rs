//! `steer doctor`: find what is wrong, and say what mends it.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use crate::{
    observe::doctor::{self, Applied, Finding, How, Options, Report, Severity},
    run::instance::{CONFIG, Instance},
};

/// Arguments of `steer doctor`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 if nothing was found but information, 1 if there are warnings or errors, 2 for a wrong \
                        command line."
)]
pub(super) struct Args {
    /// The configuration to look at, beside what is in force [default: /etc/steer/steer.toml, if it is there]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Mend what can be mended without harm to any connection, say what was done, and look again
    #[arg(long)]
    fix: bool,
    /// Print JSON: everything that was looked at, and what was found
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. The field names are stable.
#[derive(Serialize)]
struct Output<'a> {
    /// What `--fix` did; what was looked at is looked at after that.
    applied: &'a [Applied],
    #[serde(flatten)]
    report: &'a Report,
}

pub(super) fn run(args: Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let options = Options {
        pin_directory: instance.pins.0.clone(),
        steer: instance.command(),
        config_is_named: args.config.is_some(),
        store: instance.store(&args.config.unwrap_or_else(|| CONFIG.into())),
    };
    let mut report = super::block_on(doctor::examine(&options))?;
    let applied = if args.fix { doctor::repair(&options, &report) } else { Vec::new() };
    if !applied.is_empty() {
        report = super::block_on(doctor::examine(&options))?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&Output { applied: &applied, report: &report })?);
    } else {
        print(&applied, &report);
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(applied: &[Applied], report: &Report) {
    for Applied { id, subject, fix, error } in applied {
        let (How::Command(done) | How::Advice(done)) = &fix.how;
        match error {
            None => println!("mended {id}: {subject}: {done}"),
            Some(error) => println!("could not mend {id}: {subject}: {error}"),
        }
        if let Some(persistent) = &fix.persistent {
            println!("    until the next boot; for ever: {persistent}");
        }
    }
    report.findings.iter().for_each(print_finding);
    let count = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    println!("{}, {}", count(report.checks.len(), "check"), count(report.findings.len(), "finding"));
}

fn print_finding(finding: &Finding) {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    println!("{severity}: {}: {}: {}", finding.id, finding.subject, finding.what);
    println!("    why: {}", finding.why);
    let Some(fix) = &finding.fix else { return };
    match &fix.how {
        How::Command(command) if fix.is_safe() => println!("    fix: {command}    (--fix does it)"),
        How::Command(command) => println!("    fix: {command}"),
        How::Advice(advice) => println!("    advice: {advice}"),
    }
    if let Some(persistent) = &fix.persistent {
        println!("    for ever: {persistent}");
    }
}
