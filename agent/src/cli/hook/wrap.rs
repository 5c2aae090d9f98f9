//! `steer hook wrap`: an OCI runtime that passes every call to the real one, and steers a container when it is to start. At that
//! time its network exists, even if the engine sets it up between create and start, as Docker does since version 28.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use super::FilesArgs;
use crate::{
    apply::permit::Asker,
    cli::target::{option, spec},
    model::spec::annotations::{self, Request},
    run::{
        container::{
            hook::{forget, steer},
            oci::{self, Action, Bundle, Call},
        },
        instance::Instance,
    },
};

/// Arguments of `steer hook wrap`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --policy and --interface, a container is steered by its annotations. With --variables, and \
                  without annotations, it is steered by the variables STEER_POLICY or STEER_INTERFACE, STEER_ENFORCE, STEER_DNS, \
                  STEER_LOCAL and STEER_EXCEPT of its environment, unless they are the image's."
)]
pub(super) struct Args {
    #[command(flatten)]
    files: FilesArgs,
    #[command(flatten)]
    host: HostRequest,
    /// Let containers ask by variables of their environment, for Docker before 24, which has no annotations
    #[arg(long)]
    variables: bool,
    /// The real runtime and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "RUNTIME")]
    command: Vec<OsString>,
}

/// The host's choice for every container. A container then may not ask for another one.
#[derive(Clone, Debug)]
struct HostRequest(Option<Request>);

const POLICY: &str = "policy";

impl clap::Args for HostRequest {
    fn augment_args(command: clap::Command) -> clap::Command {
        let policy = clap::Arg::new(POLICY)
            .long(POLICY)
            .value_name("NAME")
            .help("Steer every container by this policy")
            .conflicts_with("interface");
        let keys = annotations::keys().map(|key| match key.name {
            "interface" => option(key).help("Steer every container by this interface"),
            _ => option(key),
        });
        command.arg(policy).args(keys)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for HostRequest {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let asked = Request { policy: matches.get_one::<String>(POLICY).cloned(), spec: spec(matches)? };
        Ok(Self((asked != Request::default()).then_some(asked)))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args {
    /// The request for a container, and its source.
    fn asked_for(&self, id: &str, bundle: &Bundle) -> anyhow::Result<Option<(Request, Asker)>> {
        let mut asked = bundle.asked(id)?;
        if asked.is_none() && self.variables {
            asked = bundle.asked_by_variables(id)?;
        } else if let (None, None, Some(variable)) = (&asked, &self.host.0, bundle.variable()) {
            bail!(
                "{variable} is a variable of the container, which an image can set: ask by an annotation (`--annotation`), or add \
                 --variables to `runtimeArgs`"
            );
        }
        match (self.host.0.clone(), asked) {
            (Some(host), None) => Ok(Some((host, Asker::Host))),
            (None, Some(container)) => Ok(Some((container, Asker::Container))),
            (Some(host), Some(container)) if host == container => Ok(Some((host, Asker::Host))),
            (Some(_), Some(_)) => {
                bail!(
                    "the container asks for another uplink than the one that this runtime gives to all of its containers"
                )
            }
            (None, None) => Ok(None),
        }
    }
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let (program, arguments) = args.command.split_first().context("expected a runtime")?;
    let mut runtime = Command::new(program);
    runtime.args(arguments);
    let call = Call::parse(arguments)?;
    match &call.action {
        Action::Start { id } => {
            let mut state = Command::new(program);
            state.args(&arguments[..call.options]).arg("state").arg(id);
            start(args, instance, &mut state).with_context(|| format!("container {}", id.display()))?;
        }
        Action::Run { bundle } => ensure!(
            args.host.0.is_none() && !Bundle::read(bundle)?.asks(),
            "a container to be steered must be created and started: `run` and `restore` leave steer no time in between"
        ),
        Action::Delete => {
            let ended = runtime.status().with_context(|| format!("run {}", program.display()))?;
            if let Err(error) = forget(instance) {
                // The container and its links are gone, so what is left steers nothing.
                log::warn!("{error}; it is removed with the next container");
            }
            return Ok(ExitCode::from(ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
        Action::Other => {}
    }
    Err(runtime.exec()).with_context(|| format!("run {}", program.display()))
}

/// Steers the container that is about to start, if there is a request.
fn start(args: &Args, instance: &Instance, state: &mut Command) -> anyhow::Result<()> {
    let printed = state.stdin(Stdio::null()).output().with_context(|| format!("run {state:?}"))?;
    let complaint = String::from_utf8_lossy(&printed.stderr);
    ensure!(
        printed.status.success(),
        "cannot read its state, and so cannot decide whether to steer it: {}",
        complaint.trim()
    );
    let created = oci::created(&printed.stdout)?;
    let asked = args.asked_for(&created.id, &Bundle::read(&created.bundle)?)?;
    steer(&args.files.files(), instance, &created, asked.as_ref().map(|(asked, by)| (asked, *by)))
}
