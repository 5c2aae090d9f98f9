//! The metrics, in the Prometheus text format.
//!
//! **Invariant:** each request reads what is in force. Names and units follow the conventions of Prometheus, and are stable.

use std::collections::BTreeMap;

use prometheus::{Encoder as _, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TEXT_FORMAT, TextEncoder};

use crate::{
    model::uplink::Family,
    observe::{
        events::Tally,
        status::{Origin, Status},
        uplinks::UplinkStatus,
    },
};

/// The content type of the text.
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// Counters of new sockets, by what was done with them.
const SOCKETS: [&str; 7] =
    ["bound", "closed_missing", "closed_unknown", "refused_netns", "left_netns", "left_exempt", "left_nested"];

/// Counters that are a metric of their own, with its name and its help.
const PLAIN: [(&str, &str, &str); 5] = [
    ("restored", "steer_bindings_restored_total", "Lost bindings that the connect hook has restored."),
    (
        "observed",
        "steer_observed_total",
        "Calls and packets that strict would stop, and that passed because the policy observes.",
    ),
    (
        "moved_out",
        "steer_moved_out_total",
        "Processes that were moved out of the policy's cgroups, to one that no policy steers.",
    ),
    (
        "unreachable_bind",
        "steer_unreachable_binds_total",
        "Sockets that were bound to a loopback address, where nothing reaches them.",
    ),
    (
        "foreign_source",
        "steer_foreign_sources_total",
        "Sockets that were bound to an address of another link, to which no answer comes.",
    ),
];

/// The text of the metrics. `healthy` is the daemon's own state.
pub fn render(
    status: &Status,
    uplinks: &[UplinkStatus],
    tally: &Tally,
    healthy: bool,
) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    let gauge = |name, help, labels| {
        let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok::<_, prometheus::Error>(gauge)
    };
    let counter = |name, help, labels| {
        let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(counter.clone()))?;
        Ok::<_, prometheus::Error>(counter)
    };
    let build = gauge("steer_build_info", "The version of the daemon; always 1.", &["version"])?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let health =
        gauge("steer_healthy", "0 while a failed operation is retried, or the configuration has errors.", &[])?;
    health.with_label_values::<&str>(&[]).set(healthy.into());

    let blind = gauge("steer_blind_spots", "Cgroups in which the daemon does not see new cgroups, at most 32.", &[])?;
    blind.with_label_values::<&str>(&[]).set(i64::try_from(status.blind_spots.len()).unwrap_or(i64::MAX));

    let policy = ["policy", "origin"];
    let present =
        gauge("steer_uplink_present", "Whether the policy's uplink exists.", &["policy", "origin", "interface"])?;
    let cgroups = gauge("steer_steered_cgroups", "Cgroups that the policy is attached to.", &policy)?;
    let incomplete =
        gauge("steer_incomplete_cgroups", "Cgroups of the policy on which a program is missing.", &policy)?;
    let sockets =
        counter("steer_sockets_total", "New sockets, by what was done with them.", &["policy", "origin", "result"])?;
    let stopped = counter(
        "steer_stopped_total",
        "Calls and packets that were stopped, by the reason, as `steer events --explain` has it.",
        &["policy", "origin", "reason"],
    )?;
    let mut plain = BTreeMap::new();
    for (name, metric, help) in PLAIN {
        plain.insert(name, counter(metric, help, &policy)?);
    }
    let labels = ["policy", "origin", "interface", "direction"];
    let bytes = counter(
        "steer_policy_bytes_total",
        "Bytes of IP packets of policies with `account`, by link and direction (sent or received).",
        &labels,
    )?;
    let packets = counter("steer_policy_packets_total", "Their packets.", &labels)?;
    let elsewhere = gauge(
        "steer_unsteered_processes",
        "Processes of the policy's cgroups in other network namespaces, whose traffic leaves unsteered.",
        &policy,
    )?;
    let unsteered =
        gauge("steer_unsteered_cgroups", "Cgroups that the policy names and nothing steers.", &["policy", "cgroup"])?;
    for found in &status.unsteered {
        unsteered.with_label_values(&[found.policy.as_str(), found.path.as_str()]).set(1);
    }
    for shown in &status.policies {
        let origin = match shown.origin {
            Origin::Config => "config",
            Origin::Manual => "manual",
        };
        let labels = [shown.name.as_str(), origin];
        for (interface, ifindex) in shown.uplinks() {
            present.with_label_values(&[labels[0], origin, interface]).set(ifindex.is_some().into());
        }
        // Two manual policies may have the same name: add them up.
        let count = |some: usize| i64::try_from(some).unwrap_or(i64::MAX);
        cgroups.with_label_values(&labels).add(count(shown.cgroups.len()));
        incomplete
            .with_label_values(&labels)
            .add(count(shown.cgroups.iter().filter(|cgroup| !cgroup.complete).count()));
        let leaving = shown.cgroups.iter().flat_map(|cgroup| &cgroup.elsewhere).filter(|elsewhere| elsewhere.leaves);
        elsewhere.with_label_values(&labels).add(count(leaving.map(|elsewhere| elsewhere.processes).sum()));
        for traffic in &shown.traffic {
            let link = traffic.link();
            for (direction, of_bytes, of_packets) in [
                ("sent", traffic.sent_bytes, traffic.sent_packets),
                ("received", traffic.received_bytes, traffic.received_packets),
            ] {
                let labels = [labels[0], origin, link.as_str(), direction];
                bytes.with_label_values(&labels).inc_by(of_bytes);
                packets.with_label_values(&labels).inc_by(of_packets);
            }
        }
        for (name, &count) in &shown.counters {
            if SOCKETS.contains(&name.as_str()) {
                sockets.with_label_values(&[labels[0], origin, name]).inc_by(count);
            } else if name.starts_with("stopped_") {
                stopped.with_label_values(&[labels[0], origin, name]).inc_by(count);
            } else if let Some(counter) = plain.get(name.as_str()) {
                counter.with_label_values(&labels).inc_by(count);
            }
        }
    }
    render_uplinks(&registry, uplinks)?;
    render_switches(&registry, tally)?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

/// The groups of uplinks.
fn render_uplinks(registry: &Registry, uplinks: &[UplinkStatus]) -> Result<(), prometheus::Error> {
    let gauge = |name, help, labels: &[&str]| {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok::<_, prometheus::Error>(gauge)
    };
    let labels = ["uplink", "interface", "family"];
    let state = gauge(
        "steer_uplink_state",
        "The state of a member of a group of uplinks: 1 for the state that it has.",
        &["uplink", "interface", "family", "state"],
    )?;
    let share = gauge("steer_uplink_share_ratio", "The part of new sockets that get the member.", &labels)?;
    let latency = gauge("steer_uplink_probe_latency_seconds", "The time of the member's last answer.", &labels)?;
    let lost =
        gauge("steer_uplink_probe_lost_ratio", "The part of the last 32 rounds of probes that failed.", &labels)?;
    for (group, member) in uplinks.iter().flat_map(|group| group.members.iter().map(move |member| (group, member))) {
        for (family, name) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            let health = member.health(family);
            let labels = [group.name.as_str(), member.interface.as_str(), name];
            for known in ["up", "suspect", "down", "held"] {
                let labels = [labels[0], labels[1], labels[2], known];
                state.with_label_values(&labels).set(f64::from(u8::from(health.state == known)));
            }
            share.with_label_values(&labels).set(health.share / 100.0);
            let Some(probes) = &health.probes else { continue };
            if let Some(ms) = probes.latency_ms {
                latency.with_label_values(&labels).set(ms / 1000.0);
            }
            if probes.rounds > 0 {
                lost.with_label_values(&labels).set(f64::from(probes.lost) / f64::from(probes.rounds));
            }
        }
    }
    Ok(())
}

/// What has changed in groups of uplinks.
fn render_switches(registry: &Registry, tally: &Tally) -> Result<(), prometheus::Error> {
    let counter = |name, help, labels: &[&str]| {
        let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(counter.clone()))?;
        Ok::<_, prometheus::Error>(counter)
    };
    let switches = counter(
        "steer_uplink_switches_total",
        "How often new sockets of a group of uplinks got another member, since the daemon has started.",
        &["uplink", "family"],
    )?;
    for ((group, family), count) in &tally.switches {
        switches.with_label_values(&[group.as_str(), family]).inc_by(*count);
    }
    let ended = counter(
        "steer_uplink_sockets_ended_total",
        "Connections that were ended because their member was left, since the daemon has started.",
        &["uplink", "interface"],
    )?;
    for ((group, member), count) in &tally.ended {
        ended.with_label_values(&[group, member]).inc_by(*count);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use steer_common::COUNTERS;

    use super::{SOCKETS, Tally, render};
    use crate::{
        model::spec::{Enforce, Existing},
        observe::status::{LinkTraffic, Origin, PolicyStatus, Status},
    };

    #[test]
    fn every_counter_has_a_metric() {
        let counters = COUNTERS.iter().map(|counter| (counter.name().to_owned(), *counter as u64 + 1)).collect();
        let policy = PolicyStatus {
            slot: 1,
            name: "vpn \"a\"".to_owned(),
            origin: Origin::Config,
            interface: Some("wg0".to_owned()),
            uplink: None,
            ifindex: None,
            members: Vec::new(),
            stale: None,
            state: None,
            netns_cookie: Some(1),
            cgroups: Vec::new(),
            dns: Vec::new(),
            dns_of_link: false,
            existing: Existing::Keep,
            enforce: Enforce::Strict,
            local: Vec::new(),
            except: Vec::new(),
            counters,
            account: true,
            traffic: vec![LinkTraffic {
                ifindex: 7,
                interface: Some("wg0".to_owned()),
                sent_bytes: 1001,
                sent_packets: 1002,
                received_bytes: 1003,
                received_packets: 1004,
            }],
        };
        let text = render(&Status { policies: vec![policy], ..Status::default() }, &[], &Tally::default(), true)
            .expect("text");
        for counter in COUNTERS {
            let is_shown = text.lines().any(|line| line.ends_with(&format!(" {}", counter as u64 + 1)));
            assert!(is_shown, "{} is missing in\n{text}", counter.name());
        }
        assert!(
            text.contains("steer_uplink_present{interface=\"wg0\",origin=\"config\",policy=\"vpn \\\"a\\\"\"} 0"),
            "{text}"
        );
        let stopped = "steer_stopped_total{origin=\"config\",policy=\"vpn \\\"a\\\"\",reason=\"stopped_egress\"}";
        assert!(text.contains(stopped), "{text}");
        let traffic = "{direction=\"received\",interface=\"wg0\",origin=\"config\",policy=\"vpn \\\"a\\\"\"}";
        assert!(text.contains(&format!("steer_policy_bytes_total{traffic} 1003")), "{text}");
        assert!(text.contains(&format!("steer_policy_packets_total{traffic} 1004")), "{text}");
        assert!(SOCKETS.iter().all(|name| COUNTERS.iter().any(|counter| counter.name() == *name)));
    }
}
