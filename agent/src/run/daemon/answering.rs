//! What the API asks to be changed, carried out on the worker.

use axum::http::StatusCode;
use tokio::sync::watch;

use super::worker::{describe_emptied, show_policies};
use crate::{
    apply::converge::Steering,
    host::policy_files::Store,
    kernel,
    model::policy::Policies,
    run::api::{PolicyDocument, PolicyRequest, Problem, Reply, Request, View},
};

/// What an answer needs.
pub(super) struct Answering<'a> {
    pub(super) store: &'a Store,
    pub(super) steering: &'a mut Steering,
    pub(super) view: &'a watch::Sender<View>,
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
    /// Answers. The error is that of carrying out what was asked. A request whose client waits no longer is not carried out.
    pub(super) fn answer(mut self, request: Request) -> Result<(), kernel::Error> {
        match request {
            request if request.is_abandoned() => Ok(()),
            Request::Put(name, policy, reply) => answer_to(reply, self.put(&name, &policy)),
            Request::Remove(name, reply) => answer_to(reply, self.remove(&name)),
            Request::Reload(reply) => answer_to(reply, self.reload()),
        }
    }

    fn put(&mut self, name: &str, policy: &PolicyRequest) -> Result<(PolicyDocument, bool), Failure> {
        let text = policy.to_toml(name).map_err(|error| Problem::internal(&error))?;
        let is_new = self.store.put(name, &text, policy.kept())?;
        log::info!("policy {name} is {}", if is_new { "new" } else { "changed" });
        self.carry_out()?;
        let policy = self.steering.policies().configured().iter().find(|policy| policy.name == name);
        let removed = || Problem::new(StatusCode::CONFLICT, format!("policy {name:?} was removed at the same time"));
        let policy = policy.ok_or_else(removed)?;
        Ok((PolicyDocument::new(policy, self.store.kept(policy)), is_new))
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
        let config = self.store.read()?;
        if let Some(emptied) = self.steering.policies().emptied_by(&config) {
            return Err(Problem::new(StatusCode::CONFLICT, describe_emptied(emptied)).into());
        }
        self.steering.set_policies(Policies::new(config));
        show_policies(self.view, self.steering);
        self.steering.converge().map_err(|error| Failure {
            problem: Box::new(Problem::internal(&format!("kept, but not carried out yet, and tried again: {error}"))),
            unfinished: Some(Box::new(error)),
        })
    }
}

/// Whoever has asked and gone away needs no answer.
fn answer_to<T>(reply: Reply<T>, answer: Result<T, Failure>) -> Result<(), kernel::Error> {
    let (answer, unfinished) = match answer {
        Ok(answer) => (Ok(answer), None),
        Err(failure) => (Err(*failure.problem), failure.unfinished),
    };
    drop(reply.send(answer));
    unfinished.map_or(Ok(()), |error| Err(*error))
}
