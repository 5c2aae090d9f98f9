//! A systemd-resolved of a test: `org.freedesktop.resolve1` on a private bus, with the resolvers that the test sets.

use std::{
    fs,
    net::IpAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use steer_lab::wait_until;
use zbus::Connection;

use crate::{Bed, NotHere, PATIENCE, private_file::replace_files};

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

/// A real systemd-resolved, of the Debian package that `cargo xtask test` unpacks, on the bus and in the client's network namespace of a bed, with
/// a /run of its own. It listens nowhere. On drop, it is ended.
#[derive(Debug)]
pub struct RealResolved {
    service: Child,
    runtime: tokio::runtime::Runtime,
    connection: Connection,
}

impl RealResolved {
    /// Starts it, and waits until it answers.
    pub fn start(bed: &Bed, bus: &Bus) -> anyhow::Result<Self> {
        let root = std::env::var_os("STEER_RESOLVED").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let program = ["lib", "usr/lib"].map(|lib| root.join(lib).join("systemd/systemd-resolved"));
        let Some(program) = program.into_iter().find(|program| program.exists()) else {
            return Err(NotHere(format!("there is no systemd-resolved below {}", root.display())).into());
        };
        let run = bed.directory.join("run");
        fs::create_dir_all(run.join("systemd/resolved.conf.d"))?;
        fs::create_dir_all(run.join("dbus"))?;
        // It becomes another user, who needs the way to the bus.
        fs::set_permissions(&bed.directory, fs::Permissions::from_mode(0o755))?;
        std::os::unix::fs::symlink(bed.directory.join("bus"), run.join("dbus/system_bus_socket"))?;
        let config = "[Resolve]\nDNSStubListener=no\nLLMNR=no\nMulticastDNS=no\n";
        fs::write(run.join("systemd/resolved.conf.d/steer.conf"), config)?;
        // The bus knows no users but those of this host, so it is user nobody.
        let (passwd, group) = (bed.directory.join("passwd"), bed.directory.join("group"));
        for (file, copy, line) in [
            ("/etc/passwd", &passwd, "systemd-resolve:x:65534:65534::/:/usr/sbin/nologin\n"),
            ("/etc/group", &group, "systemd-resolve:x:65534:\n"),
        ] {
            let text = fs::read_to_string(file)?;
            let others = text.lines().filter(|line| !line.starts_with("systemd-resolve:"));
            fs::write(copy, others.map(|line| format!("{line}\n")).chain([line.to_owned()]).collect::<String>())?;
        }
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        // Its library is of the same version.
        let libraries =
            fs::read_dir(root.join("usr/lib"))?.filter_map(|entry| Some(entry.ok()?.path().join("systemd")));
        let has_library = |directory: &PathBuf| {
            let mut files = fs::read_dir(directory).into_iter().flatten().flatten();
            files.any(|file| file.file_name().to_string_lossy().starts_with("libsystemd-shared-"))
        };
        if let Some(directory) = libraries.into_iter().find(has_library) {
            command.env("LD_LIBRARY_PATH", directory);
        }
        let pairs = [("/run", &run), ("/etc/passwd", &passwd), ("/etc/group", &group)]
            .map(|(to, from)| (Path::new(to), &**from));
        replace_files(&mut command, &pairs);
        let service = bed.net.client.enter(&mut command).spawn()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let connection = runtime
            .block_on(async { anyhow::Ok(zbus::connection::Builder::address(bus.address())?.build().await?) })?;
        let resolved = Self { service, runtime, connection };
        wait_until("systemd-resolved", PATIENCE, || resolved.call("FlushCaches", &()).is_ok())?;
        Ok(resolved)
    }

    /// Gives a link these resolvers, as `resolvectl dns` does.
    pub fn set(&self, link: u32, resolvers: &[IpAddr]) -> anyhow::Result<()> {
        let of_link: Vec<_> = resolvers.iter().map(|resolver| (link, *resolver)).collect();
        let servers: Vec<_> = servers(&of_link)?.into_iter().map(|(_, family, address)| (family, address)).collect();
        self.call("SetLinkDNS", &(i32::try_from(link)?, servers))
    }

    fn call<B: serde::Serialize + zbus::zvariant::DynamicType>(&self, method: &str, body: &B) -> anyhow::Result<()> {
        let manager = Some("org.freedesktop.resolve1.Manager");
        let call = self.connection.call_method(Some(SERVICE), OBJECT, manager, method, body);
        self.runtime.block_on(call)?;
        Ok(())
    }
}

impl Drop for RealResolved {
    fn drop(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
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
