//! Checks whether this kernel supports steer, by trying its features instead of reading its configuration.

use std::path::Path;

use steer_common::policy_flags;

use super::{
    Finding, Fix, Report, Severity, Subject, Topic,
    survey::{Attached, Survey},
};
use crate::{
    host::cgroup::scope,
    kernel::{self, Unguarded, inspect},
    model::{cgroup_path::CgroupPath, spec::Enforce},
};

const OLDEST: (u32, u32) = (5, 10);
const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn check(survey: &Survey, report: &mut Report) {
    let release = kernel::release();
    let old = kernel::version(&release).is_some_and(|version| version < OLDEST);
    let what = format!("this is Linux {release}, but steer needs 5.10 or later");
    conclude(report, Topic::Kernel, old.then_some(what), &format!("Linux {release}"));

    let missing = (!Path::new(BTF).exists()).then(|| format!("{BTF} does not exist (CONFIG_DEBUG_INFO_BTF)"));
    conclude(report, Topic::Btf, missing, BTF);

    check_programs(survey, report);
    check_security_hooks(survey, report);
}

/// The checks that need the capabilities to load programs.
fn check_programs(survey: &Survey, report: &mut Report) {
    let root = survey.hierarchy.as_ref().map(|hierarchy| hierarchy.open(&CgroupPath::root()));
    let Some(root) = root.filter(|_| survey.is_privileged) else {
        for id in [Topic::KernelHooks, Topic::KernelMaps] {
            report.not_applicable(id, Subject::Host, "needs the capabilities, and a readable cgroup2 hierarchy");
        }
        return;
    };
    match root {
        Ok(root) => {
            let missing = inspect::missing_hooks(&root);
            let what = format!(
                "the kernel lacks the hooks {} for programs on cgroups (CONFIG_CGROUP_BPF)",
                missing.join(", ")
            );
            conclude(
                report,
                Topic::KernelHooks,
                (!missing.is_empty()).then_some(what),
                "the kernel has all hooks that steer uses",
            );
        }
        Err(error) => report.failed(Topic::KernelHooks, Subject::Host, &error),
    }
    let missing = inspect::missing_maps();
    let what = (!missing.is_empty()).then(|| format!("the kernel lacks the map types {}", missing.join(", ")));
    conclude(report, Topic::KernelMaps, what, "the kernel has all map types that steer uses");
}

fn conclude(report: &mut Report, id: Topic, wrong: Option<String>, ok: &str) {
    let finding = wrong.map(|what| Finding {
        id,
        severity: Severity::Error,
        subject: Subject::Host,
        what,
        why: "the programs of steer do not load, so nothing can be steered".to_owned(),
        fix: Some(Fix::advice("boot a distribution kernel of 2021 or later")),
    });
    report.conclude(id, Subject::Host, finding.into_iter().collect(), ok);
}

fn check_security_hooks(survey: &Survey, report: &mut Report) {
    let strict = survey.in_force.iter().filter(|entry| entry.record.flags & policy_flags::GUARD != 0);
    let strict: Vec<u32> = strict.map(|entry| entry.slot).collect();
    let in_force = !strict.is_empty();
    // A command of `exec` has a filter of its own.
    let is_open =
        |attached: &Attached| strict.contains(&attached.attachment.record.policy) && !scope::is_scope(&attached.path);
    let severity = if survey.attached.iter().any(is_open) { Severity::Warning } else { Severity::Info };
    let configured = survey.config.policies.iter().any(|policy| policy.target.enforcement.enforce == Enforce::Strict);
    let unguarded = match &survey.pins {
        Some(pins) if in_force => kernel::unguarded(pins),
        _ => kernel::unguarded_by_kernel(),
    };
    // What the kernel alone shows is said before the first strict policy.
    if !in_force && !configured && !matches!(unguarded, Some(Unguarded::Inactive | Unguarded::Old(_))) {
        report.not_applicable(Topic::LsmBpf, Subject::Host, "no policy is strict");
        return;
    }
    let advice = match &unguarded {
        None => {
            report.ok(Topic::LsmBpf, Subject::Host, "sockets past the IP stack are refused");
            return;
        }
        Some(Unguarded::Unknown(error)) => {
            report.failed(Topic::LsmBpf, Subject::Host, error);
            return;
        }
        Some(Unguarded::Inactive) => {
            "add `bpf` to the end of the kernel parameter lsm= and reboot; `cat /sys/kernel/security/lsm` shows the active modules"
        }
        Some(Unguarded::Old(_)) => "boot Linux 6.0 or later, with `bpf` among the active security modules",
        Some(Unguarded::NotLoaded) if survey.daemon => {
            "use `steer exec` or `steer unit`, which have a filter of their own; the log of the daemon says what the kernel lacks"
        }
        Some(Unguarded::NotLoaded) => "start the daemon; if the kernel lacks something, its log says what",
    };
    report.find(Finding {
        id: Topic::LsmBpf,
        severity,
        subject: Subject::Host,
        what: match unguarded {
            Some(Unguarded::NotLoaded) if survey.daemon => {
                "this kernel does not accept the programs of steer on its security hooks".to_owned()
            }
            Some(Unguarded::NotLoaded) => "the programs on the kernel's security hooks are not loaded".to_owned(),
            why => why.map_or_else(String::new, |why| why.to_string()),
        },
        why: "a strict policy does not refuse packet and XDP sockets, with which a process with CAP_NET_RAW bypasses it, nor the multicast \
              groups that 32 bit system calls join on other links. `steer exec` refuses both by a seccomp filter, and `steer unit` by \
              settings of the unit; other cgroups are not covered"
            .to_owned(),
        fix: Some(Fix::advice(advice)),
    });
}
