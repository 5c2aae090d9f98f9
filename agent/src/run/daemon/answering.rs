//! What the API asks, answered between two events.

use axum::http::StatusCode;

use crate::{
    apply::converge::Steering,
    host::{cgroup, policy_files::Store},
    kernel::{self, Pins},
    model::policy::Policies,
    run::api::{Health, InterfaceDocument, PolicyDocument, PolicyRequest, Problem, Reply, Request},
};

/// What an answer needs.
pub(super) struct Answering<'a> {
    pub(super) store: &'a Store,
    pub(super) pins: &'a Pins,
    pub(super) steering: &'a mut Steering,
    pub(super) cgroups: &'a mut cgroup::Watch,
    /// Whether something failed and will be tried again.
    pub(super) behind: bool,
}

/// Why something asked for was not done, or not to its end: then the daemon tries again.
struct Failure {
    problem: Box<Problem>,
    unfinished: Option<Box<kernel::Error>>,
}

impl<P: Into<Problem>> From<P> for Failure {
    fn from(problem: P) -> Self {
        Self { problem: Box::new(problem.into()), unfinished: None }
    }
}

impl Answering<'_> {
    /// Answers. The error is that of carrying out what was asked.
    pub(super) fn answer(mut self, request: Request) -> Result<(), kernel::Error> {
        match request {
            Request::Policies(reply) => tell(reply, Ok(self.documents())),
            Request::Interfaces(reply) => {
                let links = InterfaceDocument::all(self.steering.links(), self.steering.policies().configured());
                tell(reply, Ok(links))
            }
            Request::Health(reply) => tell(reply, Ok(self.health())),
            Request::Put(name, policy, reply) => tell(reply, self.put(&name, &policy)),
            Request::Remove(name, reply) => tell(reply, self.remove(&name)),
            Request::Reload(reply) => tell(reply, self.reload()),
        }
    }

    fn documents(&self) -> Vec<PolicyDocument> {
        let policies = self.steering.policies().configured().iter();
        policies.map(|policy| PolicyDocument::new(policy, self.store.kept(policy))).collect()
    }

    fn health(&self) -> Health {
        let config_error = self.store.read().err().map(|error| error.to_string());
        Health {
            ok: !self.behind && config_error.is_none(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pins: self.pins.root().display().to_string(),
            config: self.store.file().display().to_string(),
            config_error,
        }
    }

    fn put(&mut self, name: &str, policy: &PolicyRequest) -> Result<(PolicyDocument, bool), Failure> {
        let text = policy.to_toml(name).map_err(|error| Problem::internal(&error))?;
        let is_new = self.store.put(name, &text, policy.kept())?;
        log::info!("policy {name} is {}", if is_new { "new" } else { "changed" });
        self.carry_out()?;
        let policy = self.documents().into_iter().find(|policy| policy.name == name);
        let removed = || Problem::new(StatusCode::CONFLICT, format!("policy {name:?} was removed at the same time"));
        Ok((policy.ok_or_else(removed)?, is_new))
    }

    fn remove(&mut self, name: &str) -> Result<(), Failure> {
        self.store.remove(name)?;
        log::info!("policy {name} is removed");
        self.carry_out()
    }

    /// As when a file changes: no policy at all is more likely a mistake.
    fn reload(&mut self) -> Result<(), Failure> {
        if self.store.read()?.policies.is_empty() && self.steering.has_policies() {
            let detail = "there is no policy in the files, and what was in force stays so: `steer off` ends steering";
            return Err(Problem::new(StatusCode::CONFLICT, detail).into());
        }
        self.carry_out()?;
        log::info!("reloaded {}", self.store.file().display());
        Ok(())
    }

    /// Reads all there is, and makes it so. Here no policy at all is as good as any other number: somebody asked for it.
    fn carry_out(&mut self) -> Result<(), Failure> {
        self.steering.set_policies(Policies::new(self.store.read()?));
        self.steering.converge(self.cgroups).map_err(|error| Failure {
            problem: Box::new(Problem::internal(&format!("kept, but not carried out yet, and tried again: {error}"))),
            unfinished: Some(Box::new(error)),
        })
    }
}

/// Whoever has asked and gone away needs no answer.
fn tell<T>(reply: Reply<T>, answer: Result<T, Failure>) -> Result<(), kernel::Error> {
    let (answer, unfinished) = match answer {
        Ok(answer) => (Ok(answer), None),
        Err(failure) => (Err(*failure.problem), failure.unfinished),
    };
    drop(reply.send(answer));
    unfinished.map_or(Ok(()), |error| Err(*error))
}
