//! Checks that names are looked up through the uplink.

use std::collections::BTreeSet;

use super::{
    Finding, Fix, Report, Severity, Subject, Topic,
    survey::{Policy, Survey},
};
use crate::{
    host::resolver::{self, Detour},
    observe::link_resolver,
};

pub(super) fn check(survey: &Survey, report: &mut Report) {
    let policies = survey.policies();
    check_link_resolvers(&policies, report);
    let detours = resolver::detours();
    for id in [Topic::LocalResolver, Topic::NssResolve, Topic::Nscd] {
        if policies.is_empty() {
            report.not_applicable(id, Subject::Host, "no policy steers anything");
            continue;
        }
        let mut found = Vec::new();
        for detour in detours.iter().filter(|detour| topic(detour) == id) {
            for reaches_host in [false, true] {
                let concerned = policies.iter().filter(|policy| {
                    detour.concerns(&policy.resolvers) && !(policy.of_link.is_some() && detour.ends_with_dns())
                });
                // For the others, it makes no difference whether a policy reaches this host.
                let concerned =
                    concerned.filter(|policy| (policy.reach.local.host && detour.ends_with_dns()) == reaches_host);
                let names: BTreeSet<_> = concerned.map(|policy| policy.name.as_str()).collect();
                if !names.is_empty() {
                    found.push(finding(id, detour, reaches_host, &Vec::from_iter(names).join(", ")));
                }
            }
        }
        report.conclude(id, Subject::Host, found, "no steered program uses one");
    }
}

/// Finds policies that ask for the resolvers of their link, which has none.
fn check_link_resolvers(policies: &[Policy], report: &mut Report) {
    let missing = policies.iter().filter(|policy| policy.of_link == Some(true)).map(|policy| Finding {
        id: Topic::LinkResolver,
        severity: Severity::Error,
        subject: Subject::Uplink(policy.uplink.clone()),
        what: format!("{}, but policy {} has dns = \"link\"", link_resolver::why(&policy.uplink), policy.name),
        why: "the DNS queries of its programs are stopped".to_owned(),
        fix: Some(Fix::advice(format!(
            "`{}`, or dns = [\"ADDRESS\"] in the policy",
            link_resolver::command(&policy.uplink)
        ))),
    });
    if policies.iter().any(|policy| policy.of_link.is_some()) {
        report.conclude(Topic::LinkResolver, Subject::Host, missing.collect(), "each link has a resolver");
    } else {
        report.not_applicable(Topic::LinkResolver, Subject::Host, "no policy has dns = \"link\"");
    }
}

fn topic(detour: &Detour) -> Topic {
    match detour {
        Detour::LocalServer(_) => Topic::LocalResolver,
        Detour::Resolved => Topic::NssResolve,
        Detour::Nscd => Topic::Nscd,
    }
}

fn finding(id: Topic, detour: &Detour, reaches_host: bool, policies: &str) -> Finding {
    let (severity, what, why, fix) = match detour {
        Detour::LocalServer(address) if reaches_host => (
            Severity::Warning,
            format!(
                "/etc/resolv.conf names {address}, an address of this host, which {policies} reaches, and `dns` is not set there"
            ),
            "this host's resolver asks by this host's own routes: names are not looked up by the uplink",
            Fix::advice(
                "name a resolver behind the uplink: `dns = [\"RESOLVER\"]` in the policy, `--dns RESOLVER` with `steer attach`",
            ),
        ),
        Detour::LocalServer(address) => (
            Severity::Error,
            format!("/etc/resolv.conf names {address}, an address of this host, and `dns` is not set in {policies}"),
            "steered programs get no answer from it; programs with CAP_NET_RAW get answers that bypass the uplink",
            Fix::advice(
                "name a resolver behind the uplink: `dns = [\"RESOLVER\"]` in the policy, `--dns RESOLVER` with `steer attach`",
            ),
        ),
        Detour::Resolved => (
            Severity::Warning,
            format!("/etc/nsswitch.conf has `resolve` for hosts, which concerns {policies}"),
            "systemd-resolved looks names up, and bypasses the uplink, whatever `dns` is set to",
            Fix::command(
                r"sed -i -E '/^[[:space:]]*hosts:/s/[[:space:]]resolve([[:space:]]*\[[^]]*\])?//' /etc/nsswitch.conf",
            ),
        ),
        Detour::Nscd => (
            Severity::Warning,
            format!("nscd runs, which concerns {policies}"),
            "nscd looks names up, and bypasses the uplink, whatever `dns` is set to",
            Fix::command(
                r"sed -i -E 's/^([[:space:]]*enable-cache[[:space:]]+hosts[[:space:]]+)yes/\1no/' /etc/nscd.conf && systemctl restart nscd",
            ),
        ),
    };
    Finding { id, severity, subject: Subject::Host, what, why: why.to_owned(), fix: Some(fix) }
}
