//! Servers for HTTP and HTTPS that answer by the path, and name servers that answer with errors.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
};

use steer_lab::{Netns, SERVER_V4};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

const CERTIFICATE: &[u8] = include_bytes!("certificates/server.pem");
const KEY: &[u8] = include_bytes!("certificates/server-key.pem");
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;
const NXDOMAIN: u8 = 3;

/// The ports. The threads end with the process.
pub(crate) struct Servers {
    pub(crate) http: u16,
    pub(crate) https: u16,
    /// Accepts nothing: its backlog answers.
    pub(crate) silent: u16,
    /// Name servers with an error, and whether a probe takes it as an answer.
    pub(crate) errors: Vec<(u16, Option<&'static str>)>,
    _silent: TcpListener,
}

impl Servers {
    pub(crate) fn start(netns: &Netns) -> Self {
        let (http, https, silent) = (listen(netns), listen(netns), listen(netns));
        let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
        let ports = (port(&http), port(&https), port(&silent));
        serve(http, answer);
        let tls = Arc::new(tls());
        serve(https, move |stream| {
            let connection = ServerConnection::new(Arc::clone(&tls)).map_err(io::Error::other)?;
            answer(StreamOwned::new(connection, stream))
        });
        let errors = [(SERVFAIL, Some("SERVFAIL")), (REFUSED, Some("REFUSED")), (NXDOMAIN, None)];
        let errors = errors.map(|(code, text)| (name_server(netns, code), text)).to_vec();
        Self { http: ports.0, https: ports.1, silent: ports.2, errors, _silent: silent }
    }
}

fn listen(netns: &Netns) -> TcpListener {
    netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))).expect("a namespace").expect("a listener")
}

fn tls() -> ServerConfig {
    let chain = vec![CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    builder.with_single_cert(chain, key).expect("a configuration")
}

fn serve(listener: TcpListener, answer: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) {
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = Arc::clone(&answer);
            // A client that leaves is no mistake.
            thread::spawn(move || answer(stream).ok());
        }
    });
}

/// Answers one request.
fn answer(stream: impl Read + Write) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
    }
    let path = request.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let page = |text: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    let stream = reader.get_mut();
    match path.as_str() {
        "/204" => stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?,
        "/page" => stream.write_all(page("<p>Success</p>").as_bytes())?,
        "/portal" => stream.write_all(page("<p>Please pay</p>").as_bytes())?,
        "/redirect" => stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: /page\r\nContent-Length: 0\r\n\r\n")?,
        "/late" => stream.write_all(page(&("x".repeat(70_000) + "Success")).as_bytes())?,
        "/garbage" => stream.write_all(b"SSH-2.0-something\r\n\r\n")?,
        "/part" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nSucc")?,
        // Ends without an answer.
        _ => return Ok(()),
    }
    stream.flush()?;
    // The server ends second: the harder case for the client.
    if path != "/part" {
        stream.read_exact(&mut [0]).ok();
    }
    Ok(())
}

/// A name server that answers with a stranger's number first, without an error, and then with this code.
fn name_server(netns: &Netns, code: u8) -> u16 {
    // An answer from another address is none.
    let socket = netns.run(|| UdpSocket::bind((SERVER_V4, 0))).expect("a namespace").expect("a socket");
    let port = socket.local_addr().expect("an address").port();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let mut reply = buffer[..length].to_vec();
            reply[2] |= 0x80;
            reply[0] ^= 0xff;
            socket.send_to(&reply, peer).ok();
            reply[0] ^= 0xff;
            reply[3] |= code;
            socket.send_to(&reply, peer).ok();
        }
    });
    port
}
