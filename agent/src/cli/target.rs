//! `--interface` or `--policy`, and options: the target of `exec`, `attach` and `unit`.

use std::{io, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, FromArgMatches, builder::UnknownArgumentValueParser};
use steer_common::{Owner, policy_flags};

use super::{Mistake, block_on, cautions};
use crate::{
    apply::{
        manual::Wanted,
        resolve::{self, Namespace},
        resolvers, routes,
    },
    host::{
        file,
        link::{self, Table},
        resolved,
        resolver::{self, Detour},
    },
    kernel::{self, Datapath, Pins},
    model::{
        config::{self, Source},
        mark::MarkMask,
        similar::nearest,
        spec::{
            Conflict, Enforce, Exceptions, KEYS, Key, NOTHING, Named, PolicySpec, Resolvers, Uplink, is_of_policy_only,
        },
        uplink::group::{self, Group},
    },
    run::instance::CONFIG,
};

/// The target of a command.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each command line")]
pub(super) enum By {
    /// An interface of the caller's network namespace, and options.
    Interface(PolicySpec),
    /// A policy of the daemon's configuration.
    Policy(String),
    /// No target, where another argument makes it superfluous.
    Nothing,
}

const POLICY: &str = "policy";
/// The group of which one argument is required.
const GROUP: &str = "By";

/// The keys that are options of commands which steer at once.
fn keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| !is_of_policy_only(key.name))
}

/// A key as an option of a command.
pub(super) fn option(key: &'static Key) -> Arg {
    let mut help = key.summary().to_owned();
    if let Some(word) = (key.default_word)() {
        help = format!("{help} [default: {word}]");
    }
    if key.is_list {
        help = format!("{help}; {NOTHING}: an empty list");
    }
    let option = Arg::new(key.name).long(key.option).value_name(key.placeholder).help(help);
    let option = if key.is_list { option.action(ArgAction::Append) } else { option };
    // A glob may have commas.
    let option = if key.is_list && !Named::is_key(key.name) { option.value_delimiter(',') } else { option };
    let option = if key.name == "interface" { option.short('i') } else { option };
    let mut words = (key.words)();
    if words.is_empty() {
        return option;
    }
    if key.is_list {
        words.push((NOTHING, "Nothing, whatever [defaults] of the configuration says"));
    }
    let values = words.into_iter().map(|(word, meaning)| {
        clap::builder::PossibleValue::new(word).help(meaning.trim().trim_end_matches('.').to_owned())
    });
    option.value_parser(clap::builder::PossibleValuesParser::new(values))
}

/// Reads the options that are keys. `none` alone is an empty list.
pub(super) fn spec(matches: &ArgMatches) -> Result<PolicySpec, clap::Error> {
    let mut spec = PolicySpec::default();
    for key in KEYS {
        let Ok(Some(values)) = matches.try_get_many::<String>(key.name) else { continue };
        let values: Vec<_> = values.collect();
        if key.is_list && values == [NOTHING] {
            spec.set_empty(key.name);
            continue;
        }
        for value in values {
            let added = if key.is_list && value == NOTHING {
                Err(format!("{NOTHING:?} stands for nothing; expected it alone"))
            } else if key.name == "uplink" && value.contains(',') {
                Err(format!("a list is written with `+`, as {}", value.replace(',', "+")))
            } else {
                spec.add(key.name, value).map_err(|rejected| rejected.to_string())
            };
            added.map_err(|problem| {
                let message = format!("--{} {value}: {problem}", key.option);
                clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
            })?;
        }
    }
    Ok(spec)
}

impl clap::Args for By {
    fn augment_args(command: Command) -> Command {
        let policy =
            Arg::new(POLICY).long(POLICY).short('p').value_name("NAME").help("A policy of the daemon's configuration");
        let options = keys().map(|key| {
            let option = option(key);
            if ["interface", "uplink"].contains(&key.name) { option } else { option.conflicts_with(POLICY) }
        });
        let group = ArgGroup::new(GROUP).args(["interface", "uplink", POLICY]).required(true).multiple(false);
        // A word that others use, for which there is an option of another name.
        let iface = Arg::new("iface")
            .long("iface")
            .value_name("IF")
            .hide(true)
            .value_parser(UnknownArgumentValueParser::suggest_arg("--interface"));
        command.args(options).arg(policy).arg(iface).group(group)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for By {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let spec = spec(matches)?;
        Ok(match (matches.get_one::<String>(POLICY), spec.named_uplink()) {
            (Some(policy), _) => Self::Policy(policy.clone()),
            (None, Some(_)) => Self::Interface(spec),
            (None, None) => Self::Nothing,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Reads a table of the configuration file that holds for commands; the default if there is no file.
fn table<T: Default>(
    config: &Path,
    name: &str,
    parse: impl FnOnce(&Source) -> Result<T, config::Problems>,
) -> anyhow::Result<T> {
    let shown = config.display().to_string();
    match file::read(config) {
        Ok(text) => parse(&Source { file: shown, text })
            .with_context(|| format!("[{name}] of the configuration, which holds for this command, cannot be read")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error).with_context(|| format!("read [{name}] in {shown}")),
    }
}

/// The bits of marks that are steer's: those of the policies of a daemon, which may have another file, or those of this file.
pub(super) fn marks(pins: &Pins, netns_cookie: u64, config: &Path) -> anyhow::Result<MarkMask> {
    match marks_in_use(pins, netns_cookie) {
        Ok(Some(marks)) => Ok(marks),
        Ok(None) | Err(kernel::Error::SwitchedOff { .. }) => Ok(table(config, "route", config::route)?.marks()),
        Err(error) => Err(error.into()),
    }
}

/// With the lock, because another command may be making the pins.
fn marks_in_use(pins: &Pins, netns_cookie: u64) -> Result<Option<MarkMask>, kernel::Error> {
    let Some(_lock) = pins.lock()? else { return Ok(None) };
    let Some(datapath) = Datapath::open(pins)? else { return Ok(None) };
    routes::mask_of_configured(&datapath, netns_cookie)
}

/// The groups of uplinks.
pub(super) fn groups(config: &Path) -> anyhow::Result<Vec<Group>> {
    table(config, "uplink", config::uplinks)
}

/// The links of the caller's network namespace, with their resolvers if the policy of a command needs them.
pub(super) fn links_for(by: &By) -> anyhow::Result<Table> {
    let mut links = links()?;
    let by = by.clone().with_defaults(CONFIG.as_ref())?;
    if matches!(by, By::Interface(spec) if spec.dns.is_some_and(|dns| dns.link)) {
        links.set_resolvers(Some(Arc::new(block_on(resolved::read())?)));
    }
    Ok(links)
}

/// The links of the caller's network namespace.
pub(super) fn links() -> anyhow::Result<Table> {
    Ok(block_on(link::read())??)
}

impl By {
    /// The arguments of an equivalent command line.
    pub(super) fn arguments(&self) -> Vec<String> {
        match self {
            Self::Policy(policy) => vec![format!("--{POLICY}={policy}")],
            Self::Interface(spec) => spec.options().map(|(option, value)| format!("--{option}={value}")).collect(),
            Self::Nothing => Vec::new(),
        }
    }

    /// With the keys that `[defaults]` of the configuration file sets and the options do not.
    pub(super) fn with_defaults(self, config: &Path) -> anyhow::Result<Self> {
        let Self::Interface(mut spec) = self else { return Ok(self) };
        spec.fill_from_defaults(&table(config, "defaults", config::defaults)?);
        Ok(Self::Interface(spec))
    }

    /// Where resolv.conf points to this host, uses the resolvers that systemd-resolved has for the link of the uplink, unless `dns` says
    /// something else. If it has none, nothing changes.
    pub(super) fn ask_the_link(&mut self, links: &mut Table) -> anyhow::Result<()> {
        let Self::Interface(spec) = self else { return Ok(()) };
        let Some(Uplink::Interface(name)) = spec.named_uplink() else { return Ok(()) };
        let is_strict = spec.enforce.unwrap_or_default() == Enforce::Strict;
        if spec.dns.is_some() || !is_strict || !resolver::detours().iter().any(Detour::ends_with_dns) {
            return Ok(());
        }
        match block_on(resolved::known())? {
            Ok(known) => {
                let mut with = links.clone();
                with.set_resolvers(Some(Arc::new(known)));
                let has_some = |ifindex| resolvers::has_some(ifindex, &with);
                if with.resolve(&name).is_some_and(has_some) {
                    *links = with;
                    spec.dns = Some(Resolvers { link: true, ..Resolvers::NONE });
                }
            }
            Err(error) => log::debug!("the resolvers of {name} are not known: {error}"),
        }
        Ok(())
    }

    /// Whether the policy is strict, as far as it is known: a policy of the configuration has to be in force.
    pub(super) fn is_strict(&self, pins: Option<&Pins>) -> anyhow::Result<bool> {
        match self {
            Self::Interface(spec) => Ok(spec.enforce.unwrap_or_default() == Enforce::Strict),
            Self::Policy(name) => {
                let datapath = pins.map(Datapath::open).transpose()?.flatten();
                let policies = datapath.map(|datapath| datapath.policies()).transpose()?.unwrap_or_default();
                let found = policies.iter().find(|entry| entry.is_owned_by(Owner::Config) && entry.name() == *name);
                Ok(found.is_some_and(|entry| entry.record.flags & policy_flags::GUARD != 0))
            }
            Self::Nothing => Ok(false),
        }
    }

    /// Whether the target is a policy.
    pub(super) fn is_policy(&self) -> bool {
        matches!(self, Self::Policy(_))
    }

    /// Fails if the interface or the group of uplinks does not exist.
    pub(super) fn require(&self, links: &Table, groups: &[Group]) -> anyhow::Result<()> {
        let Self::Interface(spec) = self else { return Ok(()) };
        require_exceptions(spec, links, groups)?;
        spec.named_uplink().map_or(Ok(()), |uplink| require_uplink(&uplink, links, groups))
    }

    /// The resolved target. It looks up the interface before anything is changed.
    pub(super) fn wanted(&self, namespace: Namespace<'_>) -> anyhow::Result<Wanted> {
        let (spec, uplink) = match self {
            Self::Policy(policy) => return Ok(Wanted::Policy(policy.clone())),
            Self::Interface(PolicySpec { interface: Some(uplink), .. }) if *uplink == Uplink::Closed => {
                bail!("expected --interface")
            }
            Self::Interface(spec) => (spec, spec.named_uplink().unwrap_or(Uplink::Closed)),
            Self::Nothing => bail!("expected --interface, --uplink or --policy"),
        };
        require_uplink(&uplink, namespace.links, namespace.groups)?;
        require_exceptions(spec, namespace.links, namespace.groups)?;
        let name = uplink.to_string();
        let target = spec.target(uplink).map_err(|conflicts| {
            let problems: Vec<_> = conflicts.iter().map(as_options).collect();
            Mistake(problems.join("; "))
        })?;
        let policy = resolve::present(&name, &target, Owner::Manual, namespace)?;
        Ok(Wanted::Own(Box::new(policy)))
    }

    /// Warns about names that are not resolved, or not by the uplink. `steer status` shows this for configured policies.
    pub(super) fn warn(&self, links: &Table) {
        let Self::Interface(spec) = self else { return };
        cautions::of_options(spec, links);
        if spec.named_uplink().is_none_or(|uplink| uplink == Uplink::Exempt) {
            return;
        }
        for detour in resolver::detours()
            .iter()
            .filter(|detour| !(spec.dns.is_some_and(|dns| !dns.is_empty()) && detour.ends_with_dns()))
        {
            let reaches_host = spec.local.is_some_and(|local| local.host);
            log::warn!("{}", if reaches_host { detour.from_this_host() } else { detour.to_string() });
        }
    }
}

/// Options that are not compatible, as the command line has them.
fn as_options(conflict: &Conflict) -> String {
    let problem = KEYS.iter().fold(conflict.problem.to_owned(), |text, key| {
        text.replace(&format!("{} = \"", key.name), &format!("--{} \"", key.option))
    });
    if problem.starts_with("--") { problem.replace('"', "") } else { format!("--{}: {problem}", conflict.key) }
}

/// Fails if there is no such interface or group of uplinks.
fn require_uplink(uplink: &Uplink, links: &Table, groups: &[Group]) -> anyhow::Result<()> {
    match uplink {
        Uplink::Interface(name) => match links.require(name) {
            Ok(ifindex) => {
                if cautions::is_loopback(ifindex) {
                    log::warn!("{name} is the loopback interface, so nothing but this host is reached");
                }
                Ok(())
            }
            Err(missing) if name.contains([',', '+']) => {
                bail!("{missing}; for several interfaces, use --uplink {}", name.replace(',', "+"))
            }
            Err(missing) if groups.iter().any(|group| group.name.as_str() == name) => {
                bail!("{missing}; {name} is an [[uplink]] of the configuration: use --uplink {name}")
            }
            Err(missing) => Err(missing.into()),
        },
        Uplink::Group(name) if group::named(groups, name).is_none() => {
            let file =
                if Path::new(CONFIG).exists() { CONFIG.to_owned() } else { format!("{CONFIG}, which does not exist") };
            let near = || nearest(name.as_str(), groups.iter().map(|group| group.name.to_string()));
            let meant = if links.resolve(name.as_str()).is_some() {
                format!("; {name} is an interface: use --interface {name}")
            } else {
                near().map_or_else(String::new, |near| format!("; did you mean {near:?}?"))
            };
            bail!("there is no [[uplink]] {:?} in {file}{meant}", name.as_str())
        }
        _ => Ok(()),
    }
}

/// Fails if an exception goes by a group of uplinks.
fn require_exceptions(spec: &PolicySpec, links: &Table, groups: &[Group]) -> anyhow::Result<()> {
    for exception in spec.except.iter().flat_map(Exceptions::iter) {
        let is_link = exception.by.interface().is_some_and(|name| links.resolve(name).is_some());
        if let Some(message) = group::mistaken(groups, exception).filter(|_| !is_link) {
            bail!("--except: {message}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{Args as _, Command, FromArgMatches as _};

    use super::By;

    fn by(arguments: &[&str]) -> Result<By, String> {
        let command = By::augment_args(Command::new("x").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).map_err(|error| error.to_string())?;
        By::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_are_repeated_or_separated_by_commas() {
        let arguments = [
            "-i",
            "a",
            "--local",
            "host,lan",
            "--except",
            "10.0.1.0/24=b,10.0.2.0/24=main",
            "--except",
            "2001:db8:1::/48=refuse",
        ];
        let want =
            ["--interface=a", "--local=host,lan", "--except=10.0.1.0/24=b,10.0.2.0/24=main,2001:db8:1::/48=refuse"];
        let written = by(&arguments).expect("right").arguments();
        assert_eq!(written, want);
        let again: Vec<_> = written.iter().map(String::as_str).collect();
        assert_eq!(by(&again).expect("the same").arguments(), want);
        for (arguments, want) in [
            (["-i", "a", "--local", "wan"], "invalid value 'wan'"),
            (["-i", "a", "--local", "none,host"], "--local none: \"none\" stands for nothing; expected it alone"),
            (["-i", "a", "--local", ""], "a value is required"),
            (["-i", "a", "--except", "10.0.0.1"], "--except 10.0.0.1: expected TO=BY"),
            (["-p", "a", "--local", "host"], "cannot be used with"),
        ] {
            let problem = by(&arguments).expect_err("wrong");
            assert!(problem.contains(want), "{arguments:?}: {problem}");
        }
    }

    #[test]
    fn an_option_wins_over_a_default() {
        let file = std::env::temp_dir().join(format!("steer-defaults-{}.toml", std::process::id()));
        let text = "[defaults]\nlocal = [\"host\"]\ndns = [\"10.0.0.1\"]\nenforce = \"steer\"\n[[policy]]\nname = 1\n";
        std::fs::write(&file, text).expect("a file");
        let complete = |arguments: &[&str], file: &Path| {
            by(arguments).expect("right").with_defaults(file).map(|by| by.arguments().join(" "))
        };
        let with = |arguments: &[&str]| complete(arguments, &file).expect("valid");
        assert_eq!(with(&["-i", "a"]), "--interface=a --enforce=steer --dns=10.0.0.1 --local=host");
        let options = ["-i", "a", "--local", "none", "--dns", "none", "--enforce", "strict"];
        assert_eq!(with(&options), "--interface=a --enforce=strict --dns=none --local=none");
        assert_eq!((with(&["-i", "none"]).as_str(), with(&["-p", "x"]).as_str()), ("--interface=none", "--policy=x"));
        assert_eq!(complete(&["-i", "a"], Path::new("/nonexistent/steer.toml")).expect("no file"), "--interface=a");
        std::fs::write(&file, "[defaults]\nlocal = [\"wan\"]\n").expect("a file");
        let problem = format!("{:#}", complete(&["-i", "a"], &file).expect_err("a mistake"));
        assert!(problem.contains(":2:10: defaults.local = \"wan\": expected \"host\""), "{problem}");
        std::fs::remove_file(file).expect("there");
    }
}
