//! A real NetworkManager that activates and deactivates connections.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

use anyhow::ensure;
use steer_lab::wait_until;
use steer_tests::{
    Outcome, PATIENCE,
    beside::{Beside, THIRD},
};

use super::{Run, check_back, check_log};

const ROUNDS: usize = 20;

/// Without D-Bus activation of other services, and only these links.
const CONFIG: &str = "[main]\nplugins=keyfile\nno-auto-default=*\nauth-polkit=false\ndns=none\n[logging]\nlevel=INFO\n\
[device]\nmatch-device=interface-name:a0,interface-name:a1,interface-name:d0\nmanaged=1\nkeep-configuration=no\n\
[keyfile]\nunmanaged-devices=interface-name:lo\n[connectivity]\nenabled=false\n";

fn profile(beside: &Beside, link: &str, number: u8, metric: u32) -> Outcome {
    let gateway = |gateway: String| {
        if link == THIRD { String::new() } else { format!("gateway={gateway}\nroute-metric={metric}\n") }
    };
    let text = format!(
        "[connection]\nid={link}\ntype=ethernet\ninterface-name={link}\n[ethernet]\ncloned-mac-address=preserve\n\
         [ipv4]\nmethod=manual\naddresses=10.0.{number}.2/24\n{}\
         [ipv6]\nmethod=manual\naddresses=fd00:{number}::2/64\naddr-gen-mode=eui64\n{}",
        gateway(format!("10.0.{number}.1")),
        gateway(format!("fd00:{number}::1")),
    );
    let file = format!("/etc/NetworkManager/system-connections/{link}.nmconnection");
    beside.machine.write(&file, &text)?;
    Ok(std::fs::set_permissions(beside.machine.path(&file), Permissions::from_mode(0o600))?)
}

pub(super) fn activates() -> Outcome {
    let beside = Beside::new("managers-nm")?;
    for (link, number, metric) in [("a0", 0, 100), ("a1", 1, 200), (THIRD, 7, 300)] {
        profile(&beside, link, number, metric)?;
    }
    beside.machine.write("/etc/NetworkManager/NetworkManager.conf", CONFIG)?;
    // It must not wait for a whole system.
    beside.machine.write(
        "/etc/systemd/system/NetworkManager.service.d/early.conf",
        "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n",
    )?;
    beside.machine.succeed(&["systemctl", "daemon-reload"])?;
    beside.announce_links()?;
    let version = beside.machine.succeed(&["NetworkManager", "--version"])?;
    beside.machine.succeed(&["systemctl", "start", "NetworkManager"])?;
    let up = |beside: &Beside, link: &str| {
        beside.machine.succeed(&["nmcli", "--wait", "15", "connection", "up", link]).map(drop)
    };
    let down = |beside: &Beside, link: &str| {
        beside.machine.succeed(&["nmcli", "--wait", "15", "connection", "down", link]).map(drop)
    };
    wait_until("NetworkManager", PATIENCE, || {
        beside.machine.run(&["nmcli", "--terse", "general"]).is_ok_and(|said| said.code == 0)
    })?;
    for link in ["a0", "a1", THIRD] {
        up(&beside, link)?;
    }
    beside.steer(None)?;

    let mut run = Run::start(beside)?;
    for _ in 0..ROUNDS {
        for link in ["a1", "a0", THIRD] {
            up(&run.beside, link)?;
            run.settle(&format!("{link} up again"))?;
            run.beside.machine.succeed(&["nmcli", "--wait", "15", "device", "reapply", link])?;
            run.settle(&format!("reapply {link}"))?;
            down(&run.beside, link)?;
            run.beside.check_packets()?;
            up(&run.beside, link)?;
            run.settle(&format!("{link} down and up"))?;
        }
        run.beside.machine.succeed(&["systemctl", "restart", "NetworkManager"])?;
        run.settle("restart")?;
    }
    let (beside, repairs) = run.finish("NetworkManager")?;
    eprintln!("{}: {repairs:?}", version.trim());
    let log = beside.log()?;
    ensure!(log.contains("another program removed"), "not reported: {log}");
    check_log(&log)?;
    check_back(&repairs)
}
