//! The text of `steer status`: the verdict, then errors, then the policies, the worst first.
//!
//! **Invariant:** on a terminal, no line about a policy is longer than the terminal is wide; elsewhere nothing is shortened.

use std::cmp::Reverse;

use humansize::{DECIMAL, format_size};

use super::output::{Unwritten, columns, paragraph, say};
use crate::{
    model::{lines, quote::shown, uplink::health::State},
    observe::{
        state::{MemberStatus, UplinkState},
        status::{CgroupStatus, LinkTraffic, PolicyStatus, Status},
        uplinks::HealthStatus,
    },
};

/// The headers. The last two are numbers.
const HEADERS: [&str; 5] = ["POLICY", "UPLINK", "STATE", "SOCKETS", "STOPPED"];
/// The shortest name that is shown.
const SHORTEST: usize = 8;

pub(super) fn print(status: &Status) -> Result<(), Unwritten> {
    paragraph(&shown(&status.verdict).to_string(), 0)?;
    for mistake in status.configuration.iter().flat_map(|wrong| wrong.lines().skip(1)) {
        paragraph(&format!("error: {}", shown(mistake)), 2)?;
    }
    for error in errors(status) {
        paragraph(&format!("error: {error}"), 2)?;
    }
    for released in status.unsteered.iter().filter(|unsteered| unsteered.released) {
        let (path, policy) = (&released.path, shown(&released.policy));
        let text = "is not steered since `steer off`; the next daemon steers it again";
        paragraph(&format!("warning: {path}, policy {policy}, {text} (`steer off --forget` prevents that)"), 2)?;
    }
    if !status.policies.is_empty() {
        say!("")?;
        table(status, columns()).iter().try_for_each(|line| say!("{line}"))?;
        say!("")?;
    }
    for cgroup in &status.other_versions {
        let path = cgroup.path.as_ref().map_or_else(|| cgroup.id.to_string(), ToString::to_string);
        say!("{path} is steered by another version of steer")?;
    }
    for elsewhere in elsewhere(status, false) {
        paragraph(&elsewhere, 2)?;
    }
    for what in &status.not_covered {
        paragraph(&format!("not covered: {what}"), 2)?;
    }
    for warning in &status.warnings {
        paragraph(&format!("warning: {warning}"), 2)?;
    }
    match (&status.silent, status.daemon) {
        (Some(silent), _) => paragraph(&format!("daemon: running, but {silent}"), 2),
        (None, true) => say!("daemon: running"),
        (None, false) => say!("daemon: not running"),
    }
}

fn errors(status: &Status) -> Vec<String> {
    let unsteered = status.unsteered.iter().filter(|unsteered| !unsteered.released).map(|unsteered| {
        format!("{} is not steered, although policy {} names it", unsteered.path, shown(&unsteered.policy))
    });
    let stale = status
        .policies
        .iter()
        .filter_map(|policy| Some(format!("policy {}: {}", shown(&policy.name), shown(policy.stale.as_ref()?))));
    let blind = status.blind_spots.iter().map(ToString::to_string);
    unsteered.chain(elsewhere(status, true)).chain(stale).chain(blind).collect()
}

/// Processes of steered cgroups in other network namespaces: those that get out by other links, or the others.
fn elsewhere(status: &Status, leaves: bool) -> Vec<String> {
    let cgroups = status.policies.iter().flat_map(|policy| policy.cgroups.iter().map(move |cgroup| (policy, cgroup)));
    let each = cgroups.flat_map(|(policy, cgroup)| cgroup.elsewhere.iter().map(move |it| (policy, cgroup, it)));
    let of = each.filter(|(.., elsewhere)| elsewhere.leaves == leaves);
    let text = |(policy, cgroup, elsewhere): (&PolicyStatus, &CgroupStatus, _)| {
        let path = cgroup.path.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("{path}, policy {}: {elsewhere}", shown(&policy.name))
    };
    of.map(text).collect()
}

/// The policies, the worst first.
fn table(status: &Status, width: Option<usize>) -> Vec<String> {
    let mut policies: Vec<_> = status.policies.iter().collect();
    policies.sort_by_key(|policy| Reverse(policy.severity()));
    let rows: Vec<_> = policies.iter().map(|policy| row(policy)).collect();
    let mut columns = HEADERS.map(str::len);
    for row in &rows {
        for (column, cell) in columns.iter_mut().zip(row) {
            *column = (*column).max(cell.chars().count());
        }
    }
    if let Some(width) = width {
        // The names give way.
        let fixed: usize = columns[2..].iter().map(|column| column + 2).sum::<usize>() + 2;
        let share = width.saturating_sub(fixed) / 2;
        columns[..2].iter_mut().for_each(|column| *column = (*column).min(share.max(SHORTEST)));
    }
    let line = |cells: &[String; 5]| {
        let [name, uplink, state, sockets, stopped] = cells;
        let (first, second) = (short(name, columns[0], false), short(uplink, columns[1], false));
        format!(
            "{first:0$}  {second:1$}  {state:2$}  {sockets:>3$}  {stopped:>4$}",
            columns[0], columns[1], columns[2], columns[3], columns[4]
        )
    };
    let mut lines = vec![line(&HEADERS.map(str::to_owned))];
    for (policy, row) in policies.iter().zip(&rows) {
        lines.push(line(row));
        lines.extend(details(policy).iter().flat_map(|detail| wrapped(detail, width)));
        lines.extend(policy.cgroups.iter().map(cgroup).map(|detail| match width {
            Some(width) => format!("  {}", short(&detail, width - 2, true)),
            None => format!("  {detail}"),
        }));
    }
    lines
}

fn row(policy: &PolicyStatus) -> [String; 5] {
    let uplink = match policy.interface.as_deref() {
        None => "none (exempt)".to_owned(),
        // No link has an empty name, so this policy stays closed.
        Some("") => "none (closed)".to_owned(),
        Some(name) => shown(name).to_string(),
    };
    let state = policy.state.map_or("-", UplinkState::text).to_owned();
    let stopped = ["closed_", "refused_", "stopped_"].iter().map(|prefix| sum(policy, prefix)).sum::<u64>();
    [shown(&policy.name).to_string(), uplink, state, sum(policy, "bound").to_string(), stopped.to_string()]
}

/// What a policy does besides, and its members.
fn details(policy: &PolicyStatus) -> Vec<String> {
    let list = |name: &str, items: Vec<String>| (!items.is_empty()).then(|| format!("{name} {}", items.join(", ")));
    let except = match policy.except.len() {
        0 => None,
        1 => Some("1 exception".to_owned()),
        count => Some(format!("{count} exceptions")),
    };
    let left = sum(policy, "left_netns");
    let level = policy.interface.as_ref().map(|_| format!("{:?}", policy.enforce).to_lowercase());
    let observed = sum(policy, "observed");
    let keys = [
        level,
        (observed > 0).then(|| format!("strict would have stopped {observed}")),
        list("dns", policy.dns.iter().map(ToString::to_string).collect()),
        list("local", policy.local.iter().map(ToString::to_string).collect()),
        except,
        (left > 0).then(|| format!("left alone in other network namespaces: {left}")),
    ];
    let keys = keys.into_iter().flatten().collect::<Vec<_>>().join("; ");
    // A family that no member tells of is not shown.
    let is_there = |health: &Option<HealthStatus>| health.as_ref().is_some_and(HealthStatus::has_family);
    let has_v4 = policy.members.iter().any(|member| is_there(&member.ipv4));
    let has_v6 = policy.members.iter().any(|member| is_there(&member.ipv6));
    let members = policy.members.iter().map(|of| member(of, [has_v4 || !has_v6, has_v6 || !has_v4]));
    let traffic = policy.traffic.iter().map(traffic);
    [keys].into_iter().filter(|keys| !keys.is_empty()).chain(members).chain(traffic).collect()
}

fn traffic(traffic: &LinkTraffic) -> String {
    let amount = |bytes: u64, packets: u64| {
        let bytes = format_size(bytes, DECIMAL);
        if packets == 1 { format!("{bytes} in 1 packet") } else { format!("{bytes} in {packets} packets") }
    };
    format!(
        "{}: sent {}, received {}",
        shown(&traffic.link()),
        amount(traffic.sent_bytes, traffic.sent_packets),
        amount(traffic.received_bytes, traffic.received_packets)
    )
}

/// A member: its link if that is the fault, or else its health, and whether sockets get it; each family on its own if they differ.
fn member(member: &MemberStatus, families: [bool; 2]) -> String {
    let of = |health: &Option<HealthStatus>| {
        let known = health.as_ref().filter(|health| health.state != "unknown");
        let why = known.filter(|health| health.state != State::Up.to_string());
        let why = why.map_or_else(String::new, |health| format!(" ({})", health.reason));
        let state = match known {
            Some(health) if !member.state.is_closed() => health.state.as_str(),
            _ => return member.state.text().to_owned(),
        };
        let chosen = if known.is_some_and(|health| health.share > 0.0) { ", chosen" } else { "" };
        format!("{state}{why}{chosen}")
    };
    let (v4, v6) = (of(&member.ipv4), of(&member.ipv6));
    let name = shown(&member.interface);
    match families {
        [true, false] => format!("{name} {v4}"),
        [false, true] => format!("{name} {v6}"),
        _ if v4 == v6 => format!("{name} {v4}"),
        _ => format!("{name} IPv4: {v4}; IPv6: {v6}"),
    }
}

fn cgroup(cgroup: &CgroupStatus) -> String {
    let removed = || {
        let sockets = if cgroup.programs.is_empty() { "" } else { "; sockets of it are still open" };
        format!("a removed cgroup, id {}{sockets}", cgroup.id)
    };
    let path = cgroup.path.as_ref().map_or_else(removed, ToString::to_string);
    let manual = if cgroup.manual { " (manual)" } else { "" };
    let broken = if cgroup.complete || cgroup.path.is_none() { "" } else { " (INCOMPLETE)" };
    format!("{path}{manual}{broken}")
}

/// A detail in lines that fit: they end between words, and keep the beginning of a word that is too long.
fn wrapped(detail: &str, width: Option<usize>) -> Vec<String> {
    let text = lines::wrapped(&format!("  {detail}"), width, 4);
    text.lines().map(|line| width.map_or_else(|| line.to_owned(), |width| short(line, width, false))).collect()
}

/// Text of at most `width` characters. `keep_end`: the end of a path says more than its beginning.
fn short(text: &str, width: usize, keep_end: bool) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    if keep_end {
        let end: String = text.chars().skip(count - kept).collect();
        format!("…{end}")
    } else {
        let start: String = text.chars().take(kept).collect();
        format!("{start}…")
    }
}

fn sum(policy: &PolicyStatus, prefix: &str) -> u64 {
    policy.counters.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::{short, table};
    use crate::observe::status::Status;

    fn status() -> Status {
        let policy = |name: &str, interface: &str, state: &str, path: &str| {
            serde_json::json!({
                "slot": 1, "name": name, "origin": "config", "interface": interface, "ifindex": 1, "netns_cookie": 1,
                "cgroups": [{"path": path, "id": 1, "complete": true, "programs": [], "manual": false}],
                "dns": ["10.64.0.1"], "existing": "keep", "enforce": "strict", "state": state,
                "counters": {"bound": 12, "stopped_egress": 1_000_000, "closed_missing": 4},
            })
        };
        let long = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-12345678.scope";
        let policies = [
            policy("second-line", "eth1", "up", "/backup.slice"),
            policy(
                "a-policy-with-a-very-long-name-that-somebody-chose",
                "an-alternative-name-of-a-link",
                "missing",
                long,
            ),
        ];
        serde_json::from_value(serde_json::json!({
            "daemon": true, "policies": policies, "other_versions": [], "not_covered": [], "warnings": [],
        }))
        .expect("a status")
    }

    #[test]
    fn fits_the_terminal_and_shows_the_worst_first() {
        for width in [60, 80] {
            let lines = table(&status(), Some(width));
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:#?}");
            assert!(lines[1].starts_with("a-policy-") && lines[1].contains("missing") && lines[1].ends_with("1000004"));
            assert!(
                lines.iter().any(|line| line.starts_with("  …") && line.ends_with("firefox-12345678.scope")),
                "{lines:#?}"
            );
            assert!(lines[4].starts_with("second-line ") && lines[4].contains(" eth1 "), "{lines:#?}");
        }
        let whole = table(&status(), None);
        assert!(whole[1].contains("somebody-chose  an-alternative-name-of-a-link  missing"), "{whole:#?}");
    }

    #[test]
    fn a_member_keeps_its_name() {
        let health = |state: &str, reason: &str| serde_json::json!({"state": state, "reason": reason, "since_s": 1, "share": 0.0});
        let mut status = status();
        let none = health("down", "no address of this family");
        status.policies[0].members = serde_json::from_value(serde_json::json!([
            {"interface": "a0", "ifindex": 1, "chosen": false, "state": "up",
             "ipv4": health("down", "probes are not answered"), "ipv6": none},
            {"interface": "b0", "ifindex": 2, "chosen": true, "state": "up",
             "ipv4": health("up", "it works"), "ipv6": health("suspect", "many connections fail")},
        ]))
        .expect("members");
        let lines = table(&status, Some(60));
        assert!(lines.iter().all(|line| line.chars().count() <= 60), "{lines:#?}");
        let first =
            lines.iter().position(|line| line.starts_with("  a0 IPv4: down (probes are not answered)")).expect("a0");
        assert!(lines[first + 1].starts_with("    "), "{lines:#?}");
        // Nobody has IPv6.
        status.policies[0].members[1].ipv6 = serde_json::from_value(none).expect("health");
        let lines = table(&status, Some(60));
        assert!(lines.contains(&"  a0 down (probes are not answered)".to_owned()), "{lines:#?}");
    }

    #[test]
    fn shortens_at_either_end() {
        assert_eq!((short("abcdef", 4, false).as_str(), short("abcdef", 4, true).as_str()), ("abc…", "…def"));
        assert_eq!(short("abc", 3, true), "abc");
    }
}
