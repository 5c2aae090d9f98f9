//! Handles the runtime's reports of containers: a container is steered, or does not start.
//!
//! **Invariant:** no state is kept between containers: the configuration is read for each, and the state in force is in the
//! pins. A running container that cannot be steered is closed.

use std::sync::Arc;

use anyhow::Context as _;
use sd_notify::NotifyState;

use super::{
    classify,
    hook::{Files, forget},
};
use crate::{
    apply::permit::Asker,
    host::cgroup::Hierarchy,
    model::{
        cgroup_path::CgroupPath,
        config::{Config, Missing},
        error_text::describe,
    },
    run::{
        container::{
            self, Action, Error, Phase,
            nri::{self, Container, Plugin, PodSandbox, State},
        },
        instance::Instance,
    },
};

/// The state that the work needs, on any thread.
#[derive(Debug)]
pub struct Tools {
    /// The instance whose pins are changed.
    pub instance: Instance,
    /// The files that list what containers may ask for.
    pub files: Files,
}

/// The plugin.
#[derive(Debug)]
pub struct Steering {
    /// The state that the work needs.
    pub tools: Arc<Tools>,
    /// Whether the runtime has sent its list of containers since this was last cleared.
    pub is_synchronized: bool,
}

impl Plugin for Steering {
    async fn synchronize(&mut self, pods: Vec<PodSandbox>, containers: Vec<Container>) {
        self.is_synchronized = true;
        log::info!("registered with the runtime, which has {} containers", containers.len());
        let tools = Arc::clone(&self.tools);
        on_a_thread(move || tools.catch_up(&pods, &containers)).await;
        if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
            log::warn!("notify the service manager that the plugin is ready: {error}");
        }
    }

    async fn start_container(&mut self, pod: PodSandbox, container: Container) -> Result<(), String> {
        let tools = Arc::clone(&self.tools);
        let what = name(&pod, &container);
        let started = on_a_thread(move || tools.start(&pod, &container)).await;
        started.unwrap_or_else(|| Err(anyhow::anyhow!("the thread that steers it panicked"))).map_err(|error| {
            let refusal = format!("steer: {what} is not started: {}", describe(&error));
            log::error!("{refusal}");
            refusal
        })
    }

    async fn removed(&mut self, _pod: PodSandbox, _container: Container) {
        let tools = Arc::clone(&self.tools);
        if let Some(Err(error)) = on_a_thread(move || forget(&tools.instance)).await {
            // The container and its links are gone, so what is left steers nothing.
            log::warn!("{}; it is removed with the next container", describe(&error.into()));
        }
    }
}

/// Blocking work, which continues if its caller stops waiting.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

impl Tools {
    /// The current configuration. The wait for the lock is shorter than the whole time limit, so that the answer can name the
    /// lock's holder.
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.files.read(&self.instance)?;
        config.containers.timeout = config.containers.timeout.min(nri::PATIENCE * 4 / 5);
        Ok(config)
    }

    /// Handles a container that has not executed its program.
    fn start(&self, pod: &PodSandbox, container: &Container) -> anyhow::Result<()> {
        let config = match self.config() {
            Ok(config) => config,
            Err(error) if classify::asks(pod, container) => return Err(error),
            Err(error) => {
                log::error!("{} asks for nothing and is not changed: {}", name(pod, container), describe(&error));
                return Ok(());
            }
        };
        let started = action(&config, pod, container).and_then(|action| match action {
            Some(action) => self.steer(&config, container, &action, Phase::Starts).map(drop),
            None => Ok(()),
        });
        match started {
            // A container that the host exempts must start, even if steer fails.
            Err(error) if classify::is_exempt(&config, pod) => {
                log::error!("{} starts, and stays closed: {}", name(pod, container), describe(&error));
                Ok(())
            }
            done => done,
        }
    }

    /// Handles the containers that started while the plugin was not connected.
    fn catch_up(&self, pods: &[PodSandbox], containers: &[Container]) {
        let config = self.config();
        let nothing = PodSandbox::default();
        for container in containers.iter().filter(|container| container.pid != 0 && is_alive(container)) {
            let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id).unwrap_or(&nothing);
            let caught_up = match &config {
                Ok(config) => self.take_on(config, pod, container),
                Err(error) if classify::asks(pod, container) => Err(anyhow::anyhow!(describe(error))),
                Err(_) => Ok(()),
            };
            let Err(error) = caught_up else { continue };
            let what = name(pod, container);
            match error.downcast_ref() {
                Some(Error::Ended { .. }) => continue,
                Some(Error::Stranger { .. }) => {
                    log::error!("{what} is not changed: {}", describe(&error));
                    continue;
                }
                _ => {}
            }
            let defaults = Config::default();
            let config = config.as_ref().unwrap_or(&defaults);
            match self.steer(config, container, &Action::Close, Phase::Runs) {
                Ok(_) => log::error!("{what} runs already and is closed now: {}", describe(&error)),
                Err(failed) => log::error!(
                    "{what} may not have what it asks for ({}), and is NOT closed: {}",
                    describe(&error),
                    describe(&failed)
                ),
            }
        }
    }

    fn take_on(&self, config: &Config, pod: &PodSandbox, container: &Container) -> anyhow::Result<()> {
        let Some(action) = action(config, pod, container)? else { return Ok(()) };
        let phase = if container.state == State::Created as i32 { Phase::Created } else { Phase::Runs };
        let what = name(pod, container);
        match self.steer(config, container, &action, phase) {
            Err(error) if matches!(error.downcast_ref(), Some(Error::Missing { .. })) => {
                log::error!("{what} runs already, and is closed until its uplink is there: {}", describe(&error));
                let mut waiting = config.clone();
                waiting.containers.missing = Missing::Close;
                self.steer(&waiting, container, &action, phase).map(drop)
            }
            Ok(cgroup) => {
                log::info!("{what} runs already; {cgroup} is {}", described(&action));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn steer(
        &self,
        config: &Config,
        container: &Container,
        action: &Action,
        phase: Phase,
    ) -> anyhow::Result<CgroupPath> {
        let pins = self.instance.pins.to_change()?;
        Ok(container::steer(&pins, config, to_be_steered(container, phase), action)?)
    }
}

/// The action for a container, or `None`. Without a request, the container of this process is exempt, so that the plugin does not
/// wait for itself.
fn action(config: &Config, pod: &PodSandbox, container: &Container) -> anyhow::Result<Option<Action>> {
    let asked = classify::asked(config, pod, container)?;
    if container.pid == 0 {
        anyhow::ensure!(asked.is_none(), "the runtime reports no process of the container");
        return Ok(None);
    }
    if asked.is_none() {
        let hierarchy = Hierarchy::find()?;
        let cgroup = hierarchy.of_process(container.pid).context("its cgroup cannot be determined")?;
        if !cgroup.is_root() && hierarchy.own()?.is_in(&cgroup) {
            return Ok(None);
        }
    }
    let asked = asked.as_ref().map(|asked| (asked, Asker::Container));
    Ok(Action::of(config, to_be_steered(container, Phase::Starts), asked)?)
}

fn to_be_steered(container: &Container, phase: Phase) -> container::Container<'_> {
    container::Container { pid: container.pid, id: &container.id, phase }
}

fn is_alive(container: &Container) -> bool {
    [State::Created, State::Paused, State::Running].iter().any(|state| container.state == *state as i32)
}

fn described(action: &Action) -> String {
    match action {
        Action::Steer(grant) => format!("steered by {}", grant.name),
        Action::Release => "released".to_owned(),
        Action::Close => "closed".to_owned(),
    }
}

/// A container, by its names in the cluster.
fn name(pod: &PodSandbox, container: &Container) -> String {
    format!("container {} of pod {}/{}", container.name, pod.namespace, pod.name)
}
