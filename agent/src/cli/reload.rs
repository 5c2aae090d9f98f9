//! `steer reload`: make the daemon read its files again, and print what `steer check` prints; `systemctl reload steer` runs it.

use std::{path::Path, process::ExitCode};

use super::{block_on, check, output::say, plan};
use crate::{
    host::capability::require_privilege,
    model::{quote::shown, spec::changes},
    run::{
        api::{Health, InterfaceDocument, PolicyDocument, client::Client},
        instance::Instance,
        plan::Running,
    },
};

/// Arguments of `steer reload`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 if the files are in force, 1 if they are not, with the reason.")]
pub(super) struct Args {
    /// Change nothing, and show what would change: see `steer plan`
    #[arg(long)]
    dry_run: bool,
    /// Print the plan as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let missing = || anyhow::anyhow!("no daemon answers at {}; is one running?", instance.socket.display());
    if args.dry_run {
        require_privilege("reload")?;
        let daemon = block_on(Running::find(instance))??.ok_or_else(missing)?;
        return plan::show(instance, Some(&daemon), None, args.json);
    }
    let (health, links, changed) = block_on(async {
        let daemon = Client::reach(&instance.socket).await?.ok_or_else(missing)?;
        let before: Vec<PolicyDocument> = daemon.get("/v1/policies").await?;
        daemon.post("/v1/reload").await?;
        let changed = changed(&before, &daemon.get::<Vec<PolicyDocument>>("/v1/policies").await?);
        let links: Vec<InterfaceDocument> = daemon.get("/v1/interfaces").await?;
        anyhow::Ok((daemon.get::<Health>("/v1/health").await?, links, changed))
    })??;
    let store = instance.store(Path::new(&health.config));
    // A file that was changed since then has mistakes of its own.
    if let Ok(config) = store.read() {
        check::report(&store, &config, Some(&InterfaceDocument::table(&links)))?;
    }
    for line in changed {
        say!("{}", shown(&line))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the daemon has changed, line by line.
fn changed(before: &[PolicyDocument], now: &[PolicyDocument]) -> Vec<String> {
    let find = |all: &[PolicyDocument], name: &str| all.iter().find(|policy| policy.name == name).cloned();
    let mut lines = Vec::new();
    for policy in now {
        match find(before, &policy.name) {
            None => lines.push(format!("policy {} is new", policy.name)),
            Some(before) => {
                let changes = changes(&before.policy, &policy.policy);
                if !changes.is_empty() {
                    lines.push(format!("policy {} has changed: {}", policy.name, changes.join(", ")));
                }
            }
        }
    }
    let removed = before.iter().filter(|policy| find(now, &policy.name).is_none());
    lines.extend(removed.map(|policy| format!("policy {} is removed", policy.name)));
    if lines.is_empty() {
        // As a rule it was faster than this command.
        lines.push(
            "no policy has changed since the daemon read the files, which it does when they are saved".to_owned(),
        );
    }
    lines
}
