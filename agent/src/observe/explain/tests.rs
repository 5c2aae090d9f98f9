//! Explanations of chains that the tests construct.

use steer_common::{AttachmentRecord, Kind, Owner, PolicyRecord, attachment_flags, program};

use super::{
    assembly::assemble,
    chain::{self, Attached, Level},
    document::{Configuration, Explanation, LinkState, Netns, Outcome, Process},
    look::{Facts, Surroundings},
};
use crate::{
    apply::resolve::{self, Namespace},
    host::link::{
        Change, Names, Table,
        network::{self, Link},
    },
    kernel::{
        Attachment, PolicyEntry,
        inspect::Difference,
        others::{Admits, OnHook, Program},
    },
    model::{
        config::{self, RouteConfig},
        policy::Policies,
        spec::{Enforcement, Exceptions, OtherNetns, Reach, Target, Uplink},
    },
};

const HERE: u64 = 7;
const ELSEWHERE: u64 = 8;

fn record(name: &str, interface: Option<&str>, ifindex: Option<i32>, enforcement: Enforcement) -> PolicyRecord {
    let uplink = interface.map_or(Uplink::Exempt, |name| Uplink::Interface(name.to_owned()));
    let links = Table::default();
    let record = resolve::policy(
        name,
        &Target { uplink, enforcement, reach: Reach::NONE },
        Owner::Config,
        Namespace::own(&links, HERE, RouteConfig::default().marks(), &[]),
    )
    .record;
    PolicyRecord { ifindex: ifindex.unwrap_or(record.ifindex), ..record }
}

fn policy(name: &str, interface: Option<&str>, ifindex: Option<i32>) -> PolicyEntry {
    PolicyEntry {
        slot: 1,
        record: record(name, interface, ifindex, Enforcement::default()),
        exceptions: Exceptions::NONE,
        group: None,
    }
}

fn attached(policy: Option<PolicyEntry>, manual: bool) -> Attached {
    let flags = if manual { attachment_flags::MANUAL } else { 0 };
    let attachment = Attachment {
        cgroup_id: 1,
        record: AttachmentRecord { policy: 1, flags, ..AttachmentRecord::default() },
        hooks: vec![program::EGRESS, program::SOCK_CREATE],
        program_ids: vec![1, 2],
        complete: true,
        live: true,
    };
    Attached { attachment, policy, difference: Difference::default() }
}

fn vpn(manual: bool) -> Attached {
    attached(Some(policy("vpn", Some("wg0"), Some(9))), manual)
}

/// A chain, and the configuration whose policies name its cgroups.
struct Scene {
    config: &'static str,
    facts: Facts,
}

impl Scene {
    fn new(config: &'static str, levels: Vec<(&str, Option<Attached>)>) -> Self {
        let mut table = Table::default();
        table.apply(Change::Present(9, Names { name: "wg0".to_owned(), alternative: Vec::new() }));
        let levels: Vec<_> = levels
            .into_iter()
            .map(|(path, attached)| Level {
                path: path.parse().expect("a path"),
                attached,
                other_version: false,
                sock_create: None,
            })
            .collect();
        let policies = Policies::new(config::parse("f.toml", config).expect("valid"));
        let facts = Facts {
            process: Some(Process { pid: 5, comm: "curl".to_owned(), uid: 0 }),
            cgroup: levels.last().expect("a level").path.clone(),
            netns: Netns { inode: 1, cookie: HERE, own: true },
            sees_other_files: false,
            daemon: true,
            configuration: Configuration {
                file: "f.toml".to_owned(),
                policies: policies.configured().len(),
                problem: None,
            },
            policies,
            levels,
            table,
            unguarded: None,
            detours: Vec::new(),
            elsewhere: Vec::new(),
        };
        Self { config, facts }
    }

    fn explain(&self) -> Explanation {
        let link = Link {
            index: 9,
            name: "wg0".to_owned(),
            is_up: true,
            has_carrier: true,
            needs_no_gateway: true,
            kind: network::Kind::Other,
        };
        let deciding = chain::deciding(&self.facts.levels);
        let is_present = match deciding {
            chain::Deciding::Attachment(_, attached) => {
                attached.policy.as_ref().is_some_and(|policy| policy.record.ifindex == 9)
            }
            _ => false,
        };
        assemble(
            &self.facts,
            deciding,
            &Surroundings { link: is_present.then_some(link), ..Surroundings::default() },
            &[],
        )
    }

    /// Checks the outcome, the end of the conclusion, and the reasons.
    fn check(&self, outcome: Outcome, conclusion: &str, reasons: &[&str]) {
        let explained = self.explain();
        assert_eq!(explained.outcome, outcome, "{}: {}", self.config, explained.conclusion);
        assert_eq!(
            explained.conclusion,
            format!("new sockets of process 5 (curl) are {conclusion}"),
            "{}",
            self.config
        );
        assert_eq!(explained.reasons, reasons, "{}", self.config);
    }
}

const VPN: &str = "[[policy]]\nname = \"vpn\"\ninterface = \"wg0\"\ncgroups = [\"/a\"]\n";
const NESTED: &str = "[[policy]]\nname = \"vpn\"\ninterface = \"wg0\"\ncgroups = [\"/a\", \"/**/s\"]\n
[[policy]]\nname = \"any\"\ninterface = \"eth0\"\ncgroups = [\"/a/*\", \"/*\"]\n
[[policy]]\nname = \"direct\"\ninterface = \"none\"\ncgroups = [\"/a/b\"]\n";

#[test]
fn by_a_path() {
    Scene::new(VPN, vec![("/", None), ("/a", Some(vpn(false))), ("/a/b", None)]).check(
        Outcome::Bound,
        "bound to wg0 (index 9), by policy vpn on /a, from f.toml",
        &[
            "policy vpn names /a by the path \"/a\", in f.toml",
            "the policy of /a applies to all cgroups in it without their own attachment",
        ],
    );
}

#[test]
fn the_most_specific_wins() {
    let direct = attached(Some(policy("direct", None, None)), false);
    Scene::new(NESTED, vec![("/", None), ("/a", Some(vpn(false))), ("/a/b", Some(direct))]).check(
        Outcome::Exempt,
        "not steered: they are exempt by policy direct on /a/b, from f.toml",
        &[
            "policy direct names /a/b by the path \"/a/b\", in f.toml",
            "policy any also names it, by \"/a/*\", but does not apply: a path takes precedence over a glob",
            "policy vpn on /a does not apply: the most specific cgroup wins, and /a/b is in it",
        ],
    );
    // Between two globs, and below a cgroup with the same policy.
    Scene::new(NESTED, vec![("/", None), ("/s", Some(vpn(false))), ("/s/s", None)]).check(
        Outcome::Bound,
        "bound to wg0 (index 9), by policy vpn on /s, from f.toml",
        &[
            "policy vpn names /s by the glob \"/**/s\", in f.toml",
            "policy any also names it, by \"/*\", but does not apply: vpn comes first in the configuration",
            "policy vpn names /s/s by the glob \"/**/s\", in f.toml, but that policy already applies through the cgroup around it",
            "the policy of /s applies to all cgroups in it without their own attachment",
        ],
    );
}

#[test]
fn manual() {
    let manual = "/a/b was attached to policy vpn manually (`steer attach`, `steer exec` or a unit's drop-in)";
    Scene::new(NESTED, vec![("/", None), ("/a", Some(vpn(false))), ("/a/b", Some(vpn(true)))]).check(
        Outcome::Bound,
        "bound to wg0 (index 9), by policy vpn on /a/b, attached manually",
        &[
            manual,
            "policy direct names /a/b by the path \"/a/b\", in f.toml, but does not apply: the daemon does not change manual \
             attachments",
            "policy vpn on /a does not apply: the most specific cgroup wins, and /a/b is in it",
        ],
    );
}

#[test]
fn another_configuration() {
    let mut scene = Scene::new("", vec![("/", None), ("/a", Some(vpn(false)))]);
    let bound = "bound to wg0 (index 9), by policy vpn on /a, from a configuration that was not read";
    let attached = "/a was attached to policy vpn by a daemon's configuration";
    scene.check(Outcome::Bound, bound, &[&format!("{attached}; f.toml does not name it now")]);
    scene.facts.configuration.problem = Some("it is gone".to_owned());
    scene.check(Outcome::Bound, bound, &[&format!("{attached}; that configuration was not read: f.toml: it is gone")]);
    let other = "[[policy]]\nname = \"other\"\ninterface = \"eth0\"\ncgroups = [\"/a\"]\n";
    Scene::new(other, vec![("/", None), ("/a", Some(vpn(false)))]).check(
        Outcome::Bound,
        bound,
        &["/a was attached to policy vpn by a daemon whose configuration differs from f.toml: there, policy other names /a by \
           the path \"/a\", in f.toml"],
    );
}

#[test]
fn nothing_is_attached() {
    let named = "policy vpn names /a by the path \"/a\", in f.toml, but nothing is attached there";
    let mut scene = Scene::new(VPN, vec![("/", None), ("/a", None)]);
    let check = |scene: &Scene, why: &str| {
        let reason = format!("{named}: {why}");
        scene.check(Outcome::Unsteered, &format!("not steered, because {reason}"), &[&reason]);
    };
    check(
        &scene,
        "the running daemon has another configuration, or has not noticed the cgroup; `steer doctor` shows the repair",
    );
    scene.facts.daemon = false;
    check(&scene, "no daemon runs; `steer daemon` attaches it");
    let program = Program { id: 4, name: "vrf".to_owned(), uid: 0, ours: false };
    scene.facts.levels[0].sock_create =
        Some(OnHook { hook: program::SOCK_CREATE, admits: Admits::All, programs: vec![program] });
    check(&scene, "no daemon runs; `steer daemon` attaches it");
    scene.facts.levels[0].sock_create.as_mut().expect("set above").admits = Admits::Below;
    check(&scene, "program 4 \"vrf\", loaded by user 0, attached to /, would be switched off");
    scene.facts.levels[0].sock_create.as_mut().expect("set above").admits = Admits::Nothing;
    check(&scene, "program 4 \"vrf\", loaded by user 0, attached to /, excludes all others");

    let nothing = "nothing is attached to /b or to a cgroup around it, and no policy of f.toml names one of them";
    let scene = Scene::new(VPN, vec![("/", None), ("/b", None)]);
    scene.check(Outcome::Unsteered, &format!("not steered, because {nothing}"), &[nothing]);
}

#[test]
fn closed() {
    let (by, named) = ("by policy vpn on /a, from f.toml", "policy vpn names /a by the path \"/a\", in f.toml");
    let hint = "the policy was not updated: start a daemon, or attach the cgroup again";
    let scene = |interface, ifindex| {
        let attached = attached(Some(policy("vpn", Some(interface), ifindex)), false);
        Scene::new(VPN, vec![("/", None), ("/a", Some(attached))])
    };
    for (interface, ifindex, why) in [
        ("wg1", None, "its uplink wg1 is missing".to_owned()),
        ("wg1", Some(3), "its uplink wg1 is missing".to_owned()),
        ("wg0", None, format!("it records its uplink as missing, but wg0 has index 9; {hint}")),
        ("wg0", Some(3), format!("no interface has its uplink's index 3, but wg0 has index 9; {hint}")),
    ] {
        let scene = scene(interface, ifindex);
        scene.check(Outcome::Closed, &format!("closed, {by}, because {why}"), &[named]);
        assert_eq!(scene.explain().uplink.map(|uplink| uplink.state), Some(LinkState::Missing));
    }
    let nameless = Scene::new(VPN, vec![("/", None), ("/a", Some(attached(None, true)))]).explain();
    assert_eq!(nameless.outcome, Outcome::Closed);
    assert!(nameless.conclusion.ends_with("closed, because the attachment of /a names no policy"));
}

#[test]
fn of_another_network_namespace() {
    let enforcement = Enforcement { other_netns: OtherNetns::Refuse, ..Enforcement::default() };
    let refusing = record("vpn", Some("wg0"), Some(9), enforcement);
    for (record, outcome) in [
        (policy("vpn", Some("wg0"), Some(9)).record, Outcome::OtherNetns),
        (refusing, Outcome::Refused),
        (PolicyRecord { kind: Kind::Exempt as u32, ..refusing }, Outcome::Exempt),
    ] {
        let mut scene = Scene::new(
            VPN,
            vec![
                ("/", None),
                (
                    "/a",
                    Some(attached(
                        Some(PolicyEntry { slot: 1, record, exceptions: Exceptions::NONE, group: None }),
                        false,
                    )),
                ),
            ],
        );
        scene.facts.netns.cookie = ELSEWHERE;
        let explained = scene.explain();
        assert_eq!(explained.outcome, outcome, "{}", explained.conclusion);
        assert!(explained.uplink.is_none() && explained.resolver.is_none(), "{explained:?}");
        if outcome != Outcome::Exempt {
            scene.facts.process = None;
            let of_cgroup = scene.explain().conclusion;
            assert!(of_cgroup.contains("those of this command's network namespace are in another"), "{of_cgroup}");
        }
    }
}

#[test]
fn an_attachment_without_its_program() {
    let mut broken = attached(Some(policy("direct", None, None)), true);
    broken.attachment.hooks.clear();
    let scene = Scene::new(VPN, vec![("/", None), ("/a", Some(vpn(false))), ("/a/b", Some(broken))]);
    let explained = scene.explain();
    assert_eq!(explained.decision.map(|decision| decision.cgroup.to_string()).as_deref(), Some("/a"));
    assert!(
        explained.reasons[1].starts_with("/a/b is attached to policy direct, but its program sock_create is missing")
    );
    let mut older = Scene::new(VPN, vec![("/", None), ("/a", None)]);
    older.facts.levels[1].other_version = true;
    assert_eq!(older.explain().outcome, Outcome::OtherVersion);
}

#[test]
fn programs_of_others_with_the_last_word() {
    let program = |id, ours| Program { id, name: "x".to_owned(), uid: 0, ours };
    let on = |admits, programs| Some(OnHook { hook: program::SOCK_CREATE, admits, programs });
    let scene = |level: usize, sock_create| {
        let mut scene = Scene::new(VPN, vec![("/", None), ("/a", Some(vpn(false))), ("/a/b", None)]);
        scene.facts.levels[level].sock_create = sock_create;
        scene.explain()
    };
    for (name, level, sock_create, last) in [
        ("above", 0, on(Admits::All, vec![program(1, false)]), true),
        ("above, overridden", 0, on(Admits::Below, vec![program(1, false)]), false),
        ("before", 1, on(Admits::All, vec![program(1, false), program(2, true)]), false),
        ("after", 1, on(Admits::All, vec![program(2, true), program(1, false)]), true),
        ("below", 2, on(Admits::All, vec![program(1, false)]), false),
    ] {
        let explained = scene(level, sock_create);
        assert_eq!(explained.chain[level].foreign.len(), 1, "{name}");
        assert_eq!(explained.chain[level].foreign[0].last_word, last, "{name}");
        assert_eq!(explained.conclusion.contains("may bind them to another interface"), last, "{name}");
    }
}
