//! The requests of the API that change something, carried out on the worker.

use axum::http::StatusCode;
use tokio::sync::watch;

use super::worker::{describe_emptied, show_policies, warn_of_start_only};
use crate::{
    apply::{
        converge::{NotAttached, Steering},
        uplinks::{ByHand, ByHandError},
    },
    host::policy_files::Store,
    kernel,
    model::{config::DaemonConfig, policy::Policies},
    run::api::{Decided, PolicyDocument, PolicyRequest, Problem, Reply, Request, View},
};

/// The state that an answer needs.
pub(super) struct Answering<'a> {
    pub(super) store: &'a Store,
    pub(super) daemon: &'a DaemonConfig,
    pub(super) steering: &'a mut Steering,
    pub(super) view: &'a watch::Sender<View>,
}

/// Why a request was not carried out, or not completely. If it was not complete, the daemon retries.
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
    /// Answers a request. The error is that of carrying it out. A request whose client no longer waits is dropped.
    pub(super) fn answer(mut self, request: Request) -> Result<(), kernel::Error> {
        match request {
            request if request.is_abandoned() => Ok(()),
            Request::Put(name, policy, reply) => answer_to(reply, self.put(&name, &policy)),
            Request::Remove(name, reply) => answer_to(reply, self.remove(&name)),
            Request::Hand(decided, reply) => answer_to(reply, self.set_by_hand(&decided)),
            Request::Reload(reply) => answer_to(reply, self.reload()),
        }
    }

    fn put(&mut self, name: &str, policy: &PolicyRequest) -> Result<(PolicyDocument, bool), Failure> {
        let text = policy.to_toml(name).map_err(|error| Problem::internal(&error))?;
        self.store.read().map_err(Problem::in_files)?;
        let is_new = self.store.put(name, &text, policy.kept())?;
        log::info!("policy {name} is {}", if is_new { "new" } else { "changed" });
        self.carry_out(|open| open.policy == name)?;
        let policy = self.steering.policies().configured().iter().find(|policy| policy.name == name);
        let removed = || Problem::new(StatusCode::CONFLICT, format!("policy {name:?} was removed at the same time"));
        let policy = policy.ok_or_else(removed)?;
        Ok((PolicyDocument::new(policy, self.store.kept(policy)), is_new))
    }

    fn remove(&mut self, name: &str) -> Result<(), Failure> {
        self.store.read().map_err(Problem::in_files)?;
        self.store.remove(name)?;
        log::info!("policy {name} is removed");
        self.carry_out(|_| false)
    }

    /// Returns the sockets that stay on the member.
    fn set_by_hand(&mut self, Decided { group, member, hand }: &Decided) -> Result<Vec<String>, Failure> {
        match self.steering.set_by_hand(&ByHand { group, member, hand: *hand }) {
            Ok(moved) => Ok(moved.iter().flat_map(|moved| &moved.remaining).map(ToString::to_string).collect()),
            Err(ByHandError::Kernel(error)) => Err(unfinished("not carried out completely", error)),
            Err(error) => Err(Problem::new(StatusCode::NOT_FOUND, error.to_string()).into()),
        }
    }

    /// As after a change of the files, an empty set of policies is refused: it is more likely a mistake.
    fn reload(&mut self) -> Result<(), Failure> {
        if self.store.read().map_err(Problem::in_files)?.policies.is_empty() && self.steering.has_policies() {
            let detail =
                "there is no policy in the files; the previous policies stay in force (`steer off` ends steering)";
            return Err(Problem::new(StatusCode::CONFLICT, detail).into());
        }
        self.carry_out(|_| true)?;
        log::info!("reloaded {}", self.store.file().display());
        Ok(())
    }

    /// Reads the files and applies them. An empty set of policies is allowed: the request asked for it.
    /// `concerns`: whether the request fails with a cgroup that cannot be attached. The others stay as they are, and `status` shows them.
    fn carry_out(&mut self, concerns: impl Fn(&NotAttached) -> bool) -> Result<(), Failure> {
        let config = self.store.read().map_err(Problem::in_files)?;
        if let Some(emptied) = self.steering.policies().emptied_by(&config) {
            return Err(Problem::new(StatusCode::CONFLICT, describe_emptied(emptied)).into());
        }
        warn_of_start_only(self.daemon, &config);
        self.steering.set_policies(Policies::new(config));
        show_policies(self.view, self.steering);
        self.steering.converge().map_err(|error| unfinished("kept, but not carried out yet", error))?;
        let open: Vec<_> = self.steering.open().iter().filter(|open| concerns(open)).map(|open| &*open.what).collect();
        if open.is_empty() {
            return Ok(());
        }
        let detail = format!("everything else is in force, but {}", open.join("; "));
        Err(Problem::new(StatusCode::CONFLICT, detail).into())
    }
}

fn unfinished(what: &str, error: kernel::Error) -> Failure {
    let problem = Box::new(Problem::internal(&format!("{what}; the daemon retries: {error}")));
    Failure { problem, unfinished: Some(Box::new(error)) }
}

/// A client that has disconnected gets no answer.
fn answer_to<T>(reply: Reply<T>, answer: Result<T, Failure>) -> Result<(), kernel::Error> {
    let (answer, unfinished) = match answer {
        Ok(answer) => (Ok(answer), None),
        Err(failure) => (Err(*failure.problem), failure.unfinished),
    };
    drop(reply.send(answer));
    unfinished.map_or(Ok(()), |error| Err(*error))
}
