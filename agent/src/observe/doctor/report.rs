//! The checks that were made, and the findings.

use std::fmt;

use serde::Serialize;

use super::{Fix, Topic};
use crate::model::{cgroup_path::CgroupPath, quote::shown};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something is not steered as its policy requires, or cannot work.
    Error,
    /// Something is wrong, and will cause a fault.
    Warning,
    /// Not a fault, but useful when searching for one.
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
    /// An uplink, by its name in the policy.
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
            Self::Process { pid, comm } => write!(formatter, "process {pid} ({})", shown(comm)),
        }
    }
}

/// A fault, or a fact that matters for one.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The check that found it.
    pub id: Topic,
    /// How much it matters.
    pub severity: Severity,
    /// Its subject.
    pub subject: Subject,
    /// What is wrong.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// The repair. Absent if there is none.
    pub fix: Option<Fix>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No fault.
    Ok,
    /// There is a finding.
    Finding,
    /// There is nothing to check.
    NotApplicable,
}

/// One check that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its stable name.
    pub id: Topic,
    /// What was checked.
    pub subject: Subject,
    /// Its result.
    pub status: Status,
    /// What was found, or why there was nothing to check.
    pub detail: String,
}

/// All checks and findings. The field names are stable.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// The most severe first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether all findings are information only.
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

    /// Adds the findings of one check. Without findings, the check is ok.
    pub(super) fn conclude(&mut self, id: Topic, subject: Subject, found: Vec<Finding>, ok: impl Into<String>) {
        if found.is_empty() {
            self.ok(id, subject, ok);
        }
        for finding in found {
            self.find(finding);
        }
    }

    /// Adds a finding for a check that failed.
    pub(super) fn failed(&mut self, id: Topic, subject: Subject, error: &dyn std::error::Error) {
        self.find(Finding {
            id,
            severity: Severity::Warning,
            subject,
            what: format!("the check failed: {error}"),
            why: "faults that this check finds may exist".to_owned(),
            fix: None,
        });
    }

    pub(super) fn sort(&mut self) {
        self.findings.sort_by_key(|finding| finding.severity);
    }
}
