//! Whether the real thing does what the reference says: every process sends in every way, and the captures tell by which links the
//! packets left.
//!
//! **Invariant:** a packet on a link that neither the state before an operation nor the one after it allows is a failure at once,
//! however late everything else settles.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, bail};
use steer_lab::{
    prober::{Request, Sent},
    wait_until,
};
use steer_tests::Outcome;

use super::{
    World,
    health::is_probe,
    traffic::{Tag, asks_name, tag},
};
use crate::model::{
    operation::Act,
    reference::{Answer, Asked, Line, Reference, SPACES, Space, groups::is_resolver},
};

/// How many differences are shown.
const SHOWN: usize = 4;

/// By which links packets may leave before all has settled.
pub(crate) enum Settles {
    /// By those that were right before, or are now; for one cgroup, or for all if the path is empty, only by those that are now.
    Between(Option<String>),
    /// As `Between(None)`, while rules or routes of steer are missing in a namespace.
    Removed(Space),
    /// By any, for a known fault.
    Anyhow,
}

impl Settles {
    pub(crate) fn of(act: &dyn Act) -> Self {
        act.removes_routes().map_or_else(|| Self::Between(act.at_once()), Self::Removed)
    }

    fn is_settled(&self, place: &str) -> bool {
        matches!(self, Self::Between(Some(at_once)) if at_once.is_empty() || at_once == place)
    }
}

/// The links by which attempts may leave.
type Allowed<'a> = BTreeMap<&'a Asked, BTreeSet<Line>>;

/// What was seen of one attempt.
#[derive(Default)]
struct SeenOf {
    lines: BTreeSet<Line>,
    /// The servers that were asked, by which link.
    servers: BTreeSet<(Line, IpAddr)>,
}

impl World {
    /// Both agree about everybody, as soon as everything has settled.
    pub(crate) fn compare(&mut self, before: &Reference, now: &Reference, settles: &Settles) -> Outcome {
        let answers = now.answers();
        let earlier = before.answers_for(answers.keys());
        let allow = |asked: &Asked, is_settled: bool| {
            let mut may = answers[asked].may.clone();
            if !is_settled {
                may.extend(earlier.get(asked).into_iter().flat_map(|answer| &answer.may));
            }
            match settles {
                Settles::Removed(space) if *space == asked.space => may.extend(now.may_while_removed(asked)),
                Settles::Between(_) | Settles::Removed(_) => {}
                Settles::Anyhow => may.extend(self.lines.values()),
            }
            may
        };
        // What was sent again before the operation was over.
        let until_now: Allowed<'_> = answers.keys().map(|asked| (asked, allow(asked, false))).collect();
        let allowed: Allowed<'_> =
            answers.keys().map(|asked| (asked, allow(asked, settles.is_settled(&asked.place)))).collect();
        let probed = before.probed_lines().union(&now.probed_lines()).copied().collect();
        self.look(&answers, &until_now, &probed)?;
        let (mut differences, mut failed) = (Vec::new(), None);
        let patience = self.patience;
        let settled = wait_until("both to agree", patience, || match self.round(&answers, &allowed, &probed) {
            Ok(found) => {
                differences = found;
                differences.is_empty()
            }
            Err(error) => {
                failed = Some(error);
                true
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if settled.is_err() {
            let more = differences.len().saturating_sub(SHOWN);
            differences.truncate(SHOWN);
            if more > 0 {
                differences.push(format!("and {more} more"));
            }
            bail!("{}", differences.join("\n    "));
        }
        self.wait_for_uplinks(now)
    }

    /// Everybody sends once. Returns what is not as it should be yet.
    fn round(
        &mut self,
        answers: &BTreeMap<Asked, Answer>,
        allowed: &Allowed<'_>,
        probed: &BTreeSet<Line>,
    ) -> anyhow::Result<Vec<String>> {
        let attempts = self.send()?;
        let seen = self.look(answers, allowed, probed)?;
        let mut differences = Vec::new();
        for tag in attempts {
            let (asked, sent) = self.ports.attempt(tag).context("an attempt")?;
            let Some(answer) = answers.get(asked) else { continue };
            let nothing = SeenOf::default();
            let of = seen.get(&tag).unwrap_or(&nothing);
            if !agrees(answer, sent, of) {
                differences.push(format!(
                    "{asked:?} as {:?} {:?}: by {:?}, not {answer:?}; {:?} {:?}",
                    sent.user, sent.family, of.lines, sent.error, of.servers
                ));
            }
        }
        Ok(differences)
    }

    /// What has been captured since, if all of it is allowed.
    fn look(
        &mut self,
        answers: &BTreeMap<Asked, Answer>,
        allowed: &Allowed<'_>,
        probed: &BTreeSet<Line>,
    ) -> anyhow::Result<BTreeMap<Tag, SeenOf>> {
        let mut seen: BTreeMap<Tag, SeenOf> = BTreeMap::new();
        for space in SPACES {
            let packets = self.captures.get_mut(&space).context("no capture")?.take()?;
            for packet in packets {
                let line = self.lines.get(&(space, packet.ifindex)).copied();
                let Some(tag) = tag(&packet, space) else {
                    if is_probe(&packet) && !line.is_some_and(|line| probed.contains(&line)) {
                        bail!("LEAK: a probe by {line:?}, not {probed:?}: {packet:?}");
                    }
                    continue;
                };
                let line = line.with_context(|| format!("a packet on a link that nobody made: {packet:?}"))?;
                let Some((asked, sent)) = self.ports.attempt(tag) else { bail!("nobody has sent this: {packet:?}") };
                // One that nobody asks about any more was sent before.
                if allowed.get(asked).is_some_and(|may| !may.contains(&line)) {
                    bail!("LEAK: {asked:?} as {:?} {:?} by {line:?}, not {:?}", sent.user, sent.family, answers[asked]);
                }
                let of = seen.entry(tag).or_default();
                of.lines.insert(line);
                of.servers.extend(packet.dst.map(|server| (line, server)));
            }
        }
        Ok(seen)
    }

    /// Lets everybody send, all at once.
    fn send(&mut self) -> anyhow::Result<Vec<Tag>> {
        let here = self.places.iter_mut().flat_map(|(place, it)| {
            it.probers
                .iter_mut()
                .map(move |(space, prober)| (place.clone(), *space, prober, Request::Send as fn(u16) -> Request))
        });
        let elsewhere = self
            .elsewhere
            .iter_mut()
            .map(|((place, space), prober)| (place.clone(), *space, prober, Request::SendKept as fn(u16) -> Request));
        let mut asked: Vec<_> = here.chain(elsewhere).collect();
        for (_, _, prober, request) in &mut asked {
            prober.ask(request(self.ports.take()))?;
        }
        let mut attempts = Vec::new();
        for (place, space, prober, _) in asked {
            for sent in prober.answer().with_context(|| format!("in {place} {space:?}"))? {
                let asked = Asked { place: place.clone(), space, way: sent.way, family: sent.family };
                attempts.push(self.ports.made(asked, sent));
            }
        }
        Ok(attempts)
    }
}

fn agrees(answer: &Answer, sent: &Sent, seen: &SeenOf) -> bool {
    let is_right = |(line, server): &(Line, IpAddr)| match &answer.resolvers {
        None => !is_resolver(server),
        Some(resolvers) => match resolvers.get(line) {
            None => true,
            Some(None) => !is_resolver(server),
            Some(Some(resolver)) => resolver == server,
        },
    };
    let servers = !asks_name(sent) || seen.servers.iter().all(is_right);
    let lines = if answer.must.is_empty() {
        seen.lines.is_subset(&answer.may)
    } else {
        !seen.lines.is_empty() && seen.lines.is_subset(&answer.must)
    };
    servers && lines
}
