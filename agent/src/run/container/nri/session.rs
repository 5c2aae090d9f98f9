//! One session with a runtime, from the registration to the end of the connection.
//!
//! **Invariant:** requests are handled one at a time, in order, and each is answered before the runtime's timeout: if the work
//! takes longer, the answer is a failure, which refuses the start. A request that cannot be read is answered with a failure.
//! Bytes that are no request end the session.

use std::time::Duration;

use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Error,
    frame::{self, Connection, Decoder, Frame, Kind},
    message::{
        self, Code, ConfigureRequest, ConfigureResponse, Container, ContainerRequest, Empty, Event, PLUGIN_SERVICE,
        PodSandbox, RUNTIME_SERVICE, RegisterPluginRequest, Request, Response, StateChangeEvent, SynchronizeRequest,
        SynchronizeResponse,
    },
};

/// Timeout of the registration, as in NRI.
const REGISTRATION: Duration = Duration::from_secs(5);
/// The maximum duration of the work for a request of a runtime that does not say its timeout, which is two seconds by default.
pub const PATIENCE: Duration = Duration::from_millis(1500);
/// The maximum duration for any runtime.
const LONGEST: Duration = Duration::from_mins(1);
/// The limit of a list that is sent in pieces.
const LIST_LIMIT: usize = 64 << 20;

/// The plugin's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Two digits, which order the plugins.
    pub index: String,
}

/// The plugin's work. After the timeout its futures are dropped; work that they have passed to other threads continues.
pub trait Plugin {
    /// All pods and containers that exist, once at the start.
    fn synchronize(&mut self, pods: Vec<PodSandbox>, containers: Vec<Container>) -> impl Future<Output = ()>;

    /// A container is about to execute its program. An error prevents that, and the runtime shows the error to its user.
    fn start_container(&mut self, pod: PodSandbox, container: Container) -> impl Future<Output = Result<(), String>>;

    /// A container has been stopped, or is no longer known to the runtime.
    fn removed(&mut self, pod: PodSandbox, container: Container) -> impl Future<Output = ()>;
}

/// How a session ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The runtime closed the connection.
    Closed,
    /// The runtime shut the plugin down.
    Shutdown,
}

/// Registers with the runtime at the other end, and answers it until the connection ends.
pub async fn serve(stream: UnixStream, identity: &Identity, plugin: &mut impl Plugin) -> Result<End, Error> {
    let mut session =
        Session { stream, decoder: Decoder::default(), plugin, time_limit: PATIENCE, list: Pieces::default() };
    session.register(identity).await?;
    let registered_by = Instant::now() + REGISTRATION;
    let mut registered = false;
    loop {
        let frame = if registered {
            session.read().await?
        } else {
            let read = timeout_at(registered_by, session.read()).await;
            read.map_err(|_elapsed| Error::NoAnswer(REGISTRATION))??
        };
        let Some(frame) = frame else { return Ok(End::Closed) };
        match (frame.connection, frame.kind) {
            (Connection::Runtime, Kind::Response) if !registered => {
                answer_to_registration(identity, &frame)?;
                registered = true;
            }
            // This request may come before the answer to the registration.
            (Connection::Plugin, Kind::Request) => {
                let request: Request = message::decode("a request", &frame.body)?;
                let (answer, end) = session.answer(&request).await?;
                let body = message::encode(&answer);
                session.send(&Frame { kind: Kind::Response, body, ..frame }).await?;
                if let Some(end) = end {
                    return Ok(end);
                }
            }
            (Connection::Runtime, Kind::Response) => {
                return Err(Error::OutOfPlace { what: "an answer without a request" });
            }
            (Connection::Runtime, Kind::Request) => {
                return Err(Error::OutOfPlace { what: "a request on the connection for answers" });
            }
            (Connection::Plugin, Kind::Response) => {
                return Err(Error::OutOfPlace { what: "an answer on the connection for requests" });
            }
        }
    }
}

fn answer_to_registration(identity: &Identity, frame: &Frame) -> Result<(), Error> {
    let answer: Response = message::decode("the answer to the registration", &frame.body)?;
    match answer.failure() {
        None => Ok(()),
        Some(status) => Err(Error::Refused {
            name: identity.name.clone(),
            index: identity.index.clone(),
            reason: status.message.clone(),
        }),
    }
}

/// A list that is sent in pieces.
#[derive(Default)]
struct Pieces {
    pods: Vec<PodSandbox>,
    containers: Vec<Container>,
    bytes: usize,
}

struct Session<'a, P> {
    stream: UnixStream,
    decoder: Decoder,
    plugin: &'a mut P,
    time_limit: Duration,
    list: Pieces,
}

impl<P: Plugin> Session<'_, P> {
    async fn register(&mut self, identity: &Identity) -> Result<(), Error> {
        let payload = RegisterPluginRequest { plugin_name: identity.name.clone(), plugin_idx: identity.index.clone() };
        let request = Request {
            service: RUNTIME_SERVICE.to_owned(),
            method: "RegisterPlugin".to_owned(),
            payload: payload.encode_to_vec(),
            timeout_ns: i64::try_from(REGISTRATION.as_nanos()).unwrap_or(i64::MAX),
        };
        let body = message::encode(&request);
        self.send(&Frame { connection: Connection::Runtime, stream: 1, kind: Kind::Request, body }).await
    }

    /// The next message. `None` if the runtime has closed the connection.
    async fn read(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if let Some(frame) = self.decoder.take()? {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(self.decoder.buffer()).await? == 0 {
                if self.decoder.is_cut() {
                    return Err(Error::OutOfPlace { what: "the end of the connection within a message" });
                }
                return Ok(None);
            }
        }
    }

    /// Sends a message. A runtime that does not read does not wait for an answer either, so this may fail.
    async fn send(&mut self, frame: &Frame) -> Result<(), Error> {
        let bytes = frame::encode(frame);
        timeout(REGISTRATION, self.stream.write_all(&bytes))
            .await
            .map_err(|elapsed| Error::Socket(std::io::Error::new(std::io::ErrorKind::TimedOut, elapsed)))??;
        Ok(())
    }

    /// The answer to a request, and whether it ends the session.
    async fn answer(&mut self, request: &Request) -> Result<(Response, Option<End>), Error> {
        if request.service != PLUGIN_SERVICE {
            let what = format!("this plugin has no service {:?}", short(&request.service));
            return Ok((Response::failed(Code::Unimplemented, what), None));
        }
        let answer = match request.method.as_str() {
            "Configure" => self.configure(&request.payload),
            "Synchronize" => self.synchronize(&request.payload).await?,
            "StateChange" => self.state_change(&request.payload).await,
            "Shutdown" => return Ok((Response::done(&Empty {}), Some(End::Shutdown))),
            other => self.called_by_event(other, &request.payload).await,
        };
        Ok((answer.unwrap_or_else(|error| Response::failed(Code::InvalidArgument, error.to_string())), None))
    }

    fn configure(&mut self, payload: &[u8]) -> Result<Response, Error> {
        let asked: ConfigureRequest = message::decode("a configuration", payload)?;
        self.time_limit = time_limit(asked.request_timeout_ms);
        log::debug!(
            "the runtime is {} {}; a request may take {} ms",
            asked.runtime_name,
            asked.runtime_version,
            self.time_limit.as_millis()
        );
        Ok(Response::done(&ConfigureResponse { events: Event::MASK }))
    }

    /// Answers a list of containers. The outer error ends the session.
    async fn synchronize(&mut self, payload: &[u8]) -> Result<Result<Response, Error>, Error> {
        let asked: SynchronizeRequest = match message::decode("the list of containers", payload) {
            Ok(asked) => asked,
            Err(error) => return Ok(Err(error)),
        };
        self.list.bytes += payload.len();
        if self.list.bytes > LIST_LIMIT {
            return Err(Error::TooLong { length: self.list.bytes as u64, limit: LIST_LIMIT });
        }
        self.list.pods.extend(asked.pods);
        self.list.containers.extend(asked.containers);
        if !asked.more {
            let Pieces { pods, containers, .. } = std::mem::take(&mut self.list);
            // Work that takes longer continues later: without an answer the runtime would disconnect the plugin.
            if timeout(self.time_limit, self.plugin.synchronize(pods, containers)).await.is_err() {
                log::warn!(
                    "steering the running containers takes longer than the runtime waits; it continues after the answer"
                );
            }
        }
        Ok(Ok(Response::done(&SynchronizeResponse { more: asked.more })))
    }

    async fn state_change(&mut self, payload: &[u8]) -> Result<Response, Error> {
        let change: StateChangeEvent = message::decode("a state change", payload)?;
        match Event::of_number(change.event) {
            Some(event) => Ok(self.container(event, change.pod, change.container).await),
            None => Ok(Response::done(&Empty {})),
        }
    }

    /// Handles an event that is a separate call.
    async fn called_by_event(&mut self, method: &str, payload: &[u8]) -> Result<Response, Error> {
        let Some(event) = Event::of_method(method) else {
            let what = format!("this plugin has no method {:?}", short(method));
            return Ok(Response::failed(Code::Unimplemented, what));
        };
        let asked: ContainerRequest = message::decode("a container", payload)?;
        Ok(self.container(event, asked.pod, asked.container).await)
    }

    async fn container(&mut self, event: Event, pod: Option<PodSandbox>, container: Option<Container>) -> Response {
        let Some(container) = container else {
            return Response::failed(Code::InvalidArgument, "the event of a container has no container".to_owned());
        };
        let pod = pod.unwrap_or_default();
        let done = match event {
            Event::Start => {
                let started = timeout(self.time_limit, self.plugin.start_container(pod, container)).await;
                started.unwrap_or_else(|_elapsed| {
                    Err(format!("steer: not steered within {} ms, so it is not started", self.time_limit.as_millis()))
                })
            }
            Event::Stop | Event::Remove => {
                if timeout(self.time_limit, self.plugin.removed(pod, container)).await.is_err() {
                    log::warn!("cleaning up after a container takes longer than the runtime waits");
                }
                Ok(())
            }
        };
        match done {
            Ok(()) => Response::done(&Empty {}),
            Err(reason) => Response::failed(Code::Unknown, reason),
        }
    }
}

/// The maximum duration of the work, for this timeout of the runtime.
fn time_limit(request_timeout_ms: i64) -> Duration {
    match u64::try_from(request_timeout_ms) {
        Ok(0) | Err(_) => PATIENCE,
        Ok(known) => (Duration::from_millis(known) * 3 / 4).min(LONGEST),
    }
}

/// The start of a string that the runtime sent, for a message.
fn short(word: &str) -> String {
    word.chars().take(64).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests;
