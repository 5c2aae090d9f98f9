//! Connections of probes, and their ends.
//!
//! What reaches a connection that is gone is answered by the kernel, by the better link: with a reset if there is no socket
//! any more, and with an acknowledgement in TIME_WAIT, for IPv6 and bound sockets (`host::route` has the rule against the
//! latter). So the socket stays until the other end has ended, too, after the probe has its result.
//!
//! **Invariant:** a connection never ends by a reset, and is closed only after the other end's end, or after [`PATIENCE`].

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{Protocol, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpSocket, TcpStream},
    runtime::Handle,
    time::timeout,
};

use super::{Failure, Via, socket};

/// How long a connection waits for the other end. Then the kernel keeps what is needed: in FIN-WAIT-2, for a minute.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection. Its drop starts its end.
pub(super) struct Stream(Option<TcpStream>);

/// Connects, without looking for a route.
pub(super) async fn connect(via: &Via, to: SocketAddr) -> Result<Stream, Failure> {
    let socket = socket::open(via, Type::STREAM, Protocol::TCP)?;
    Ok(Stream(Some(TcpSocket::from_std_stream(socket.into()).connect(to).await?)))
}

impl Drop for Stream {
    fn drop(&mut self) {
        let stream = self.0.take();
        // Without a runtime, the process ends.
        if let (Some(stream), Ok(runtime)) = (stream, Handle::try_current()) {
            runtime.spawn(async { timeout(PATIENCE, end(stream)).await.ok() });
        }
    }
}

/// Ends this side, and takes what comes until the other has ended.
async fn end(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

impl Stream {
    fn inner(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        self.get_mut().0.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner()?.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_shutdown(context)
    }
}
