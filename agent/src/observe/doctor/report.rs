//! What was looked at, and what was found.

use std::fmt;

use serde::Serialize;

use super::{Fix, Topic};
use crate::model::cgroup_path::CgroupPath;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something is not steered as its policy says, or cannot work.
    Error,
    /// Something is not as it should be, and will be in the way of somebody.
    Warning,
    /// No fault; whoever looks for one should know it.
    Info,
}

/// What a check or a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// This machine, as the calling process sees it.
    Host,
    /// A file, or a directory of pins.
    File(String),
    /// A policy, by name.
    Policy(String),
    /// A cgroup.
    Cgroup(CgroupPath),
    /// A policy's interface, by the name that the policy has for it.
    Uplink(String),
    /// A process.
    Process {
        /// Its id.
        pid: u32,
        /// Its name, at most 15 bytes.
        comm: String,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => write!(formatter, "this host"),
            Self::File(path) => write!(formatter, "{path}"),
            Self::Policy(name) => write!(formatter, "policy {name}"),
            Self::Cgroup(path) => write!(formatter, "cgroup {path}"),
            Self::Uplink(name) => write!(formatter, "uplink {name}"),
            Self::Process { pid, comm } => write!(formatter, "process {pid} ({comm})"),
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The check that found it.
    pub id: Topic,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about.
    pub subject: Subject,
    /// What is the case.
    pub what: String,
    /// What follows from it.
    pub why: String,
    /// What mends it; absent where nothing does.
    pub fix: Option<Fix>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All is well.
    Ok,
    /// There is a finding.
    Finding,
    /// There is nothing to look at.
    NotApplicable,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its stable name.
    pub id: Topic,
    /// What was looked at.
    pub subject: Subject,
    /// How it came out.
    pub status: Status,
    /// What was seen, or why there was nothing to see.
    pub detail: String,
}

/// Everything that was looked at. The field names are stable.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which it was looked at.
    pub checks: Vec<Check>,
    /// What is not well, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing was found that is more than information.
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Info)
    }

    pub(super) fn ok(&mut self, id: Topic, subject: Subject, detail: impl Into<String>) {
        self.checks.push(Check { id, subject, status: Status::Ok, detail: detail.into() });
    }

    pub(super) fn not_applicable(&mut self, id: Topic, subject: Subject, detail: impl Into<String>) {
        self.checks.push(Check { id, subject, status: Status::NotApplicable, detail: detail.into() });
    }

    pub(super) fn find(&mut self, finding: Finding) {
        let (subject, detail) = (finding.subject.clone(), finding.what.clone());
        self.checks.push(Check { id: finding.id, subject, status: Status::Finding, detail });
        self.findings.push(finding);
    }

    /// Takes the findings of one check in; without any, all is well.
    pub(super) fn conclude(&mut self, id: Topic, subject: Subject, found: Vec<Finding>, ok: impl Into<String>) {
        if found.is_empty() {
            self.ok(id, subject, ok);
        }
        for finding in found {
            self.find(finding);
        }
    }

    /// What could not be looked at is not well either.
    pub(super) fn failed(&mut self, id: Topic, subject: Subject, error: &dyn std::error::Error) {
        self.find(Finding {
            id,
            severity: Severity::Warning,
            subject,
            what: format!("it could not be looked at: {error}"),
            why: "what is wrong there, if anything, is not known".to_owned(),
            fix: None,
        });
    }

    pub(super) fn sort(&mut self) {
        self.findings.sort_by_key(|finding| finding.severity);
    }
}
