//! `steer exec --user`: the command runs as another user.
//!
//! It is no login: PAM, limits and the user's shell are not involved. Not like `su`, the command has no way back to root.
//!
//! **Invariant:** after [`Identity::become_it`], the process has the user's ids and groups, no capability, and no descriptor of steer.

use std::{ffi::CString, process::Command};

use anyhow::{Context as _, bail};
use nix::unistd::{Gid, Uid, User, getgrouplist, setgid, setgroups, setuid};

use crate::{
    host::account,
    model::{quote::shown, similar::nearest},
};

/// A user, looked up before anything is changed.
#[derive(Debug)]
pub(super) struct Identity {
    user: User,
    groups: Vec<Gid>,
}

impl Identity {
    /// Looks a user up, by name or id.
    pub(super) fn find(name: &str) -> anyhow::Result<Self> {
        let user = account::find(name).with_context(|| format!("look up user {}", shown(name)))?;
        let Some(user) = user else {
            let perhaps = nearest(name, account::local_names()).map(|name| format!("; perhaps {}", shown(&name)));
            bail!("there is no user {}{}", shown(name), perhaps.unwrap_or_default());
        };
        let own = CString::new(user.name.clone()).context("the name of the user")?;
        let groups = getgrouplist(&own, user.gid).context("look up the groups of the user")?;
        Ok(Self { user, groups })
    }

    /// Sets the variables of a login.
    pub(super) fn set_variables(&self, command: &mut Command) {
        let User { name, dir, shell, .. } = &self.user;
        command.env("HOME", dir).env("USER", name).env("LOGNAME", name).env("SHELL", shell);
        // It belongs to the caller.
        for variable in ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "XAUTHORITY"] {
            command.env_remove(variable);
        }
    }

    /// Gives up all privileges of this process, for good.
    pub(super) fn become_it(&self) -> anyhow::Result<()> {
        let User { name, uid, gid, .. } = &self.user;
        let failed = |what: &str| format!("become user {}: {what}", shown(name));
        caps::clear(None, caps::CapSet::Inheritable).with_context(|| failed("clear inheritable capabilities"))?;
        setgroups(&self.groups).with_context(|| failed("set its groups"))?;
        setgid(*gid).with_context(|| failed("set its group"))?;
        setuid(*uid).with_context(|| failed("set its id"))?;
        if !uid.is_root() && setuid(Uid::from_raw(0)).is_ok() {
            bail!("{}", failed("the way back to root is open"));
        }
        Ok(())
    }
}
