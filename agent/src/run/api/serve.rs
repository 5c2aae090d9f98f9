//! The unix socket, a TCP port for the metrics, and the limits of their clients.
//!
//! **Invariant:** a connection is one request, whose header arrives within [`HEADER`]. It lasts [`LIFETIME`] at most, unless it
//! follows the events. The number of connections is limited, for root and for others separately. A body has [`BODY`] bytes at most.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _, chown},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::{Extension, Router, extract::DefaultBodyLimit};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::unistd::Group;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, oneshot},
};

use super::{Control, Lasting, Peer, State, exec, public_router, router};
use crate::{
    apply::permit::user,
    host::{peer::Peer as HostPeer, policy_files::Store},
    kernel::Pins,
};

/// Maximum size of a request's body, in bytes.
const BODY: usize = 64 * 1024;
/// Maximum time until the header of a request is complete.
const HEADER: Duration = Duration::from_secs(1);
/// Maximum lifetime of a connection.
const LIFETIME: Duration = Duration::from_secs(10);
/// Maximum number of connections for each kind of client: root, other users, TCP, and on the socket of `exec` the users that no policy
/// allows.
const CONNECTIONS: usize = 32;
/// Access for owner and group. Until it is set, the umask restricts access to the owner.
const MODE: u32 = 0o660;
/// Access for everybody.
const MODE_FOR_ALL: u32 = 0o666;
/// Maximum number of connections on the socket of `exec` for each user that a policy allows.
const FOR_A_USER: usize = 64;
/// Delay after a failed accept, for example when no file descriptor is free.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: StdUnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens for root and a group, which may read. Without such a group, for root only.
    pub fn bind(path: &Path, group: Option<&str>) -> io::Result<Self> {
        let group = group.and_then(|group| {
            let found = group_id(group);
            found.inspect_err(|error| log::error!("{} is for root only: {error}", path.display())).ok()
        });
        Self::listen(path, group, MODE)
    }

    /// Listens for all users.
    pub fn bind_for_all(path: &Path) -> io::Result<Self> {
        Self::listen(path, None, MODE_FOR_ALL)
    }

    /// Listens, and replaces the socket of a daemon that was killed.
    fn listen(path: &Path, group: Option<u32>, mode: u32) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            if StdUnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers there"));
            }
            fs::remove_file(path)?;
        }
        let socket = Self { listener: StdUnixListener::bind(path)?, path: path.to_owned() };
        chown(path, None, group)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        socket.listener.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The next daemon, or `steer off`, removes a socket that is left.
        let _ = fs::remove_file(&self.path);
    }
}

/// The group of that name or number.
pub fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let group = Group::from_name(name)?.map(|group| group.gid.as_raw());
    group.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no group {name:?}")))
}

/// Listens for metrics clients, on loopback only, because they are not authenticated.
pub fn bind_metrics(address: SocketAddr) -> io::Result<StdTcpListener> {
    require_loopback(address)?;
    let listener = StdTcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Fails unless it is an address of this host that others do not reach.
pub fn require_loopback(address: SocketAddr) -> io::Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    let message = "expected a loopback address, because clients of the metrics are not authenticated";
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// The thread that serves the API. It ends when this is dropped.
#[derive(Debug)]
pub struct Serving {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Starts the thread.
    pub fn start(
        (socket, for_users): (Socket, Option<Socket>),
        metrics: Option<StdTcpListener>,
        control: Control,
        store: Store,
        pins: Pins,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let listen = move || {
            runtime.block_on(async {
                tokio::select! {
                    error = accept_all((&socket, for_users.as_ref()), metrics, State::start(control, store, pins)) => {
                        log::error!("the API has ended: {error}");
                    }
                    _ = stopped => {}
                }
            });
            // Do not wait for blocking threads: they only read.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("api".to_owned()).spawn(listen)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has printed its panic.
            let _ = thread.join();
        }
    }
}

/// Serves connections until a listener fails.
async fn accept_all(
    (socket, for_users): (&Socket, Option<&Socket>),
    metrics: Option<StdTcpListener>,
    state: State,
) -> io::Error {
    let local = async {
        let listener = match socket.listener.try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        let router = router(state.clone()).layer(DefaultBodyLimit::max(BODY));
        let (root, others) = (Places::new(), Places::new());
        loop {
            let accepted = listener.accept().await.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream)));
            let Some((uid, stream)) = pause_on_error(accepted).await else { continue };
            let places = if uid == 0 { &root } else { &others };
            places.answer(stream, router.clone().layer(Extension(Peer { uid })));
        }
    };
    let public = async {
        let Some(listener) = metrics else { return std::future::pending().await };
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        let (router, places) = (public_router(state.clone()), Places::new());
        loop {
            if let Some((stream, _)) = pause_on_error(listener.accept().await).await {
                places.answer(stream, router.clone());
            }
        }
    };
    let users = async {
        let Some(socket) = for_users else { return std::future::pending().await };
        let listener = match socket.listener.try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        let (router, mut places) = (exec::router(state.clone()).layer(DefaultBodyLimit::max(BODY)), BTreeMap::new());
        let strangers = Places::new();
        loop {
            let Some((stream, _)) = pause_on_error(listener.accept().await).await else { continue };
            // No pause here: any user can make it fail, and others wait.
            let peer = match HostPeer::of(&stream) {
                Ok(peer) => peer,
                Err(error) => {
                    log::debug!("a client of {}: {error}", socket.path.display());
                    continue;
                }
            };
            // A user has many user ids by a user namespace, and no policy names them.
            let places = if user::is_named(&state.control.view().policies, &peer) {
                places.retain(|_, places: &mut Places| !places.is_unused());
                places.entry(peer.uid).or_insert_with(|| Places::of(FOR_A_USER))
            } else {
                &strangers
            };
            places.answer(stream, router.clone().layer(Extension(Arc::new(peer))));
        }
    };
    tokio::select! {
        error = local => error,
        error = users => error,
        error = public => error,
    }
}

async fn pause_on_error<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            log::debug!("accept a connection to the API: {error}");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

/// The connections that may be open.
struct Places(Arc<Semaphore>);

impl Places {
    fn new() -> Self {
        Self::of(CONNECTIONS)
    }

    fn of(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Answers on a separate task. Closes the connection if no place is free.
    fn answer(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
        let Ok(place) = Arc::clone(&self.0).try_acquire_owned() else { return };
        let lasting = Lasting::default();
        let router = router.layer(Extension(lasting.clone()));
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            let mut connection = std::pin::pin!(connection);
            let answered = match tokio::time::timeout(LIFETIME, &mut connection).await {
                Ok(answered) => answered,
                Err(_elapsed) if lasting.0.load(Ordering::Relaxed) => connection.await,
                Err(_elapsed) => return log::debug!("a client of the API took longer than {} s", LIFETIME.as_secs()),
            };
            if let Err(error) = answered {
                log::debug!("a client of the API: {error}");
            }
            drop(place);
        });
    }
}
