//! The alternatives to steer: marks by nftables, and network namespaces.
//!
//! **Invariant:** each alternative has only the rules that it needs, so that it is as cheap as possible.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use steer_lab::{Netns, Uplinks, create_veth, gateway_v4, gateway_v6};

use crate::mount;

/// The mark of the packets, and their routing table.
const MARK: u32 = 0x53;
/// The directory in which nft looks up cgroups: it uses the inode of a path below it as the id.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The metric of a route that is preferred to that of the first uplink.
const PREFERRED: u32 = 50;

/// Marks the packets of a cgroup's sockets, so that they are routed again, by the second uplink.
pub(super) fn mark(uplinks: &Uplinks, cgroup: &Path) -> Result<()> {
    nft(&uplinks.client, &mark_rules(&mount::point("cgroup2")?, cgroup)?)?;
    for gateway in [gateway_v4(1).into(), gateway_v6(1).into()] {
        uplinks.client.add_marked_route(MARK, MARK, gateway, uplinks.link(1))?;
    }
    Ok(())
}

/// Gives packets that leave by the second uplink its source address.
pub(super) fn masquerade(uplinks: &Uplinks) -> Result<()> {
    nft(&uplinks.client, &masquerade_rules(uplinks.link(1)))
}

/// A network namespace behind the one with the uplinks, which forwards and masquerades.
pub(super) fn namespace(uplinks: &Uplinks) -> Result<Netns> {
    let outer = &uplinks.client;
    masquerade(uplinks)?;
    for sysctl in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        outer.write_sysctl(sysctl, "1")?;
    }
    for gateway in [gateway_v4(1).into(), gateway_v6(1).into()] {
        outer.add_default_route(gateway, uplinks.link(1), PREFERRED)?;
    }
    let inner = Netns::new("inner")?;
    create_veth(&inner, "inner", outer, "outer")?;
    let v4 = |host| IpAddr::V4(Ipv4Addr::new(10, 99, 0, host));
    let v6 = |host| IpAddr::V6(Ipv6Addr::new(0xfd00, 99, 0, 0, 0, 0, 0, host));
    for (netns, link, [v4, v6]) in [(&inner, "inner", [v4(2), v6(2)]), (outer, "outer", [v4(1), v6(1)])] {
        netns.add_address(link, v4, 24)?;
        netns.add_address(link, v6, 64)?;
        netns.set_up(link)?;
    }
    for gateway in [v4(1), v6(1)] {
        inner.add_default_route(gateway, "inner", PREFERRED)?;
    }
    inner.wait_running("inner")?;
    outer.wait_running("outer")?;
    Ok(inner)
}

/// `hierarchy` is the mount point of cgroup2. The match needs Linux 5.13 and nft 0.9.9. After the hook, a packet whose
/// mark has changed is routed again.
fn mark_rules(hierarchy: &Path, cgroup: &Path) -> Result<String> {
    let level = cgroup.strip_prefix(hierarchy)?.components().count();
    let path = cgroup.strip_prefix(CGROUP_ROOT).with_context(|| {
        format!("nft looks for cgroups below {CGROUP_ROOT}, but cgroup2 is mounted at {}", hierarchy.display())
    })?;
    let rule = format!("socket cgroupv2 level {level} \"{}\" meta mark set {MARK}", path.display());
    Ok(format!("table inet steer_bench {{ chain out {{ type route hook output priority mangle; {rule}; }}; }}"))
}

fn masquerade_rules(link: &str) -> String {
    let rule = format!("oifname \"{link}\" masquerade");
    format!("table inet steer_bench {{ chain nat {{ type nat hook postrouting priority srcnat; {rule}; }}; }}")
}

/// Adds rules.
fn nft(netns: &Netns, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut nft = match netns.enter(&mut command).spawn() {
        Ok(nft) => nft,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("nft is not installed (Debian: nftables)"),
        Err(error) => return Err(error).context("start nft"),
    };
    let mut input = nft.stdin.take().context("nft's input is not piped")?;
    input.write_all(rules.as_bytes()).context("pass rules to nft")?;
    drop(input);
    let output = nft.wait_with_output().context("wait for nft")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft: {}", said.lines().next().unwrap_or("failed without a message"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nft_gets_a_path_from_its_own_root_and_the_level_in_the_hierarchy() {
        let rules = |hierarchy: &str, cgroup: &str| mark_rules(Path::new(hierarchy), Path::new(cgroup));
        let unified = rules("/sys/fs/cgroup", "/sys/fs/cgroup/a/b").expect("nft can see it");
        assert!(unified.contains(r#"socket cgroupv2 level 2 "a/b" "#), "{unified}");
        let hybrid = rules("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/a/b").expect("nft can see it");
        assert!(hybrid.contains(r#"socket cgroupv2 level 2 "unified/a/b" "#), "{hybrid}");
        let elsewhere = rules("/mnt/cgroup2", "/mnt/cgroup2/a").expect_err("nft cannot see it");
        assert!(elsewhere.to_string().contains("/mnt/cgroup2"), "{elsewhere:#}");
    }
}
