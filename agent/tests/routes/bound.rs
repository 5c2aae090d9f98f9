//! The rule for uplinks of policies that bind.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::ffi::OsStrExt as _,
    process::Command,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use steer::host::route::{Instance, Wanted, steps};
use steer_lab::{Capture, SERVER_V6, Uplinks, leaks};

use crate::bed::{Bed, ONE, bed, is_root, mask, run};

/// A connection that is bound to `a1` and closes first, so that the kernel acknowledges the server's end for it.
fn leaks_of_a_closed_connection(lab: &Uplinks) -> usize {
    let mut capture = Capture::start_except(&lab.client, &["a1", "lo"]).expect("a capture");
    let listener = lab.server.run(|| TcpListener::bind(SocketAddr::new(SERVER_V6.into(), 0))).expect("a namespace");
    let listener = listener.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let client = lab.client.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.bind_device(Some(b"a1"))?;
        socket.connect(&address.into())?;
        Ok::<_, std::io::Error>(socket)
    });
    let client = client.expect("a namespace").expect("connected");
    let (server, _) = listener.accept().expect("accepted");
    client.shutdown(std::net::Shutdown::Write).expect("shut down");
    drop(client);
    // The server sees the end, and only then sends its own.
    assert_eq!(std::io::Read::read(&mut &server, &mut [0]).expect("read"), 0);
    // Without this the kernel would acknowledge with the server's end, and the client would be gone before.
    socket2::SockRef::from(&server).set_tcp_quickack(true).expect("acknowledged");
    drop(server);
    // The answer to the server's end has left when the server's socket is gone: it waits for it.
    steer_lab::wait_until("the connection's end", Duration::from_secs(10), || sockets(lab).is_empty())
        .expect("the end");
    let packets = capture.take().expect("packets");
    leaks(&packets).len()
}

/// Connections of the server that have not ended.
fn sockets(lab: &Uplinks) -> String {
    lab.server
        .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6"))
        .expect("a namespace")
        .expect("sockets")
        .lines()
        .skip(1)
        // Listening, and TIME_WAIT.
        .filter(|line| !matches!(line.split_whitespace().nth(3), Some("0A" | "06")))
        .collect()
}

#[test]
fn what_the_kernel_sends_for_a_bound_connection_stays_on_its_link() {
    if !is_root() {
        return;
    }
    let lab = Uplinks::new().expect("a lab");
    // The link has no address to ask for its gateway with: the packet has the other link's.
    run(&lab.client, "neigh add fd00::1 lladdr 02:00:00:00:00:01 dev a0 nud permanent");
    // Another test that starts a process at this moment keeps the connection open a little longer, in the child.
    let leaks = || (0..10).any(|_| leaks_of_a_closed_connection(&lab) > 0);
    assert!(leaks(), "without a rule it leaves by the better link");
    let index = lab.ifindex(1).expect("a link");
    let wanted = Wanted { mask: mask(), instance: Instance::new(3), marked: vec![], bound: vec![index] };
    let written = lab.client.run(|| {
        let state = steer::host::route::State::read()?;
        let plan = steer::host::route::plan(&wanted, &state).map_err(std::io::Error::other)?;
        steer::host::route::write(&plan, &state, None)
    });
    assert!(written.expect("a namespace").expect("written").failed.is_empty());
    assert!(!leaks());
}

#[test]
fn the_rule_follows_the_name_and_keeps_its_table() {
    let Some(bed) = bed() else { return };
    let (up, eth1) = (bed.index("up0"), bed.index("eth1"));
    let both = Bed::wanted(vec![], vec![up, eth1]);
    bed.write(&both);
    let table = |name: &str| {
        let rules = bed.ip("-6 rule");
        let rule = rules.lines().find(|rule| rule.contains(&format!("oif {name} "))).map(str::to_owned);
        rule.map(|rule| rule.split_whitespace().last().unwrap_or_default().to_owned())
    };
    let of_up = table("up0").expect("a rule");
    assert!(!bed.ip("-4 rule").contains("oif"), "IPv4 needs none");
    let routes = bed.ip(&format!("-6 route show table {of_up}"));
    assert!(routes.contains("default via fd09::1 dev up0") && routes.contains("unreachable default"), "{routes}");
    let of_eth1 = table("eth1").expect("a rule");
    let routes = bed.ip(&format!("-6 route show table {of_eth1}"));
    assert!(routes.contains("fd03::/64") && !routes.contains("default"), "no default route, no end: {routes}");
    bed.ip("link set up0 down");
    bed.write(&both);
    let routes = bed.ip(&format!("-6 route show table {of_up}"));
    assert!(routes.trim_end().lines().count() == 2 && routes.contains("unreachable default"), "down: {routes}");
    assert!(routes.contains("throw fe80::/10"), "link-local destinations are left to others: {routes}");
    bed.ip("link set up0 up");
    bed.ip("-6 address replace fd09::2/64 dev up0 nodad");
    bed.ip("-6 address replace fe80::2/64 dev up0 nodad");
    bed.ip("-6 route add default via fd09::1 dev up0 table 51820");
    bed.ip("route add default via 10.9.0.1 dev up0 table 51820");
    bed.remove(ONE);
    let before = bed.everything();
    bed.write(&both);
    // The other one's table stays when one goes.
    bed.write(&Bed::wanted(vec![], vec![if of_up > of_eth1 { up } else { eth1 }]));
    let (stays, kept) = if of_up > of_eth1 { ("up0", of_up) } else { ("eth1", of_eth1) };
    assert_eq!(table(stays), Some(kept));
    bed.write(&both);
    bed.host.rename_link("up0", "vpn").expect("renamed");
    bed.write(&both);
    assert!(table("vpn").is_some() && table("up0").is_none(), "{}", bed.ip("-6 rule"));
    assert!(!bed.ip("-6 rule").contains("detached"));
    bed.host.rename_link("vpn", "up0").expect("renamed");
    bed.write(&both);
    bed.remove(ONE);
    assert_eq!(bed.everything(), before);
}

#[test]
fn who_cannot_leak_pays_nothing() {
    let Some(bed) = bed() else { return };
    for link in ["eth0", "eth1"] {
        bed.ip(&format!("-6 address flush dev {link}"));
        bed.ip(&format!("-6 route flush dev {link}"));
    }
    let before = bed.ip("-6 rule");
    let wanted = Bed::wanted(vec![], vec![bed.index("up0")]);
    bed.write(&wanted);
    assert_eq!(bed.ip("-6 rule"), before);
    bed.ip("-6 address add fd01::2/64 dev eth0 nodad");
    bed.write(&wanted);
    assert!(bed.ip("-6 rule").contains("oif up0"));
}

#[test]
fn a_name_that_is_not_utf8() {
    let Some(bed) = bed() else { return };
    let mut command = Command::new("ip");
    command.args(["link", "set", "up0", "name"]).arg(std::ffi::OsStr::from_bytes(b"up\xff"));
    let index = bed.index("up0");
    assert!(bed.host.enter(&mut command).status().expect("ip starts").success());
    let mut policy = bed.policy(1, "eth1");
    policy.uplink = Some(index);
    let wanted = Bed::wanted(vec![policy], vec![index]);
    bed.write(&wanted);
    assert!(steps(&bed.plan(&wanted), &bed.state()).is_empty());
    let rules = bed.ip("-6 rule");
    assert!(rules.contains("oif up") && !rules.contains("detached"), "{rules}");
    bed.remove(ONE);
    assert!(!bed.ip("-6 rule").contains("oif"));
}
