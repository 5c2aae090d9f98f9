//! `steer policy`: the kept policies, through the daemon if it runs, or else in their files.

use std::{borrow::Cow, io::ErrorKind, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail, ensure};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    block_on, changes,
    output::{note, say, table},
    target::{option, spec},
};
use crate::{
    host::{
        link,
        policy_files::{Error, Kept, Store},
    },
    model::{
        quote::shown,
        similar::nearest,
        spec::{KEYS, Named, Pattern, PolicySpec},
    },
    observe::status::Status,
    run::{
        api::{
            Health, InterfaceDocument, PolicyDocument, PolicyRequest,
            client::{self, Client},
        },
        instance::{CONFIG, Instance},
    },
};

/// Arguments of `steer policy`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file, used if no daemon runs
    #[arg(long, short, value_name = "FILE", default_value = CONFIG, global = true)]
    config: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one for each command line")]
enum Action {
    /// Show all policies, and where they are kept
    List(Output),
    /// Show one policy
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Keep a new policy, or change the named keys of one; a daemon applies it at once
    #[command(visible_alias = "add")]
    Set(Set),
    /// Remove a policy
    #[command(visible_alias = "rm", alias = "delete")]
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A policy that exists keeps the keys that are not named. A list is replaced as a whole. A new policy needs --interface or \
                  --uplink, and a --unit, --user-unit, --user or --cgroup; `--cgroup none` is for a policy that only containers and `steer \
                  attach` use."
)]
struct Set {
    /// Its name
    name: String,
    #[command(flatten)]
    keys: Keys,
    /// Keep it until the next boot only
    #[arg(long)]
    runtime: bool,
    /// Keep it longer than that [default for a new policy]
    #[arg(long, conflicts_with = "runtime")]
    permanent: bool,
    #[command(flatten)]
    output: Output,
}

/// Every key of a policy, as an option.
#[derive(Debug)]
struct Keys(PolicySpec);

impl clap::Args for Keys {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(KEYS.iter().map(option))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Keys {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        spec(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(super) fn run(args: Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let store = instance.store(&args.config);
    block_on(async {
        let keeper = match Client::reach(&instance.socket).await? {
            Some(daemon) => Keeper::Daemon(daemon),
            None => Keeper::Files(&store),
        };
        match args.action {
            Action::List(output) => print_all(&keeper.list().await?, &output),
            Action::Show { name, output } => print_all(&[keeper.show(&name).await?], &output),
            Action::Set(set) => {
                let all = keeper.list().await?;
                let before = all.iter().find(|policy| policy.name == set.name);
                let files = keeper.store(instance).await?;
                let policy = request(&set, before, &files)?;
                let now = keeper.put(&set.name, &policy).await?;
                if set.output.json {
                    print_all(&[now], &set.output)?;
                } else {
                    let links = keeper.links().await?;
                    changes::print(before, &now, &keeper.list().await?, &links)?;
                    if keeper.is_daemon() {
                        changes::released(&set.name, &all, &keeper.list().await?)?;
                    }
                }
                keeper.warn().await
            }
            Action::Remove { name } => {
                let all = keeper.list().await?;
                keeper.remove(&name).await.map_err(|error| {
                    let is_missing =
                        matches!(error.downcast_ref(), Some(client::Error::Refused(problem)) if problem.is_missing());
                    let known = all.iter().map(|policy| policy.name.clone());
                    if is_missing { unknown(&name, known) } else { error }
                })?;
                say!("removed policy {}", shown(&name))?;
                if keeper.is_daemon() {
                    changes::released(&name, &all, &keeper.list().await?)?;
                }
                keeper.warn().await
            }
        }
    })??;
    Ok(ExitCode::SUCCESS)
}

/// What to keep: the named keys, and for the others those that the policy's file has.
fn request(set: &Set, before: Option<&PolicyDocument>, store: &Store) -> anyhow::Result<PolicyRequest> {
    let mut policy = set.keys.0.clone();
    if let Some(before) = before.filter(|before| before.kept == Kept::File) {
        bail!("policy {:?} is in {}: edit that file instead", set.name, before.file);
    }
    let before = store.written(&set.name)?;
    if let Some((_, text)) = &before {
        let mut written =
            PolicyRequest::from_toml(text).with_context(|| format!("the file of policy {:?}", set.name))?;
        if policy.named_uplink().is_some() {
            (written.interface, written.uplink) = (None, None);
        }
        policy.fill_from(written);
    }
    let is_new = before.is_none();
    ensure!(
        policy.named_uplink().is_some() || !is_new,
        "policy {:?} is new: it needs --interface or --uplink",
        set.name
    );
    ensure!(
        policy.names_cgroups() || !is_new,
        "policy {:?} is new: it needs --unit, --user-unit, --user or --cgroup (`--cgroup none` if only containers or `steer attach` use it)",
        set.name
    );
    let was_runtime = before.is_some_and(|(kept, _)| kept == Kept::Runtime);
    Ok(PolicyRequest { policy, runtime: set.runtime || was_runtime && !set.permanent })
}

/// Where policies are kept: by the daemon, or in files.
enum Keeper<'a> {
    Daemon(Client<'a>),
    Files(&'a Store),
}

impl Keeper<'_> {
    /// The files in which the policies are.
    async fn store(&self, instance: &Instance) -> anyhow::Result<Cow<'_, Store>> {
        Ok(match self {
            Self::Daemon(daemon) => {
                let health = daemon.get::<Health>("/v1/health").await?;
                Cow::Owned(instance.store(health.config.as_ref()))
            }
            Self::Files(store) => Cow::Borrowed(store),
        })
    }

    async fn list(&self) -> anyhow::Result<Vec<PolicyDocument>> {
        match self {
            Self::Daemon(daemon) => Ok(daemon.get("/v1/policies").await?),
            Self::Files(store) => {
                let config = match store.read() {
                    Err(Error::File { source, path, .. }) if source.kind() == ErrorKind::NotFound => {
                        note(&format!("there is no {}", path.display()));
                        return Ok(Vec::new());
                    }
                    read => read?,
                };
                let policies = config.policies.iter();
                Ok(policies.map(|policy| PolicyDocument::new(policy, store.kept(policy))).collect())
            }
        }
    }

    async fn show(&self, name: &str) -> anyhow::Result<PolicyDocument> {
        let all = self.list().await?;
        let found = all.iter().find(|policy| policy.name == name).cloned();
        found.ok_or_else(|| unknown(name, all.iter().map(|policy| policy.name.clone())))
    }

    async fn put(&self, name: &str, policy: &PolicyRequest) -> anyhow::Result<PolicyDocument> {
        match self {
            Self::Daemon(daemon) => Ok(daemon.put(&resource(name), policy).await?),
            Self::Files(store) => {
                store.put(name, &policy.to_toml(name)?, policy.kept())?;
                show_kept(store, name)
            }
        }
    }

    async fn remove(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Daemon(daemon) => Ok(daemon.delete(&resource(name)).await?),
            Self::Files(store) => {
                // Nothing is made where there is nothing to remove.
                self.show(name).await?;
                Ok(store.remove(name)?)
            }
        }
    }

    /// The links of this host.
    async fn links(&self) -> anyhow::Result<Vec<InterfaceDocument>> {
        match self {
            Self::Daemon(daemon) => Ok(daemon.get("/v1/interfaces").await?),
            Self::Files(_) => Ok(InterfaceDocument::all(&link::read().await?, &[], &[])),
        }
    }

    fn is_daemon(&self) -> bool {
        matches!(self, Self::Daemon(_))
    }

    /// Warns of what is not steered, whichever policy names it.
    async fn warn(&self) -> anyhow::Result<()> {
        let Self::Daemon(daemon) = self else {
            note("no daemon answers, so the kernel is not changed yet: start `steer daemon`");
            return Ok(());
        };
        for unsteered in daemon.get::<Status>("/v1/status").await?.unsteered {
            note(&format!(
                "warning: {} is not steered, although policy {} names it",
                unsteered.path,
                shown(&unsteered.policy)
            ));
        }
        Ok(())
    }
}

/// There is no such policy.
fn unknown(name: &str, known: impl Iterator<Item = String>) -> anyhow::Error {
    let meant = nearest(name, known).map_or_else(String::new, |meant| format!("; did you mean {meant:?}?"));
    anyhow::anyhow!("there is no policy {name:?}{meant}; `steer policy list` shows all")
}

fn show_kept(store: &Store, name: &str) -> anyhow::Result<PolicyDocument> {
    let config = store.read()?;
    let kept = config.policies.iter().find(|policy| policy.name == name);
    let kept = kept.ok_or_else(|| anyhow::anyhow!("policy {name:?} was removed at the same time"))?;
    Ok(PolicyDocument::new(kept, store.kept(kept)))
}

/// What a policy names, in one column.
fn applies_to(policy: &PolicySpec) -> String {
    let text = |pattern: &Pattern| {
        let name = shown(pattern.as_str());
        match pattern.named() {
            Named::User => format!("user:{name}"),
            Named::UserUnit => format!("{name} of users"),
            Named::Unit | Named::Cgroup => name.to_string(),
        }
    };
    policy.patterns().map(text).collect::<Vec<_>>().join("\n")
}

/// The path of a policy in the API, percent-encoded by RFC 3986.
fn resource(name: &str) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    format!("/v1/policies/{}", utf8_percent_encode(name, ENCODED))
}

/// The columns of a list of policies.
const HEADER: [&str; 10] =
    ["POLICY", "UPLINK", "ENFORCE", "INGRESS", "OTHER NETNS", "DNS", "LOCAL", "EXCEPT", "KEPT IN", "APPLIES TO"];

fn print_all(policies: &[PolicyDocument], output: &Output) -> anyhow::Result<()> {
    if output.json {
        say!("{}", serde_json::to_string_pretty(policies)?)?;
        return Ok(());
    }
    let rows = policies.iter().map(|policy| {
        let kept = match policy.kept {
            Kept::Runtime => "memory, until the next boot".to_owned(),
            Kept::File | Kept::Stored => policy.file.clone(),
        };
        let value = |key: &str| policy.policy.texts(key).unwrap_or_default().join("\n");
        vec![
            policy.name.clone(),
            Some(value("uplink")).filter(|group| !group.is_empty()).unwrap_or_else(|| value("interface")),
            value("enforce"),
            value("ingress"),
            value("other_netns"),
            value("dns"),
            value("local"),
            value("except"),
            kept,
            applies_to(&policy.policy),
        ]
    });
    say!("{}", table(&HEADER, &rows.collect::<Vec<_>>()))?;
    Ok(())
}
