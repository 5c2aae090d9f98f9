//! Checks of the path that a container's traffic takes.

use anyhow::{Context as _, ensure};
use steer_lab::{Capture, Server, Uplinks, leaks, parse_outcomes};

use super::Host;
use crate::{Bed, Output, Spy, User, check_outcomes};

/// The uplinks that a container has, and the server behind them.
#[derive(Clone, Copy)]
pub struct Ways<'n> {
    /// The namespaces; the container is in `client`.
    pub net: &'n Uplinks,
    /// Answers behind the uplinks.
    pub server: &'n Server,
}

impl Bed {
    /// The uplinks of a container that shares the host's network.
    pub fn ways(&self) -> Ways<'_> {
        Ways { net: &self.net, server: &self.server }
    }
}

/// The client in a container, with arguments that make it try each way once.
pub fn everything(ways: Ways<'_>) -> Vec<String> {
    let port = ways.server.port().to_string();
    ["/bed/steer-probe", "--json", "--all", "--port", &port, "--timeout-ms", "500"].map(str::to_owned).to_vec()
}

impl Host<'_> {
    /// Captures in the container's network, and in the host's network if that is another.
    fn spies(&self, ways: Ways<'_>, allowed: &[&str]) -> anyhow::Result<Vec<Spy>> {
        let mut spies = vec![Spy::in_netns(&ways.net.client, ways.server, allowed)?];
        if !std::ptr::eq(ways.net, &raw const self.bed.net) {
            spies.push(Spy::on(self.bed, &[])?);
        }
        Ok(spies)
    }

    /// Checks that the packets of a container's [`everything`], which `run` runs as its root, leave only by uplink `i`.
    pub fn check_steered(
        &self,
        ways: Ways<'_>,
        i: u8,
        run: impl FnOnce() -> anyhow::Result<Output>,
    ) -> anyhow::Result<()> {
        let link = ways.net.link(i);
        let mut spies = self.spies(ways, &[link])?;
        let mut uplink = Capture::start(&ways.net.client, link)?;
        let ran = run()?;
        let outcomes = parse_outcomes(&ran.stdout).with_context(|| format!("{ran:?}"))?;
        ensure!(outcomes.len() == 8, "{ran:?}");
        spies.iter_mut().try_for_each(Spy::saw_nothing)?;
        check_outcomes(&outcomes, User::Root, i)?;
        let index = i32::try_from(ways.net.ifindex(i)?)?;
        for outcome in &outcomes {
            ensure!(outcome.bound_ifindex == index, "not bound to {link}, which is {index}: {outcome:?}");
        }
        ensure!(leaks(&uplink.take()?).len() >= outcomes.len(), "too few packets on the uplink");
        Ok(())
    }

    /// Checks that its traffic uses the default route.
    pub fn check_unsteered(&self, ways: Ways<'_>, run: impl FnOnce() -> anyhow::Result<Output>) -> anyhow::Result<()> {
        let ran = run()?;
        let outcomes = parse_outcomes(&ran.stdout).with_context(|| format!("{ran:?}"))?;
        ensure!(outcomes.len() == 8, "{ran:?}");
        check_outcomes(&outcomes, User::Root, 0)?;
        ensure!(outcomes.iter().all(|outcome| outcome.bound_ifindex == 0), "bound: {outcomes:?}");
        ensure!(ways.net.link(0) == "a0");
        Ok(())
    }

    /// Checks that none of its packets leaves by any link, or that it does not start.
    pub fn check_silent<R>(&self, ways: Ways<'_>, run: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<R> {
        let mut spies = self.spies(ways, &[])?;
        let ran = run()?;
        spies.iter_mut().try_for_each(Spy::saw_nothing)?;
        Ok(ran)
    }

    /// Checks that none of its packets leaves by another link than uplink `i`, whether it starts or not.
    pub fn check_silent_but<R>(
        &self,
        ways: Ways<'_>,
        i: u8,
        run: impl FnOnce() -> anyhow::Result<R>,
    ) -> anyhow::Result<R> {
        let mut spies = self.spies(ways, &[ways.net.link(i)])?;
        let ran = run()?;
        spies.iter_mut().try_for_each(Spy::saw_nothing)?;
        Ok(ran)
    }

    /// Checks that none of its packets leaves by any link, and that it gets an error.
    pub fn check_closed(&self, ways: Ways<'_>, run: impl FnOnce() -> anyhow::Result<Output>) -> anyhow::Result<()> {
        let ran = self.check_silent(ways, run)?;
        let outcomes = parse_outcomes(&ran.stdout).with_context(|| format!("{ran:?}"))?;
        ensure!(outcomes.len() == 8 && outcomes.iter().all(|outcome| !outcome.is_ok()), "{ran:?}");
        Ok(())
    }
}
