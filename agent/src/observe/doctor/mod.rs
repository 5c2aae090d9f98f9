//! `steer doctor`: finds faults of this host and of every policy, in force or configured. Reports why they matter, and the repair.
//!
//! It may use all layers below it.
//!
//! **Invariant:** it only reads, except for `fix`, which the user requests and which cannot end a connection. A check that fails
//! is a finding: no findings means no known fault.

mod cgroups;
mod command;
mod fix;
mod foreign;
mod groups;
mod kernel;
mod names;
mod namespaces;
mod pins;
mod report;
mod reverse_path;
mod routes;
mod sockets;
mod survey;
mod topic;
mod uplinks;

use std::path::PathBuf;

use serde::Serialize;

use crate::{apply::blind_spots::BlindSpot, host::policy_files::Store, kernel::Pins, observe::uplinks::UplinkStatus};
pub use fix::{Fix, How};
pub use report::{Check, Finding, Report, Severity, Status, Subject};
pub use topic::Topic;

/// What to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pin directory as the user names it. It may be missing.
    pub pin_directory: PathBuf,
    /// The shell command for this instance of steer, with the options that differ from the defaults.
    pub steer: String,
    /// The files of the policies.
    pub store: Store,
    /// Where the daemon does not see new cgroups.
    pub blind_spots: Vec<BlindSpot>,
    /// The groups of uplinks as a running daemon shows them, with the results of probes.
    pub uplinks: Vec<UplinkStatus>,
    /// What to do, if the daemon that runs does not answer.
    pub silent: Option<String>,
    /// Whether the user named the configuration file, so that it must exist.
    pub config_is_named: bool,
}

/// Makes all checks. Needs a tokio runtime.
pub async fn examine(options: &Options) -> Report {
    let mut report = Report::default();
    let survey = survey::Survey::read(options, &mut report).await;
    kernel::check(&survey, &mut report);
    cgroups::check_patterns(&survey, &mut report);
    cgroups::check_watched(&options.blind_spots, survey.daemon, &mut report);
    if let Err(error) = uplinks::check(&survey, &mut report).await {
        report.failed(Topic::Uplink, Subject::Host, &error);
    }
    names::check(&survey, &mut report);
    if survey.knows_pins {
        check_pinned_state(&survey, &mut report);
        if let Err(error) = routes::check(&survey, &mut report).await {
            report.failed(Topic::Routes, Subject::Host, &error);
        }
        if let Err(error) = groups::check(&survey, &options.uplinks, &mut report) {
            report.failed(Topic::UplinkGroup, Subject::Host, &error);
        }
    } else {
        for id in topic::NEED_PINS {
            report.not_applicable(id, Subject::Host, "the pins were not read");
        }
    }
    report.sort();
    report
}

fn check_pinned_state(survey: &survey::Survey, report: &mut Report) {
    pins::check(survey, report);
    let foreign = foreign::Foreign::read(survey);
    foreign.check(report);
    cgroups::check_steered(survey, &foreign, report);
    cgroups::check_manual(survey, report);
    if let Err(error) = namespaces::check(survey, report) {
        report.failed(Topic::OtherNetns, Subject::Host, &error);
    }
    if let Err(error) = sockets::check(survey, report) {
        report.failed(Topic::OlderSockets, Subject::Host, &error);
    }
}

/// A fix that was applied.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// The finding's check.
    pub id: Topic,
    /// The subject of the finding.
    pub subject: Subject,
    /// What was done, with the equivalent command.
    pub fix: Fix,
    /// Why it failed.
    pub error: Option<String>,
}

/// Applies the safe fixes of a report. Continues after an error.
pub fn repair(options: &Options, report: &Report) -> Vec<Applied> {
    // The report has the error.
    let pins = Pins::find(&options.pin_directory).ok().flatten();
    let safe = report.findings.iter().filter_map(|finding| {
        let fix = finding.fix.as_ref().filter(|fix| fix.is_safe())?;
        let error = fix.apply(pins.as_ref()).err().map(|error| format!("{error:#}"));
        Some(Applied { id: finding.id, subject: finding.subject.clone(), fix: fix.clone(), error })
    });
    safe.collect()
}
