//! The hooks of container runtimes: steer a container that is about to start, and forget removed containers.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Action, Container, Phase, oci::Created};
use crate::{
    apply::permit::Asker,
    host::capability::require_privilege,
    model::{
        config::{Config, Containers},
        spec::annotations::Request,
    },
    run::{container, instance::Instance},
};

/// The files that list what containers may ask for.
#[derive(Clone, Debug)]
pub struct Files {
    /// The configuration file.
    pub config: PathBuf,
}

impl Files {
    /// Reads the configuration.
    pub fn read(&self, instance: &Instance) -> anyhow::Result<Config> {
        instance.store(&self.config).read().context("what containers may ask for cannot be read")
    }
}

/// Gives a container that is about to start the policy that it asks for. Without a request, releases it from `parent`.
pub fn steer(
    files: &Files,
    instance: &Instance,
    created: &Created,
    asked: Option<(&Request, Asker)>,
) -> anyhow::Result<()> {
    let config = match files.read(instance) {
        // A steered container stays steered. Any other container does not depend on files that cannot be read.
        Err(error) if asked.is_none() => {
            log::debug!("{error:#}");
            return Ok(());
        }
        config => config?,
    };
    let container = Container { pid: created.pid, id: &created.id, phase: Phase::Starts };
    if let Some(action) = Action::of(&config, container, asked)? {
        require_privilege("hook")?;
        container::steer(&instance.pins.to_change()?, &config, container, &action)?;
    }
    Ok(())
}

/// Forgets the containers that are gone.
pub fn forget(instance: &Instance) -> Result<(), container::Error> {
    let Some(pins) = instance.pins.to_look()? else { return Ok(()) };
    container::forget(&pins, Containers::default().timeout)
}
