//! The client side of the API, for the commands.
//!
//! **Invariant:** a command uses only the daemon of its own pin directory. Without a daemon, the command does the work itself.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::UnixStream;

use super::Problem;

/// In what time a daemon that runs answers something that asks for no work.
const SOON: Duration = Duration::from_secs(2);
/// The delay before a request is sent again that the daemon had no place for. It doubles up to the longest.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// How long a daemon that has not answered is not asked again: a command that asks several things waits once.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request failed.
#[derive(Debug, Error)]
pub enum Error {
    /// No daemon answers.
    #[error("ask the daemon at {socket}: {source}")]
    Unreachable {
        /// Path of the socket.
        socket: String,
        /// The cause.
        source: io::Error,
    },
    /// This user may not connect.
    #[error("permission denied: the daemon's socket {socket} is for root; run this as root, for example with sudo")]
    Forbidden {
        /// Path of the socket.
        socket: String,
    },
    /// A daemon listens, and does not answer.
    #[error("{}", silence(socket, *pid))]
    Silent {
        /// Path of the socket.
        socket: String,
        /// The daemon.
        pid: Option<i32>,
    },
    /// The daemon closes the connections.
    #[error(
        "the daemon closes connections to {socket}: this user has too many of them open; end some of the programs that use it, or try again \
         later"
    )]
    Busy {
        /// Its socket.
        socket: String,
    },
    /// The daemon refused the request.
    #[error("{}", described(.0))]
    Refused(Problem),
    /// The answer cannot be parsed.
    #[error("the daemon's answer: {0}")]
    Garbled(String),
}

/// Why nothing follows any more.
#[derive(Debug, Error)]
pub enum Following {
    /// The daemon has ended.
    #[error("the daemon has ended")]
    Ended,
    /// It was refused, or what came could not be handled.
    #[error(transparent)]
    Failed(anyhow::Error),
}

impl From<Error> for Following {
    fn from(error: Error) -> Self {
        Self::Failed(error.into())
    }
}

fn parse<T: DeserializeOwned>((_, body): (StatusCode, Bytes)) -> Result<T, Error> {
    serde_json::from_slice(&body).map_err(|error| Error::Garbled(error.to_string()))
}

/// Whether the other side has closed the connection without an answer.
fn is_closed(error: &io::Error) -> bool {
    let of_hyper = error.get_ref().and_then(|source| source.downcast_ref::<hyper::Error>());
    of_hyper.is_some_and(|error| {
        let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
        let kind = cause.map(io::Error::kind);
        error.is_incomplete_message() || matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
    })
}

fn silence(socket: &str, pid: Option<i32>) -> String {
    let (process, wake) = pid.map_or_else(Default::default, |pid| {
        (format!(" (process {pid})"), format!("`kill -CONT {pid}` wakes a daemon that is stopped; otherwise "))
    });
    format!(
        "the daemon{process} does not answer at {socket}: {wake}restart it, as with `systemctl restart steer`; what is steered stays steered"
    )
}

fn refusal(body: &[u8]) -> Error {
    serde_json::from_slice(body).map_or_else(|error| Error::Garbled(error.to_string()), Error::Refused)
}

fn described(problem: &Problem) -> String {
    let fields = problem.errors.iter().map(|error| match error.field.as_str() {
        // As `steer check` prints it.
        _ if error.place.is_some() => format!("\n{}", error.detail),
        "" => format!("\n  {}", error.detail),
        field => format!("\n  {field}: {}", error.detail),
    });
    [problem.detail.clone()].into_iter().chain(fields).collect()
}

/// A daemon that has not answered this process.
struct Silence {
    socket: PathBuf,
    pid: Option<i32>,
    since: Instant,
}

static SILENT: Mutex<Option<Silence>> = Mutex::new(None);

/// That the daemon at a socket has just not answered, if it has not.
fn silent(socket: &Path) -> Option<Error> {
    let known = SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.as_ref().filter(|known| known.socket == socket && known.since.elapsed() < REMEMBERED)?;
    Some(Error::Silent { socket: socket.display().to_string(), pid: known.pid })
}

/// A running daemon.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    socket: &'a Path,
}

impl<'a> Client<'a> {
    /// The daemon that listens on a socket. `None` if no daemon listens, or if this user may not connect.
    pub async fn find(socket: &'a Path) -> Option<Self> {
        UnixStream::connect(socket).await.ok().map(|_| Self { socket })
    }

    /// As [`Self::find`], but fails if this user may not connect.
    pub async fn reach(socket: &'a Path) -> Result<Option<Self>, Error> {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err(Error::Forbidden { socket: socket.display().to_string() })
            }
            connected => Ok(connected.ok().map(|_| Self { socket })),
        }
    }

    /// Fails if the daemon does not answer at all, soon.
    pub async fn knock(self) -> Result<(), Error> {
        if let Some(silent) = silent(self.socket) {
            return Err(silent);
        }
        // Whatever the answer is.
        match tokio::time::timeout(SOON, self.begin(Method::GET, "/", Bytes::new())).await {
            Ok(answer) => answer.map(drop),
            Err(_elapsed) => {
                let pid = UnixStream::connect(self.socket).await.ok().and_then(|stream| stream.peer_cred().ok()?.pid());
                *SILENT.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Silence { socket: self.socket.to_owned(), pid, since: Instant::now() });
                Err(Error::Silent { socket: self.socket.display().to_string(), pid })
            }
        }
    }

    /// Reads a resource.
    pub async fn get<T: DeserializeOwned>(self, path: &str) -> Result<T, Error> {
        parse(self.send(Method::GET, path, Bytes::new()).await?)
    }

    /// Follows a resource: passes each line to `handle`, until the daemon ends or `handle` fails.
    pub async fn follow(
        self,
        path: &str,
        mut handle: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> Result<(), Following> {
        let broken = |error: hyper::Error| self.unreachable(io::Error::other(error));
        self.knock().await?;
        let mut response = self.begin(Method::GET, path, Bytes::new()).await?;
        if !response.status().is_success() {
            let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
            return Err(Following::Failed(refusal(&body).into()));
        }
        let mut waiting = Vec::new();
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|_ended_within_a_chunk| Following::Ended)?;
            waiting.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(end) = waiting.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                handle(&line).map_err(Following::Failed)?;
            }
        }
        Ok(())
    }

    /// Puts a resource; returns the new state.
    pub async fn put<T: DeserializeOwned>(self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Garbled(error.to_string()))?;
        parse(self.send(Method::PUT, path, body.into()).await?)
    }

    /// Sends a request without a body.
    pub async fn post(self, path: &str) -> Result<(), Error> {
        self.send(Method::POST, path, Bytes::new()).await.map(drop)
    }

    /// Sends a request; returns the answer. Tries again while the daemon closes the connection, as it does when it has too many of a user.
    pub async fn ask<T: DeserializeOwned>(self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let body = Bytes::from(serde_json::to_vec(body).map_err(|error| Error::Garbled(error.to_string()))?);
        let mut delay = FIRST_DELAY;
        loop {
            match self.send(Method::POST, path, body.clone()).await {
                Err(Error::Unreachable { source, .. }) if is_closed(&source) && delay <= LONGEST_DELAY => {
                    tokio::time::sleep(delay).await;
                    delay *= 2;
                }
                Err(Error::Unreachable { source, .. }) if is_closed(&source) => {
                    return Err(Error::Busy { socket: self.socket.display().to_string() });
                }
                sent => return parse(sent?),
            }
        }
    }

    /// Removes a resource.
    pub async fn delete(self, path: &str) -> Result<(), Error> {
        self.send(Method::DELETE, path, Bytes::new()).await.map(drop)
    }

    async fn send(self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Error> {
        self.knock().await?;
        let late = |_elapsed| self.unreachable(io::ErrorKind::TimedOut.into());
        let (status, body) = tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await.map_err(late)??;
        // A failed health check has status 503 and the same document as a successful one.
        if status.is_success() || status == StatusCode::SERVICE_UNAVAILABLE {
            return Ok((status, body));
        }
        Err(refusal(&body))
    }

    async fn exchange(self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Error> {
        let response = self.begin(method, path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await;
        Ok((status, body.map_err(|error| self.unreachable(io::Error::other(error)))?.to_bytes()))
    }

    async fn begin(self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Error> {
        let broken = |error: hyper::Error| self.unreachable(io::Error::other(error));
        let stream = UnixStream::connect(self.socket).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "steer")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Error::Garbled(error.to_string()))?;
        sender.send_request(request).await.map_err(broken)
    }

    fn unreachable(self, source: io::Error) -> Error {
        Error::Unreachable { socket: self.socket.display().to_string(), source }
    }
}
