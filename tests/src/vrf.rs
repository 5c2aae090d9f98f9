//! A bed whose second uplink is in a VRF, and `ip vrf exec`.

use std::{net::IpAddr, process::Command};

use anyhow::ensure;
use steer_lab::{Error, client_v4, client_v6, gateway_v4, gateway_v6};

use crate::{Bed, Cgroup, NOBODY, NotHere, User, output};

/// The VRF of uplink `a1`.
pub const VRF: &str = "vrf1";

const TABLE: u32 = 1001;

impl Bed {
    /// A bed with uplink `a1` in a VRF. [`NotHere`] where the kernel has no VRF support.
    pub fn with_vrf(name: &str) -> anyhow::Result<Self> {
        let bed = Self::new(name)?;
        match bed.net.client.add_vrf(VRF, TABLE) {
            Err(Error::Os { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Err(NotHere("this kernel has no VRF".to_owned()).into());
            }
            made => made?,
        }
        bed.enslave()?;
        Ok(bed)
    }

    /// Puts `a1` into the VRF, with its addresses and routes. Destinations without a route are unreachable there, as
    /// Linux's Documentation/networking/vrf.rst advises. Otherwise the lookup would continue in the main table.
    pub fn enslave(&self) -> anyhow::Result<()> {
        let client = &self.net.client;
        client.set_master("a1", VRF)?;
        client.wait_running("a1")?;
        for (address, prefix_len) in [(IpAddr::V4(client_v4(1)), 24), (IpAddr::V6(client_v6(1)), 64)] {
            client.add_address("a1", address, prefix_len)?;
        }
        for gateway in [IpAddr::V4(gateway_v4(1)), IpAddr::V6(gateway_v6(1))] {
            client.add_default_route_to(TABLE, gateway, "a1")?;
        }
        for family in ["-4", "-6"] {
            let mut command = ip();
            let table = TABLE.to_string();
            command.args([
                family,
                "route",
                "replace",
                "table",
                &table,
                "unreachable",
                "default",
                "metric",
                "4278198272",
            ]);
            let added = output(client.enter(&mut command))?;
            ensure!(added.code == 0, "{added:?}");
        }
        Ok(())
    }

    /// The `ip vrf exec` command in a cgroup; the caller adds the program and its arguments.
    pub fn vrf_exec(&self, cgroup: &Cgroup, user: User) -> anyhow::Result<Command> {
        if output(ip().arg("-V")).is_err() {
            return Err(NotHere("ip(8) is not installed".to_owned()).into());
        }
        let mut command = ip();
        command.args(["vrf", "exec", VRF]);
        if user == User::Nobody {
            let (uid, gid) = NOBODY;
            command.args(["setpriv", "--clear-groups", &format!("--reuid={uid}"), &format!("--regid={gid}")]);
        }
        self.place(&mut command, Some(cgroup), User::Root);
        Ok(command)
    }
}

fn ip() -> Command {
    Command::new("ip")
}
