//! What a reload of the running daemon would change, or the start of one.

use std::path::{Path, PathBuf};

use anyhow::bail;
use steer_common::Owner;

use super::{
    api::{Health, PolicyDocument, client::Client},
    daemon::describe_emptied,
    instance::{CONFIG, Instance},
};
use crate::{
    apply::{
        plan::{self, Plan},
        resolve::Namespace,
    },
    host::{cgroup::Hierarchy, link},
    kernel::{self, Datapath},
    model::{
        config::Config,
        policy::{Policies, emptied, is_of_directory},
        spec::Uplink,
    },
};

/// The running daemon, as far as a plan depends on it.
#[derive(Debug)]
pub struct Running {
    /// Its configuration file.
    config: PathBuf,
    /// Its policies.
    policies: Vec<PolicyDocument>,
}

impl Running {
    /// Asks the daemon; `None` if none answers.
    pub async fn find(instance: &Instance) -> anyhow::Result<Option<Self>> {
        let Some(daemon) = Client::find(&instance.socket).await else { return Ok(None) };
        let health = daemon.get::<Health>("/v1/health").await?;
        Ok(Some(Self { config: health.config.into(), policies: daemon.get("/v1/policies").await? }))
    }

    fn refuses(&self, file: &Path, next: &Config) -> Option<String> {
        let own = self.config.display().to_string();
        let is = |policy: &PolicyDocument, name: &str| {
            let is_file = policy.file == own && file == Path::new(name);
            (is_file || policy.file == name || is_of_directory(&policy.file, name))
                && policy.policy.interface != Some(Uplink::Closed)
        };
        emptied(|name| self.policies.iter().any(|policy| is(policy, name)), next).map(describe_emptied)
    }
}

/// Makes the plan. `file` replaces the configuration file; the files of single policies stay.
pub async fn make(instance: &Instance, daemon: Option<&Running>, file: Option<&Path>) -> anyhow::Result<Plan> {
    let config = daemon.map_or(Path::new(CONFIG), |daemon| &daemon.config);
    let file = file.unwrap_or(config);
    let next = instance.store(config).with_file(file).read()?;
    let (pins, hierarchy) = (instance.pins.to_look()?, Hierarchy::find()?);
    if next.policies.is_empty()
        && let Some(datapath) = pins.as_ref().map(Datapath::open).transpose()?.flatten()
        && datapath.policies()?.iter().any(|entry| entry.is_owned_by(Owner::Config) && !entry.is_retired())
    {
        bail!(
            "{} has no policy and would be refused: the previous policies stay in force (`steer off` ends steering)",
            file.display()
        );
    }
    if let Some(refused) = daemon.and_then(|daemon| daemon.refuses(file, &next)) {
        bail!("{refused}");
    }
    let (links, policies) = (link::read().await?, Policies::new(next));
    let marks = policies.marks();
    let groups = policies.uplinks().to_vec();
    let namespace = Namespace::own(&links, kernel::netns_cookie()?, marks, &groups);
    // A daemon that runs has restored it.
    let released = daemon.is_none().then_some(instance.released.as_path());
    plan::plan(pins.as_ref(), &hierarchy, policies, namespace, released)
}
