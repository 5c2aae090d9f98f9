//! Real programs in a strict policy with `local`: this host and the LAN reach what they serve, they reach this host, the LAN
//! and the far host, and no packet of them leaves by the second line.

use std::sync::{Mutex, PoisonError};

use anyhow::ensure;
use libtest_mimic::Trial;
use steer_lab::{Kind, Packet, SERVER_V4, SERVER_V6, client_v4, client_v6, gateway_v4, gateway_v6, wait_until};
use steer_tests::{Outcome, PATIENCE, User};

use crate::report;

mod home;

use home::{HOST, Home, LAN, NEIGHBOUR, Place};

const HOST_AND_LAN: &str = "local = [\"host\", \"lan\"]";

type Test = (&'static str, fn() -> Outcome);

const TESTS: &[Test] = &[
    ("transmission", transmission),
    ("transmission_without_the_router", transmission_without_the_router),
    ("postgresql", postgresql),
    ("ssh", ssh),
    ("chrony", chrony),
    ("avahi", avahi),
    ("chromium", chromium),
];

/// A line of the table.
static ROWS: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(super) fn trials(root: bool) -> impl Iterator<Item = Trial> {
    TESTS.iter().map(move |&(name, test)| {
        Trial::ignorable_test(format!("suites::programs::{name}"), move || report(test())).with_ignored_flag(!root)
    })
}

pub(super) fn print_table() {
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    rows.sort();
    println!(
        "| package | version | user | packets to the far host | packets by the LAN | packets by the second line | stopped |"
    );
    println!("|---|---|---|---|---|---|---|");
    for row in &rows {
        println!("{row}");
    }
}

/// Checks what left: to the far host by the uplink only, by the LAN to its addresses, and what `is_allowed` allows by the
/// LAN and the second line. Adds a line to the table.
fn check(
    home: &mut Home,
    package: &str,
    user: User,
    is_allowed: fn(&Packet) -> bool,
) -> anyhow::Result<(usize, usize)> {
    ensure!(home.held()? > 0, "the program is in no policy");
    let left = home.left()?;
    let other: Vec<_> = left.second_line.iter().filter(|packet| !is_allowed(packet)).collect();
    ensure!(other.is_empty(), "by the second line: {other:#?}");
    let other: Vec<_> = left.lan.iter().filter(|packet| !Home::is_to_lan(packet) && !is_allowed(packet)).collect();
    ensure!(other.is_empty(), "by the LAN: {other:#?}");
    let (lan, second_line) = (left.lan.len(), left.second_line.len());
    let name = package.split(',').next().unwrap_or(package);
    let row = format!(
        "| {package} | {} | {user:?} | {} | {lan} | {second_line} | {} |",
        home.version(name)?,
        left.uplink,
        home.stopped()?
    );
    ROWS.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    Ok((left.uplink, lan))
}

fn nothing(_: &Packet) -> bool {
    false
}

const TRANSMISSION: &str = "exec transmission-daemon -f -g /tmp/settings -w /shared --allowed '*.*.*.*'";

/// The web page is there for this host and the LAN, a file of a peer comes by the uplink, and peers reach it there.
fn transmission() -> Outcome {
    let mut home = Home::new("transmission", HOST_AND_LAN)?;
    home.share("tracker.py", include_str!("tracker.py"))?;
    let options = "-f --no-portmap -g /tmp/settings --no-lpd";
    let tracker =
        home.start(Place::Far, User::Root, &format!("exec python3 -u /shared/tracker.py {SERVER_V4} 51413"))?;
    home.succeed(
        Place::Far,
        User::Nobody,
        &format!(
            "mkdir /shared/seed && head -c 3000000 /dev/urandom > /shared/seed/file && \
             transmission-create -t http://{SERVER_V4}/announce -o /shared/file.torrent /shared/seed/file"
        ),
    )?;
    let _seeder =
        home.start(Place::Far, User::Nobody, &format!("exec transmission-daemon {options} -w /shared/seed"))?;
    home.wait_for(Place::Far, "transmission-remote 127.0.0.1 -a /shared/file.torrent", "success")?;
    home.wait_for(Place::Far, "transmission-remote 127.0.0.1 -l", "100%")?;

    let _daemon = home.start(Place::Steered, User::Nobody, TRANSMISSION)?;
    for (place, address) in
        [(Place::Host, "127.0.0.1".into()), (Place::Host, HOST.to_string()), (Place::Neighbour, HOST.to_string())]
    {
        let page = format!("curl -sS --fail --max-time 20 http://{address}:9091/transmission/web/");
        home.wait_for(place, &page, "<title>Transmission Web")?;
    }
    home.wait_for(Place::Neighbour, &format!("transmission-remote {HOST} -a /shared/file.torrent"), "success")?;
    home.wait_for(Place::Host, "transmission-remote 127.0.0.1 -l", "100%")?;
    ensure!(home.shared("file") == home.shared("seed/file"), "another file");
    tracker.wait_for_line(&["announce", &client_v4(1).to_string()])?;
    let peer = "import socket; print('reached', socket.create_connection(('10.0.1.2', 51413), 20).getpeername())";
    home.wait_for(Place::Far, &format!("python3 -c \"{peer}\""), "reached")?;
    let (uplink, lan) = check(&mut home, "transmission-daemon", User::Nobody, asks_the_router)?;
    ensure!(uplink > 50 && lan > 0, "{uplink} packets to the far host, {lan} to the LAN");
    Ok(())
}

/// NAT-PMP: it asks the router of the default route to let peers in. That one is on the second line, in a network of the LAN.
fn asks_the_router(packet: &Packet) -> bool {
    let is_router = [gateway_v4(0).into(), gateway_v6(0).into()].map(Some).contains(&packet.dst);
    is_router && packet.kind == Kind::Udp && packet.dst_port == Some(5351)
}

/// An exception keeps it from that router.
fn transmission_without_the_router() -> Outcome {
    let router = gateway_v4(0);
    let except = format!("{HOST_AND_LAN}\nexcept = [{{ to = \"{router}\", by = \"refuse\" }}]");
    let mut home = Home::new("transmission-router", &except)?;
    let _daemon = home.start(Place::Steered, User::Nobody, TRANSMISSION)?;
    let words = ["stopped_except", &router.to_string()];
    wait_until("a refused request to the router", PATIENCE, || {
        home.events().lines().any(|line| words.iter().all(|word| line.contains(word)))
    })?;
    home.wait_for(Place::Neighbour, &format!("transmission-remote {HOST} -l"), "Have")?;
    check(&mut home, "transmission-daemon, without the router", User::Nobody, nothing)?;
    Ok(())
}

/// A server on 127.0.0.1 only.
fn postgresql() -> Outcome {
    let mut home = Home::new("postgresql", HOST_AND_LAN)?;
    let path = "PATH=$(echo /usr/lib/postgresql/*/bin):$PATH";
    let script = format!(
        "{path}; initdb -D /tmp/data -U test -A trust && exec postgres -D /tmp/data -k /tmp -h 127.0.0.1 -p 5432"
    );
    let server = home.start(Place::Steered, User::Nobody, &script)?;
    server.wait_for_line(&["ready to accept connections"])?;
    let ask = format!("{path}; psql -h 127.0.0.1 -U test -At postgres -c \"select 'port ' || inet_server_port()\"");
    for place in [Place::Host, Place::Steered] {
        home.wait_for(place, &ask, "port 5432")?;
    }
    let (uplink, lan) = check(&mut home, "postgresql-17", User::Nobody, nothing)?;
    ensure!(uplink == 0 && lan == 0, "{uplink} packets to the far host, {lan} to the LAN");
    Ok(())
}

/// The proxy on 127.0.0.1 takes what this host sends to the far host by the uplink.
fn ssh() -> Outcome {
    let mut home = Home::new("ssh", HOST_AND_LAN)?;
    home.succeed(Place::Far, User::Nobody, "ssh-keygen -q -t ed25519 -N '' -f /shared/key")?;
    let server = "mkdir -p /run/sshd && cp /shared/key.pub /tmp/keys && \
                  ssh-keygen -q -t ed25519 -N '' -f /tmp/host && exec /usr/sbin/sshd -D -e -f /dev/null -h /tmp/host \
                  -o AuthorizedKeysFile=/tmp/keys -o StrictModes=no -o PermitRootLogin=yes -o PidFile=none";
    let server = home.start(Place::Far, User::Root, server)?;
    server.wait_for_line(&["Server listening"])?;
    let far = web(&home, Place::Far, "far host", "127.0.0.2")?;
    let client = format!(
        "exec ssh -v -N -D 127.0.0.1:1080 -i /shared/key -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null root@{SERVER_V4}"
    );
    let _client = home.start(Place::Steered, User::Nobody, &client)?;
    let page = "curl -sS --fail --max-time 20 --socks5 127.0.0.1:1080 http://127.0.0.2:8000/";
    home.wait_for(Place::Host, page, "far host")?;
    far.wait_for_line(&["GET /"])?;
    server.wait_for_line(&["Accepted publickey", &client_v4(1).to_string()])?;
    let (uplink, lan) = check(&mut home, "openssh-client", User::Nobody, nothing)?;
    ensure!(uplink > 10 && lan == 0, "{uplink} packets to the far host, {lan} to the LAN");
    Ok(())
}

/// It asks a server behind the uplink, gives the time to the LAN, and answers its own tool.
fn chrony() -> Outcome {
    let mut home = Home::new("chrony", HOST_AND_LAN)?;
    let _far = home.start(Place::Far, User::Root, "exec chronyd -x -d 'local stratum 5' 'allow' 'cmdport 0'")?;
    // It starts as root, and goes on as its own user.
    let script =
        format!("exec chronyd -x -d 'server {SERVER_V4} iburst' 'allow {NEIGHBOUR}' 'bindcmdaddress 127.0.0.1'");
    let _daemon = home.start(Place::Steered, User::Root, &script)?;
    home.wait_for(Place::Host, "chronyc -n -h 127.0.0.1 sources", &format!("^* {SERVER_V4}"))?;
    home.wait_for(Place::Steered, "chronyc -n -h 127.0.0.1 tracking", &SERVER_V4.to_string())?;
    let once = |server| format!("chronyd -U -Q -t 30 'server {server} iburst' 2>&1");
    home.wait_for(Place::Neighbour, &once(HOST), "System clock wrong by")?;
    // A command that asks once, as a user without privileges.
    home.wait_for(Place::Steered, &once(SERVER_V4), "System clock wrong by")?;
    let (uplink, lan) = check(&mut home, "chrony", User::Root, nothing)?;
    ensure!(uplink >= 4 && lan >= 4, "{uplink} packets to the far host, {lan} to the LAN");
    Ok(())
}

/// The neighbour finds its service, and it finds the neighbour's.
fn avahi() -> Outcome {
    let mut home = Home::new("avahi", "local = [\"host\", \"lan\", \"discovery\"]")?;
    let node = |name: &str| {
        format!(
            "mkdir -p /run/dbus /etc/avahi/services && dbus-daemon --system && \
             printf '[server]\\nhost-name={name}\\n' > /etc/avahi/avahi-daemon.conf && \
             echo '<service-group><name>page of {name}</name><service><type>_http._tcp</type><port>80</port></service>\
             </service-group>' > /etc/avahi/services/page.service && \
             avahi-daemon -D && exec avahi-browse --resolve --parsable _http._tcp"
        )
    };
    let neighbour = home.start(Place::Neighbour, User::Root, &node("neighbour"))?;
    // It starts as root, and goes on as its own user.
    let steered = home.start(Place::Steered, User::Root, &node("steered"))?;
    neighbour.wait_for_line(&["=;home;", "steered.local", &HOST.to_string()])?;
    steered.wait_for_line(&["=;lan;", "neighbour.local", &NEIGHBOUR.to_string()])?;
    let (_, lan) = check(&mut home, "avahi-daemon", User::Root, is_discovery)?;
    ensure!(lan > 4, "{lan} packets to the LAN");
    Ok(())
}

/// mDNS and memberships of its groups: what `discovery` lets out on each link that is not a tunnel.
fn is_discovery(packet: &Packet) -> bool {
    let mdns = packet.kind == Kind::Udp && packet.dst_port == Some(5353);
    (mdns && packet.dst.is_some_and(|to| to.is_multicast())) || matches!(packet.kind, Kind::Igmp | Kind::Mld)
}

/// Pages of this host, of the LAN and of the far host.
fn chromium() -> Outcome {
    let mut home = Home::new("chromium", HOST_AND_LAN)?;
    let far = web(&home, Place::Far, "page of the far host", "::")?;
    let host = web(&home, Place::Host, "page of this host", "127.0.0.1")?;
    let neighbour = web(&home, Place::Neighbour, "page of the neighbour", &NEIGHBOUR.to_string())?;
    for (server, name, address) in [
        (&host, "this host", "127.0.0.1".to_owned()),
        (&neighbour, "the neighbour", NEIGHBOUR.to_string()),
        (&far, "the far host", SERVER_V4.to_string()),
        (&far, "the far host", format!("[{SERVER_V6}]")),
    ] {
        let browse = format!(
            "exec timeout 50 chromium --headless --no-sandbox --disable-gpu --user-data-dir=/tmp/profile --dump-dom \
             http://{address}:8000/"
        );
        home.wait_for(Place::Steered, &browse, &format!("page of {name}"))?;
        server.wait_for_line(&["GET /"])?;
    }
    for address in [client_v4(1).to_string(), client_v6(1).to_string()] {
        far.wait_for_line(&["GET /", &address])?;
    }
    neighbour.wait_for_line(&["GET /", &HOST.to_string()])?;
    let (uplink, lan) = check(&mut home, "chromium", User::Nobody, nothing)?;
    ensure!(uplink > 4 && lan > 4, "{uplink} packets to the far host, {lan} by {LAN}");
    Ok(())
}

/// A web server with one page, on port 8000 of an address.
fn web(home: &Home, place: Place, page: &str, address: &str) -> anyhow::Result<home::Program> {
    let script = format!("echo '{page}' > index.html && exec python3 -u -m http.server 8000 --bind {address}");
    let server = home.start(place, User::Nobody, &script)?;
    server.wait_for_line(&["Serving HTTP"])?;
    Ok(server)
}
