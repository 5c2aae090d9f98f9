//! `steer doctor`: what is wrong on this host, and with every policy, in force or configured; why it matters, and what mends it.
//!
//! It stands outside the pipe and may look into every room.
//!
//! **Invariant:** only looks, but for `fix`, which is asked for and does only what cannot take a connection away. A check that
//! cannot be made is a finding: silence means that all is well.

mod cgroups;
mod command;
mod fix;
mod foreign;
mod kernel;
mod names;
mod pins;
mod report;
mod reverse_path;
mod sockets;
mod survey;
mod topic;
mod uplinks;

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    host::policy_files::Store,
    kernel::{Pins, bpffs},
};
pub use fix::{Fix, How};
pub use report::{Check, Finding, Report, Severity, Status, Subject};
pub use topic::Topic;

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pin directory as its user names it; it need not exist.
    pub pin_directory: PathBuf,
    /// How a shell calls this instance of steer, with the options that make it another one than the usual.
    pub steer: String,
    /// Where policies are kept.
    pub store: Store,
    /// Whether the configuration file was named, so that it should be there.
    pub config_is_named: bool,
}

/// Looks at everything. Needs a tokio runtime.
pub async fn examine(options: &Options) -> Report {
    let mut report = Report::default();
    let survey = survey::Survey::read(options, &mut report).await;
    kernel::look(&survey, &mut report);
    cgroups::look_at_patterns(&survey, &mut report);
    if let Err(error) = uplinks::look(&survey, &mut report).await {
        report.failed(Topic::Uplink, Subject::Host, &error);
    }
    names::look(&survey, &mut report);
    if survey.knows_pins {
        look_at_what_is_steered(&survey, &mut report);
    } else {
        for id in topic::OF_WHAT_IS_STEERED {
            report.not_applicable(id, Subject::Host, "what is steered is not known: the pins were not read");
        }
    }
    report.sort();
    report
}

fn look_at_what_is_steered(survey: &survey::Survey, report: &mut Report) {
    pins::look(survey, report);
    let foreign = foreign::Foreign::read(survey);
    foreign.look(report);
    cgroups::look_for_the_unsteered(survey, &foreign, report);
    if let Err(error) = sockets::look(survey, report) {
        report.failed(Topic::OlderSockets, Subject::Host, &error);
    }
}

/// A fix that was applied.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// The finding's check.
    pub id: Topic,
    /// What the finding was about.
    pub subject: Subject,
    /// What was done, as the command that does the same.
    pub fix: Fix,
    /// Why it did not succeed.
    pub error: Option<String>,
}

/// Applies the fixes of a report that are safe. Goes on past errors.
pub fn repair(options: &Options, report: &Report) -> Vec<Applied> {
    let pins = bpffs::locate(&options.pin_directory).map(Pins::new);
    let safe = report.findings.iter().filter_map(|finding| {
        let fix = finding.fix.as_ref().filter(|fix| fix.is_safe())?;
        let error = fix.apply(pins.as_ref()).err().map(|error| format!("{error:#}"));
        Some(Applied { id: finding.id, subject: finding.subject.clone(), fix: fix.clone(), error })
    });
    safe.collect()
}
