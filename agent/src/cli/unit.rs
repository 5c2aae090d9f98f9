//! `steer unit`: steer a service from its first socket on, by a drop-in of its unit.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail, ensure};

use steer_common::Owner;

use super::{
    output::{self, say},
    target::{By, groups, links},
};
use crate::{
    host::{
        file::replace,
        units::{self, Manager},
    },
    kernel::{self, Datapath, PolicyEntry},
    model::{
        drop_in::{self, Service},
        quote::{quoted, shown},
        similar::nearest,
    },
    run::instance::{CONFIG, Instance, PIN_DIRECTORY, PinDirectory},
};

/// Arguments of `steer unit`.
#[derive(Debug, clap::Args)]
#[command(
    mut_group("By", |by| by.arg("remove")),
    after_help = "The drop-in attaches the service's cgroup before the first command of the service runs. The service does not start if \
                  that fails, for example because the interface is missing or the policy is unknown. With --policy it \
                  also starts while the policy's uplink is missing, and is closed until the uplink exists. When the service stops, its \
                  attachment ends with its cgroup. A service with a RootDirectory= or RootImage= cannot run steer inside: let the \
                  configuration name its cgroup."
)]
pub(super) struct Args {
    /// Name of the service, or of a template, such as x@.service
    #[arg(value_name = "NAME")]
    service: Service,
    #[command(flatten)]
    by: By,
    /// Remove the drop-in
    #[arg(long, conflicts_with = "stdout")]
    remove: bool,
    /// Print the drop-in instead of writing it
    #[arg(long)]
    stdout: bool,
    /// Write it although the unit, the policy or the interface does not exist yet
    #[arg(long)]
    force: bool,
    /// Directory of units
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    dir: PathBuf,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let pins = &instance.pins;
    let file = args.dir.join(args.service.file());
    if args.remove {
        remove(&file)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.force {
        require_unit(args)?;
        require_uplink(&args.by, instance)?;
    }
    let restriction = restriction(args, pins)?;
    let is_restricted = matches!(restriction, Restriction::Set);
    let text = drop_in::text(&args.service, &attach_command(args, pins)?, args.by.is_policy(), is_restricted);
    if let Restriction::Impossible(why) = restriction {
        let name = args.service.name();
        output::note(&format!("warning: {name} can make sockets past the IP stack (AF_PACKET, AF_XDP): {why}"));
    }
    if args.stdout {
        output::write(text.as_bytes())?;
    } else {
        write(&file, &text)?;
        say!("wrote {}", file.display())?;
        let name = args.service.name();
        say!(
            "{name} is steered from its next start on: systemctl daemon-reload && systemctl restart {}",
            quoted(name)
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn require_unit(args: &Args) -> anyhow::Result<()> {
    let name = args.service.name();
    if args.dir.join(name).exists() || units::exists(&name.replace("@.", "@steer.")) {
        return Ok(());
    }
    let perhaps = nearest(name, units::files(Manager::System)).map(|name| format!("; perhaps {name}"));
    bail!("there is no unit {name}{} (--force writes the drop-in anyway)", perhaps.unwrap_or_default())
}

/// Fails if the service could not start.
fn require_uplink(by: &By, instance: &Instance) -> anyhow::Result<()> {
    let By::Policy(name) = by else {
        let groups = groups(CONFIG.as_ref())?;
        return by
            .require(&links()?, &groups)
            .context("the service would not start (--force writes the drop-in anyway)");
    };
    let datapath = instance.pins.to_look()?.as_ref().map(Datapath::open).transpose()?.flatten();
    let in_force = datapath.map(|datapath| datapath.policies()).transpose()?.unwrap_or_default();
    let in_force = in_force.iter().filter(|entry| entry.is_owned_by(Owner::Config)).map(PolicyEntry::name);
    let configured = instance.store(CONFIG.as_ref()).read().unwrap_or_default().policies;
    let known: BTreeSet<_> = in_force.chain(configured.into_iter().map(|policy| policy.name)).collect();
    if known.contains(name) {
        return Ok(());
    }
    let perhaps = nearest(name, known.clone()).map(|name| format!("; perhaps {}", shown(&name)));
    bail!(
        "there is no policy {}{}; the service would not start (--force writes the drop-in anyway)",
        shown(name),
        perhaps.unwrap_or_default()
    )
}

/// Whether the drop-in refuses sockets past the IP stack by settings of systemd.
enum Restriction {
    /// Its policy is not strict, or a security program refuses them.
    Needless,
    Set,
    Impossible(String),
}

fn restriction(args: &Args, pins: &PinDirectory) -> anyhow::Result<Restriction> {
    let pins = pins.to_look()?;
    let unguarded = pins.as_ref().map_or_else(kernel::unguarded_by_kernel, kernel::unguarded);
    if unguarded.is_none() || !args.by.clone().with_defaults(CONFIG.as_ref())?.is_strict(pins.as_ref())? {
        return Ok(Restriction::Needless);
    }
    // A template has no properties; each of its instances has.
    let unit = args.service.name().replace("@.", "@steer.");
    let shown = Command::new("systemctl").args(["show", "--property", drop_in::PROPERTIES, &unit]).output();
    let may = match shown {
        Ok(shown) => drop_in::may_restrict(&String::from_utf8_lossy(&shown.stdout)),
        Err(error) => Err(format!("run systemctl: {error}")),
    };
    Ok(may.map_or_else(Restriction::Impossible, |()| Restriction::Set))
}

/// The command that steers by these arguments, without the unit's name.
fn attach_command(args: &Args, pins: &PinDirectory) -> anyhow::Result<Vec<String>> {
    let utf8 =
        |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()));
    let mut command = vec![utf8(&std::env::current_exe().context("find the steer binary")?)?];
    if pins.0 != Path::new(PIN_DIRECTORY) {
        command.extend(["--bpffs".to_owned(), utf8(&pins.0)?]);
    }
    command.push("attach".to_owned());
    command.extend(args.by.arguments());
    Ok(command)
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    ensure_ours(file)?;
    replace(file, text).with_context(|| format!("write {}", file.display()))
}

/// Removes the drop-in, and its directory if that is empty. A missing drop-in is no error.
fn remove(file: &Path) -> anyhow::Result<()> {
    if !ensure_ours(file)? {
        return Ok(say!("there is no {}, so nothing was removed", file.display())?);
    }
    fs::remove_file(file).with_context(|| format!("remove {}", file.display()))?;
    say!("removed {}; run `systemctl daemon-reload` now", file.display())?;
    match file.parent().map_or(Ok(()), fs::remove_dir) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            Err(error).with_context(|| format!("remove the directory of {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Fails if steer did not write the file. Returns false if there is no file.
fn ensure_ours(file: &Path) -> anyhow::Result<bool> {
    match fs::read_to_string(file) {
        Ok(text) => {
            ensure!(drop_in::is_ours(&text), "{} was not written by `steer unit`; move it away first", file.display());
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => bail!("read {}: {error}", file.display()),
    }
}
