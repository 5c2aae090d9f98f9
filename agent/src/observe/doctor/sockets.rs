//! Finds sockets of steered processes that are not held to the uplink: not bound to it, or without the policy's mark. They are older than the policy, were made in another
//! cgroup, or were changed by the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use steer_common::{Owner, policy_flags};

use super::{
    Finding, Fix, Report, Severity, Subject, Topic, command,
    survey::{Attached, Survey},
};
use crate::{
    apply::resolve,
    host::sockets::{self, diag::Socket, holder},
    kernel::PolicyEntry,
    model::{cgroup_path::CgroupPath, quote::quoted, spec::Existing},
    observe::loose::Uplink,
};

/// How many sockets of a process a finding names.
const NAMED: usize = 8;

pub(super) fn check(survey: &Survey, report: &mut Report) -> io::Result<()> {
    let steers = |attached: &&Attached| {
        attached.policy.as_ref().is_some_and(|policy| !policy.exempts() && survey.is_here(policy))
    };
    let steered: Vec<_> = survey.attached.iter().filter(steers).collect();
    let Some(hierarchy) = survey.hierarchy.as_ref().filter(|_| !steered.is_empty()) else {
        report.not_applicable(Topic::OlderSockets, Subject::Host, "no cgroup is steered in this network namespace");
        return Ok(());
    };
    let (sockets, host) = (sockets::by_inode()?, sockets::read_host()?);
    let mut cgroups = cgroups(survey);
    for attached in steered {
        let Some(policy) = &attached.policy else { continue };
        let uplink = Uplink { policy, table: &survey.table, host: &host };
        let held = Held { survey, attached, policy, sockets: &sockets, uplink };
        let (mut processes, mut hidden, mut found) = (0, 0, Vec::new());
        for cgroup in cgroups.remove(&attached.path).unwrap_or_default() {
            for pid in hierarchy.members(cgroup) {
                processes += 1;
                match holder::sockets_of(pid.cast_signed()) {
                    Ok(held_by) => {
                        let inodes = held_by.into_iter().map(|(_, inode)| inode).collect();
                        found.extend(held.finding(pid, cgroup, &inodes));
                    }
                    // Any other error means that the process has ended.
                    Err(error) => hidden += usize::from(error.kind() == io::ErrorKind::PermissionDenied),
                }
            }
        }
        let subject = Subject::Cgroup(attached.path.clone());
        if hidden > 0 {
            let detail = format!("processes whose sockets could not be read: {hidden} of {processes}");
            report.not_applicable(Topic::OlderSockets, subject.clone(), detail);
        }
        let detail = format!("processes whose sockets are held to the uplink: {processes}");
        report.conclude(Topic::OlderSockets, subject, found, detail);
    }
    Ok(())
}

/// The cgroups that each attachment applies to: its own, and those in it without an attachment.
fn cgroups(survey: &Survey) -> BTreeMap<&CgroupPath, Vec<&CgroupPath>> {
    let attached: BTreeSet<_> = survey.attached.iter().map(|attached| &attached.path).collect();
    let mut cgroups: BTreeMap<&CgroupPath, Vec<&CgroupPath>> = BTreeMap::new();
    for path in survey.cgroups.iter().map(|found| &found.path) {
        let holder = path.self_and_ancestors().into_iter().find_map(|path| attached.get(&path).copied());
        if let Some(holder) = holder {
            cgroups.entry(holder).or_default().push(path);
        }
    }
    cgroups
}

/// The sockets held in one attachment's cgroups.
struct Held<'a> {
    survey: &'a Survey,
    attached: &'a Attached,
    policy: &'a PolicyEntry,
    /// By inode.
    sockets: &'a BTreeMap<u32, Socket>,
    uplink: Uplink<'a>,
}

impl Held<'_> {
    fn finding(&self, pid: u32, cgroup: &CgroupPath, inodes: &BTreeSet<u32>) -> Option<Finding> {
        let held = inodes.iter().filter_map(|inode| self.sockets.get(inode));
        let loose: Vec<_> = held.filter(|socket| self.uplink.is_loose(socket)).collect();
        if loose.is_empty() {
            return None;
        }
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned();
        let first = loose.iter().take(NAMED).map(|socket| self.uplink.describe(socket));
        let rest = (loose.len() > NAMED).then(|| format!("and {} more", loose.len() - NAMED));
        let names: Vec<_> = first.chain(rest).collect();
        let (severity, why) = self.severity(&loose);
        Some(Finding {
            id: Topic::OlderSockets,
            severity,
            subject: Subject::Process { pid, comm },
            what: format!(
                "in {cgroup}, it holds sockets that are not {} {}, the uplink of {}: {}",
                self.uplink.required(),
                self.policy.interface(),
                self.policy.name(),
                names.join("; ")
            ),
            why: why.to_owned(),
            fix: Some(self.fix(&loose, pid, cgroup)),
        })
    }

    /// What happens to their packets.
    fn severity(&self, loose: &[&Socket]) -> (Severity, &'static str) {
        let is_dead = |socket: &Socket| socket.bound() != 0 && self.survey.table.name(socket.bound()).is_none();
        let mut alive = loose.iter().filter(|socket| !is_dead(socket)).peekable();
        if alive.peek().is_none() {
            let why = "a socket stays bound to its index, and no interface gets that index again: these sockets can send \
                       nothing any more";
            (Severity::Warning, why)
        } else if alive.any(|socket| self.is_made_elsewhere(socket)) {
            let why = "a socket follows the rules of the cgroup in which it was made: packets of sockets made elsewhere leave \
                       by other links";
            (Severity::Error, why)
        } else if self.policy.record.flags & policy_flags::GUARD != 0 {
            (Severity::Warning, "they are older than the policy: packets that would leave by another link are stopped")
        } else {
            (
                Severity::Error,
                "they are older than the policy, or the program unbound them: their packets leave by other links",
            )
        }
    }

    /// Whether it was made in a cgroup that the policy does not apply to.
    fn is_made_elsewhere(&self, socket: &Socket) -> bool {
        let mut cgroups = self.survey.cgroups.iter();
        let maker = cgroups.find(|found| found.id == socket.cgroup_id).map(|found| &found.path);
        maker.is_none_or(|maker| !maker.is_in(&self.attached.path))
    }

    /// Binds the sockets if steer can; otherwise restarts the process.
    fn fix(&self, loose: &[&Socket], pid: u32, cgroup: &CgroupPath) -> Fix {
        let keeps = resolve::existing(self.policy.record.flags) == Existing::Keep;
        let may_be_bound = loose.iter().all(|socket| !self.is_made_elsewhere(socket));
        if keeps && may_be_bound && self.policy.is_owned_by(Owner::Manual) {
            let mut policy = self.policy.clone();
            policy.record.flags |= policy_flags::EXISTING_REBIND;
            return Fix::command(command::attach(
                &self.survey.steer,
                &self.survey.config.defaults,
                &self.attached.path,
                &policy,
            ));
        }
        restart(pid, cgroup)
    }
}

/// Restarts a service, so that it makes new sockets, which are bound. Nobody knows how another process is started.
fn restart(pid: u32, cgroup: &CgroupPath) -> Fix {
    let of_a_user = cgroup.parts().any(|part| part.starts_with("user@"));
    match cgroup.parts().find(|part| part.ends_with(".service")).filter(|_| !of_a_user) {
        Some(unit) => Fix::command(format!("systemctl restart {}", quoted(unit))),
        None => Fix::advice(format!(
            "restart the program of process {pid}; `existing = \"rebind\"` in the policy binds such sockets when the policy begins"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fix::How, restart};

    #[test]
    fn a_unit_is_restarted_and_a_process_is_not_killed() {
        let of = |path: &str| restart(7, &path.parse().expect("a path")).how;
        let command = r#"systemctl restart "a\\x2db.service""#;
        assert_eq!(of(r"/system.slice/a\x2db.service/inner"), How::Command(command.to_owned()));
        for path in ["/user.slice/user-1.slice/user@1.service/app.slice/a.service", "/steer-exec-1-0"] {
            let How::Advice(advice) = of(path) else { panic!("{path}: a command") };
            assert!(advice.starts_with("restart the program of process 7; "), "{advice}");
        }
    }
}
