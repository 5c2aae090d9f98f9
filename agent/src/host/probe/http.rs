//! Requests by HTTP and HTTPS.
//!
//! **Invariant:** a redirect is not followed, and nothing but the status and, if it is asked for, the start of the body is
//! read.

use std::{
    error::Error as _,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Failure, Trust, Via, dns, socket, stream, tls};
use crate::model::uplink::probe::{Host, Url};

/// How much of a body is read.
const BODY_BYTES: usize = 64 * 1024;
const AGENT: &str = concat!("steer/", env!("CARGO_PKG_VERSION"));

/// Asks for a URL.
pub(super) async fn ask(via: &Via, url: &Url, trust: &Trust) -> Result<Duration, Failure> {
    let address = match &url.host {
        Host::Address(address) => *address,
        Host::Name(name) => dns::resolve(via, name).await?,
    };
    socket::check(via, address).await?;
    let started = Instant::now();
    let stream = stream::connect(via, SocketAddr::new(address, url.port)).await?;
    if url.is_secure {
        exchange(tls::start(stream, &url.host, trust).await?, url).await?;
    } else {
        exchange(stream, url).await?;
    }
    Ok(started.elapsed())
}

/// Sends the request and judges the answer.
async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, url: &Url) -> Result<(), Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failure)?;
    let request = Request::get(&url.path)
        .header(header::HOST, url.authority())
        .header(header::USER_AGENT, AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::Error(error.to_string()))?;
    let answer = async { judge(sender.send_request(request).await.map_err(failure)?, url).await };
    let connection = async {
        // Its error comes out of the request, too.
        connection.await.ok();
        std::future::pending().await
    };
    tokio::select! {
        biased;
        judged = answer => judged,
        never = connection => never,
    }
}

async fn judge(mut response: Response<Incoming>, url: &Url) -> Result<(), Failure> {
    let status = response.status().as_u16();
    if !url.accepts(status) {
        return Err(Failure::Status(status));
    }
    let Some(expected) = &url.expect.body else { return Ok(()) };
    let mut body = Vec::new();
    while let Some(frame) = response.frame().await
        && body.len() < BODY_BYTES
    {
        let data = frame.map_err(failure)?.into_data().unwrap_or_default();
        body.extend_from_slice(&data[..data.len().min(BODY_BYTES - body.len())]);
    }
    if body.windows(expected.len()).any(|part| part == expected.as_bytes()) {
        Ok(())
    } else {
        Err(Failure::Body(status))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of the error")]
fn failure(error: hyper::Error) -> Failure {
    if let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
        return cause.raw_os_error().map_or(Failure::Ended, |errno| io::Error::from_raw_os_error(errno).into());
    }
    if error.is_incomplete_message() || error.is_canceled() {
        return Failure::Ended;
    }
    Failure::Protocol(error.to_string())
}
