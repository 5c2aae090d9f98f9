//! A systemd-resolved of a test: `org.freedesktop.resolve1` on a private bus, with the resolvers that the test sets.

use std::{
    fs,
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use steer_lab::wait_until;
use zbus::Connection;

use crate::{NotHere, PATIENCE};

const SERVICE: &str = "org.freedesktop.resolve1";
const OBJECT: &str = "/org/freedesktop/resolve1";
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

/// The bus. On drop, it is ended.
#[derive(Debug)]
pub struct Bus {
    daemon: Child,
    address: String,
}

impl Bus {
    /// Starts a bus with its socket in this directory.
    pub fn start(directory: &Path) -> anyhow::Result<Self> {
        let (socket, config) = (directory.join("bus"), directory.join("bus.conf"));
        let address = format!("unix:path={}", socket.display());
        let text = format!(
            "<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>"
        );
        fs::write(&config, text)?;
        let mut command = Command::new("dbus-daemon");
        command.arg(format!("--config-file={}", config.display())).args(["--nofork", "--nopidfile", "--nosyslog"]);
        let daemon = match command.stdin(Stdio::null()).spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(NotHere("dbus-daemon is not installed".to_owned()).into());
            }
            daemon => daemon?,
        };
        let bus = Self { daemon, address };
        wait_until("the bus", PATIENCE, || UnixStream::connect(&socket).is_ok())?;
        Ok(bus)
    }

    /// Its address, for `DBUS_SYSTEM_BUS_ADDRESS`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The service.
#[derive(Debug)]
pub struct Resolved {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
}

type Server = (i32, i32, Vec<u8>);

struct Manager {
    servers: Vec<Server>,
}

#[zbus::interface(name = "org.freedesktop.resolve1.Manager")]
impl Manager {
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> Vec<Server> {
        self.servers.clone()
    }
}

impl Resolved {
    /// Starts the service, with resolvers of links.
    pub fn start(bus: &Bus, resolvers: &[(u32, IpAddr)]) -> anyhow::Result<Self> {
        // The bus is served while the test waits for something else.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let connection = runtime.block_on(async {
            zbus::connection::Builder::address(bus.address())?
                .serve_at(OBJECT, Manager { servers: servers(resolvers)? })?
                .name(SERVICE)?
                .build()
                .await
                .context("serve resolve1")
        })?;
        Ok(Self { runtime, connection })
    }

    /// Gives its name up, as a service that ends.
    pub fn stop(self) -> anyhow::Result<()> {
        self.runtime.block_on(self.connection.release_name(SERVICE))?;
        Ok(())
    }

    /// Changes the resolvers, and reports that.
    pub fn set(&self, resolvers: &[(u32, IpAddr)]) -> anyhow::Result<()> {
        let servers = servers(resolvers)?;
        self.runtime.block_on(async {
            let manager = self.connection.object_server().interface::<_, Manager>(OBJECT).await?;
            // The name that zbus makes of DNS.
            let mut inner = manager.get_mut().await;
            inner.servers = servers;
            inner.d_n_s_changed(manager.signal_emitter()).await?;
            anyhow::Ok(())
        })
    }
}

fn servers(resolvers: &[(u32, IpAddr)]) -> anyhow::Result<Vec<Server>> {
    let server = |(link, address): &(u32, IpAddr)| {
        let link = i32::try_from(*link)?;
        Ok(match address {
            IpAddr::V4(v4) => (link, AF_INET, v4.octets().to_vec()),
            IpAddr::V6(v6) => (link, AF_INET6, v6.octets().to_vec()),
        })
    };
    resolvers.iter().map(server).collect()
}
