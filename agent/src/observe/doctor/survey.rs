//! Reads the state for all checks once: cgroups, pins, the configuration, links.
//!
//! **Invariant:** state that cannot be read is reported, and then treated as empty, so that the other checks still run.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use steer_common::{Owner, policy_flags};

use super::{Finding, Fix, Options, Report, Severity, Subject, Topic};
use crate::{
    apply::resolve,
    host::{
        capability,
        cgroup::{Found, Hierarchy},
        link::{self, Table},
        netns,
        policy_files::{self, Store},
    },
    kernel::{self, Attachment, Datapath, Pins, PolicyEntry},
    model::{
        cgroup_path::CgroupPath,
        config::Config,
        quote::quoted,
        spec::{Reach, Resolvers},
        uplink::health::State,
    },
};

/// The state that all checks use.
#[derive(Default)]
pub(super) struct Survey {
    /// The shell command for this instance of steer.
    pub(super) steer: String,
    /// How to start its daemon.
    pub(super) start: Option<Fix>,
    /// Whether this process has the capabilities to read programs.
    pub(super) is_privileged: bool,
    /// The pin directory as the user names it.
    pub(super) pin_directory: String,
    pub(super) pins: Option<Pins>,
    /// Whether the pins were read, even if there are none.
    pub(super) knows_pins: bool,
    pub(super) hierarchy: Option<Hierarchy>,
    /// All cgroups, each after its parent.
    pub(super) cgroups: Vec<Found>,
    pub(super) daemon: bool,
    /// What to do, if it does not answer.
    pub(super) silent: Option<String>,
    /// The policies in force.
    pub(super) in_force: Vec<PolicyEntry>,
    /// The attachments of existing cgroups, by path.
    pub(super) attached: Vec<Attached>,
    /// The number of attachments of removed cgroups that the kernel has released.
    pub(super) gone: usize,
    /// The files of this instance.
    pub(super) store: Option<Store>,
    pub(super) config: Config,
    pub(super) table: Table,
    /// `None`: this kernel does not report it.
    pub(super) netns_cookie: Option<u64>,
}

/// An attachment with its policy.
pub(super) struct Attached {
    pub(super) path: CgroupPath,
    pub(super) attachment: Attachment,
    /// `None`: it names no policy that exists.
    pub(super) policy: Option<PolicyEntry>,
}

/// The network settings of a policy, in force or configured.
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) uplink: String,
    /// Its own resolvers, at most one of each family.
    pub(super) resolvers: Vec<IpAddr>,
    /// Whether they are those of the uplink's link; `Some(true)`: and it has none, as far as the policy in force knows.
    pub(super) of_link: Option<bool>,
    /// What it reaches besides the uplink.
    pub(super) reach: Reach,
}

impl Survey {
    pub(super) async fn read(options: &Options, report: &mut Report) -> Self {
        let missing = capability::missing_capabilities();
        let is_privileged = missing.is_empty();
        let mut survey = Self {
            steer: options.steer.clone(),
            start: Some(options.start()),
            silent: options.silent.clone(),
            store: Some(options.store.clone()),
            is_privileged,
            pin_directory: options.pin_directory.display().to_string(),
            ..Self::default()
        };
        if is_privileged {
            report.ok(Topic::Capabilities, Subject::Host, "this process may load and attach programs");
        } else {
            report.find(Finding {
                id: Topic::Capabilities,
                severity: Severity::Error,
                subject: Subject::Host,
                what: format!("this process lacks {}", missing.join(", ")),
                why: "doctor cannot read the pins and the attached programs, so it skips most checks".to_owned(),
                fix: Some(Fix::command(format!("sudo {} doctor", survey.steer))),
            });
        }
        survey.read_cgroups(report);
        let is_safe = survey.find_bpffs(options, report);
        if !is_safe {
            report.not_applicable(Topic::Pins, options.pin_subject(), "needs a pin directory of root alone");
        } else if is_privileged {
            survey.read_pins(options, report);
        } else {
            report.not_applicable(Topic::Pins, options.pin_subject(), format!("needs {}", missing.join(", ")));
        }
        survey.read_config(options, report);
        survey.read_links(report).await;
        survey
    }

    fn read_cgroups(&mut self, report: &mut Report) {
        let found = Hierarchy::find().and_then(|hierarchy| {
            let root = hierarchy.open(&CgroupPath::root())?;
            let mut cgroups = vec![Found { path: root.path, id: root.id }];
            cgroups.extend(hierarchy.descendants(&CgroupPath::root())?);
            Ok((hierarchy, cgroups))
        });
        match found {
            Ok((hierarchy, cgroups)) => {
                let root = hierarchy.directory(&CgroupPath::root()).display().to_string();
                let seen = if root.starts_with("/proc/self/fd/") {
                    "no mount is visible here, so this process made a private one".to_owned()
                } else {
                    format!("mounted at {}, cgroups: {}", root.trim_end_matches('/'), cgroups.len())
                };
                report.ok(Topic::Cgroup2, Subject::Host, seen);
                (self.hierarchy, self.cgroups) = (Some(hierarchy), cgroups);
            }
            Err(error) => report.find(Finding {
                id: Topic::Cgroup2,
                severity: Severity::Error,
                subject: Subject::Host,
                what: error.to_string(),
                why: "steer selects processes by their cgroup2 cgroup; without one nothing can be steered".to_owned(),
                fix: Some(Fix::command("mount -t cgroup2 none /sys/fs/cgroup")),
            }),
        }
    }

    /// False if the pins must not be read.
    fn find_bpffs(&mut self, options: &Options, report: &mut Report) -> bool {
        let found = match Pins::find(&options.pin_directory) {
            Err(kernel::Error::Insecure { what, command, .. }) => {
                report.find(Finding {
                    id: Topic::Bpffs,
                    severity: Severity::Error,
                    subject: options.pin_subject(),
                    what: format!("it {what}"),
                    why: "another user could lock it or replace what is pinned there, so every command refuses it"
                        .to_owned(),
                    fix: Some(Fix::command(command)),
                });
                return false;
            }
            Err(error) => {
                report.failed(Topic::Bpffs, options.pin_subject(), &error);
                return false;
            }
            Ok(found) => found,
        };
        self.pins = found;
        match &self.pins {
            Some(pins) => {
                report.ok(Topic::Bpffs, options.pin_subject(), format!("reached through {}", pins.root().display()));
            }
            None => report.not_applicable(
                Topic::Bpffs,
                options.pin_subject(),
                "no bpffs is mounted there; steer mounts one when it needs it",
            ),
        }
        true
    }

    fn read_pins(&mut self, options: &Options, report: &mut Report) {
        self.knows_pins = true;
        let (Some(pins), Some(hierarchy)) = (&self.pins, &self.hierarchy) else {
            report.not_applicable(
                Topic::Pins,
                options.pin_subject(),
                "without a bpffs nothing is pinned, without cgroups nothing steered",
            );
            return;
        };
        match read_pins(pins, hierarchy) {
            Ok((daemon, in_force, attached, gone)) => {
                let seen = format!("policies in force: {}, cgroups attached: {}", in_force.len(), attached.len());
                report.ok(Topic::Pins, options.pin_subject(), seen);
                (self.daemon, self.in_force, self.attached, self.gone) = (daemon, in_force, attached, gone);
            }
            Err(error) => {
                self.knows_pins = false;
                report.failed(Topic::Pins, options.pin_subject(), &error);
            }
        }
    }

    fn read_config(&mut self, options: &Options, report: &mut Report) {
        let file = options.store.file().display().to_string();
        let subject = Subject::File(file.clone());
        let wrong = |what: String, why: &str, fix| Finding {
            id: Topic::Configuration,
            severity: Severity::Error,
            subject: Subject::File(file.clone()),
            what,
            why: why.to_owned(),
            fix,
        };
        if !options.config_is_named && !options.store.file().exists() {
            report.not_applicable(Topic::Configuration, subject, "the file does not exist");
            return;
        }
        match options.store.read() {
            Ok(config) => {
                report.ok(Topic::Configuration, subject, format!("policies: {}", config.policies.len()));
                self.config = config;
            }
            Err(policy_files::Error::Invalid(problems)) => report.find(wrong(
                problems.to_string(),
                "a daemon cannot start with it; a running daemon keeps the previous configuration",
                Some(Fix::advice(format!(
                    "correct the file, then check it with `{} check --config {}`",
                    self.steer,
                    quoted(&file)
                ))),
            )),
            Err(error) => report.find(wrong(error.to_string(), "a daemon cannot start with it", None)),
        }
    }

    async fn read_links(&mut self, report: &mut Report) {
        match link::read().await {
            Ok(table) => self.table = table,
            Err(error) => report.failed(Topic::Uplink, Subject::Host, &error),
        }
        match netns::own_cookie() {
            Ok(cookie) => self.netns_cookie = cookie,
            Err(error) => report.failed(Topic::Uplink, Subject::Host, &error),
        }
    }

    /// The attachment of a cgroup.
    pub(super) fn attached(&self, path: &CgroupPath) -> Option<&Attached> {
        let position = self.attached.binary_search_by(|attached| attached.path.cmp(path)).ok()?;
        self.attached.get(position)
    }

    /// The directory of a cgroup for a command; the usual one if only this process has a mount.
    pub(super) fn directory(&self, path: &CgroupPath) -> String {
        let directory = self.hierarchy.as_ref().map(|hierarchy| hierarchy.directory(path).display().to_string());
        let seen = directory.filter(|directory| !directory.starts_with("/proc/self/fd/"));
        quoted(&seen.unwrap_or_else(|| format!("/sys/fs/cgroup{}", path.as_str())))
    }

    /// Whether a policy's index is valid in this network namespace.
    pub(super) fn is_here(&self, entry: &PolicyEntry) -> bool {
        self.netns_cookie.is_none_or(|cookie| cookie == entry.record.netns_cookie)
    }

    /// The policies that steer in this network namespace: those in force, and other configured ones.
    pub(super) fn policies(&self) -> Vec<Policy> {
        let steers = |entry: &&PolicyEntry| !entry.exempts() && !entry.interface().is_empty() && self.is_here(entry);
        let in_force = self.in_force.iter().filter(steers).flat_map(|entry| {
            entry.uplinks().into_iter().map(|uplink| Policy {
                name: entry.name(),
                of_link: (entry.record.flags & policy_flags::DNS_LINK != 0).then_some(uplink.resolvers.is_empty()),
                uplink: uplink.interface,
                resolvers: uplink.resolvers,
                reach: resolve::target(&entry.record, &entry.exceptions).reach,
            })
        });
        let mut policies: Vec<_> = in_force.collect();
        for policy in self.config.policies.iter().filter(|policy| self.configured(&policy.name).is_none()) {
            let group = policy.target.uplink.group();
            let group = self.config.uplinks.iter().find(|known| Some(&known.name) == group);
            let own = policy.target.enforcement.dns;
            let members = group.into_iter().flat_map(|group| &group.members).map(|member| {
                let dns = Resolvers { v4: member.dns.v4.or(own.v4), v6: member.dns.v6.or(own.v6), ..own };
                (member.interface.as_str(), dns)
            });
            for (uplink, dns) in policy.interface().into_iter().map(|interface| (interface, own)).chain(members) {
                let (uplink, resolvers) = (uplink.to_owned(), dns.iter().collect());
                let reach = policy.target.reach.clone();
                let of_link = dns.link.then_some(false);
                policies.push(Policy { name: policy.name.clone(), uplink, resolvers, of_link, reach });
            }
        }
        policies
    }

    /// The policy of this name that a daemon has put in force.
    pub(super) fn configured(&self, name: &str) -> Option<&PolicyEntry> {
        self.in_force.iter().find(|entry| entry.is_owned_by(Owner::Config) && entry.name() == name)
    }

    /// The uplinks, each with the names of its policies.
    pub(super) fn uplinks(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut uplinks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for policy in self.policies() {
            uplinks.entry(policy.uplink).or_default().insert(policy.name);
        }
        uplinks
    }

    /// Whether an interface is only a member of groups of uplinks, of the policies in force here.
    pub(super) fn is_member(&self, name: &str) -> bool {
        let has_it = |entry: &PolicyEntry| entry.uplinks().iter().any(|uplink| uplink.interface == name);
        let here = self.in_force.iter().filter(|entry| !entry.exempts() && self.is_here(entry));
        let mut policies = here.filter(|entry| has_it(entry)).peekable();
        policies.peek().is_some() && policies.all(|entry| entry.group.is_some())
    }

    /// Whether each group with this member has another one that works, of the policies in force here.
    pub(super) fn others_work(&self, name: &str) -> bool {
        let here = self.in_force.iter().filter(|entry| !entry.exempts() && self.is_here(entry));
        let groups = here.filter_map(|entry| Some((entry, entry.group.as_ref()?)));
        let mut with_it = groups.filter_map(|(entry, group)| {
            let uplinks = entry.uplinks();
            let position = uplinks.iter().find(|uplink| uplink.interface == name)?.member;
            let works =
                |member: usize| group.health.iter().any(|of| State::from_repr(of[member].state) != Some(State::Down));
            Some(uplinks.iter().any(|other| other.member != position && other.line.ifindex > 0 && works(other.member)))
        });
        with_it.all(|works| works)
    }

    /// Reloads a running daemon, or starts one.
    pub(super) fn converge(&self) -> Option<Fix> {
        if self.daemon { Some(Fix::command(format!("{} reload", self.steer))) } else { self.start.clone() }
    }
}

type Pinned = (bool, Vec<PolicyEntry>, Vec<Attached>, usize);

fn read_pins(pins: &Pins, hierarchy: &Hierarchy) -> Result<Pinned, kernel::Error> {
    let daemon = pins.daemon_runs()?;
    let Some(datapath) = Datapath::open(pins)? else { return Ok((daemon, Vec::new(), Vec::new(), 0)) };
    let policies = datapath.policies()?;
    let (mut attached, mut gone) = (Vec::new(), 0);
    for attachment in datapath.attachments()? {
        match hierarchy.path_of(attachment.cgroup_id) {
            Some(path) => {
                let policy = policies.iter().find(|entry| entry.slot == attachment.record.policy).cloned();
                attached.push(Attached { path, attachment, policy });
            }
            // Sockets of a removed cgroup that are still open keep its links attached.
            None => gone += usize::from(!attachment.live),
        }
    }
    attached.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((daemon, policies, attached, gone))
}

impl Options {
    fn pin_subject(&self) -> Subject {
        Subject::File(self.pin_directory.display().to_string())
    }

    /// How to start the daemon. Nobody knows which file a daemon had that ran by other options than the usual ones.
    fn start(&self) -> Fix {
        let units = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
        let has_unit = units.iter().any(|directory| Path::new(directory).join("steer.service").exists());
        if has_unit && Path::new("/run/systemd/system").exists() && self.steer == "steer" && !self.config_is_named {
            return Fix::command("systemctl start steer");
        }
        if self.config_is_named {
            let file = self.store.file().display().to_string();
            return Fix::command(format!("{} daemon --config {}", self.steer, quoted(&file)));
        }
        if self.steer == "steer" && self.store.file().exists() {
            return Fix::command("steer daemon");
        }
        Fix::advice(format!("start the daemon with its configuration file: {} daemon --config FILE", self.steer))
    }
}
