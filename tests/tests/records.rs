//! The records in the maps, as the kernel reads them. Whatever the bytes are, a socket is bound as a complete record
//! says, or is closed. Random bytes and random changes of valid records are compared with a reference.
//!
//! **Invariant:** the reference parses the bytes itself. It shares only the offsets with the programs.

use std::cell::{Cell, RefCell};

use anyhow::{Context as _, ensure};
use proptest::{
    array::uniform24,
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
    strategy::BoxedStrategy,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use steer_lab::{Capture, Direction, NewSocket, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, PinnedMap, Spy, Strayed, USERS, stride};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("any_map_content", any_map_content)];

const POLICY_BYTES: usize = 272;
const ATTACHMENT_BYTES: usize = 24;
/// The offsets of a policy's words.
const KIND: usize = 0;
const FLAGS: usize = 4;
const IFINDEX: usize = 8;
const OWNER: usize = 12;
const NETNS_COOKIE: usize = 16;
const RESOLVERS: usize = 24;
const MARK: usize = 56;
const MARK_MASK: usize = 60;
const UPLINK: usize = 64;
const MEMBERS: usize = 68;
const NAME: usize = 80;
const INTERFACE: usize = 144;
/// The offsets of an attachment's words.
const SLOT: usize = 0;
const ATTACHMENT_FLAGS: usize = 4;
const CGROUP_ID: usize = 8;

const SLOTS: u32 = 4096;
/// A slot that steer has not allocated.
const SPARE: u32 = SLOTS - 1;
const STEER: u32 = 1;
const EXEMPT: u32 = 2;
const REFUSE_OTHER_NETNS: u32 = 1;
const ROUTE: u32 = 1 << 8;
/// A policy with the second and without the first lets packets out: see the tests of `observe`.
const GUARD: u32 = 1 << 2;
const OBSERVE: u32 = 1 << 16;
const ACCOUNT: u32 = 1 << 17;
/// A mark that no rule knows, and its mask.
const SOME_MARK: u32 = 0x8500_0000;
const SOME_MASK: u32 = 0xff00_0000;

/// The ports of packets that may leave only by the uplink, and of those that may not leave.
const BY_UPLINK: u16 = 4001;
const NOWHERE: u16 = 4002;

/// Bytes, each with its offset.
type Change = (usize, Vec<u8>);

/// The content of the maps.
#[derive(Clone, Debug)]
struct Records {
    policy: [u8; POLICY_BYTES],
    attachment: [u8; ATTACHMENT_BYTES],
}

/// The expected result of a new socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Bound(i32),
    /// Unbound. Its mark has no rule, so its packets take the default route.
    Marked(i32),
    Closed,
    /// Closed, because there is no complete mark. The guard asks for the index only.
    Unmarked(i32),
    /// The index belongs to another network namespace.
    Refused(i32),
    /// Left alone because of an exempt record.
    LeftAlone,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// The state of the bed before any change.
struct Known {
    good: Records,
    /// The policy in the spare slot.
    spare: [u8; POLICY_BYTES],
    slot: u32,
    netns_cookie: u64,
    /// Index of the uplink, and of the other link.
    uplink: i32,
    other: i32,
}

impl Known {
    /// The reference.
    fn expected(&self, records: &Records) -> Expected {
        let policy = match word(&records.attachment, SLOT) {
            slot if slot == self.slot => &records.policy,
            SPARE => &self.spare,
            _ => return Expected::Closed,
        };
        let is_here = long(policy, NETNS_COOKIE) == self.netns_cookie;
        // There is no group in any slot. A policy that names one has no uplink.
        let ifindex = if word(policy, UPLINK) == 0 { word(policy, IFINDEX).cast_signed() } else { 0 };
        match word(policy, KIND) {
            EXEMPT => Expected::LeftAlone,
            STEER if !is_here && word(policy, FLAGS) & REFUSE_OTHER_NETNS == 0 => Expected::LeftAlone,
            STEER if !is_here => Expected::Refused(ifindex),
            STEER if word(policy, FLAGS) & ROUTE != 0 => {
                let (mark, bits) = (word(policy, MARK), word(policy, MARK_MASK));
                if mark != 0 && mark & !bits == 0 { Expected::Marked(ifindex) } else { Expected::Unmarked(ifindex) }
            }
            STEER if ifindex > 0 => Expected::Bound(ifindex),
            _ => Expected::Closed,
        }
    }

    /// The port of the packets that prove the result; none if the other link may be correct.
    fn port(&self, expected: Expected) -> Option<u16> {
        match expected {
            Expected::Bound(ifindex) if ifindex == self.uplink => Some(BY_UPLINK),
            // The egress guard, the only one that stops older sockets, does not ask for the namespace of a packet on the
            // policy's index.
            Expected::Bound(ifindex)
            | Expected::Marked(ifindex)
            | Expected::Unmarked(ifindex)
            | Expected::Refused(ifindex)
                if ifindex == self.other =>
            {
                None
            }
            Expected::Bound(_)
            | Expected::Marked(_)
            | Expected::Unmarked(_)
            | Expected::Closed
            | Expected::Refused(_) => Some(NOWHERE),
            Expected::LeftAlone => None,
        }
    }

    fn records(&self) -> impl Strategy<Value = Records> + use<> {
        let good = self.good.clone();
        let any_policy = vec(any::<u8>(), POLICY_BYTES).prop_map(|bytes| bytes.try_into().unwrap_or([0; POLICY_BYTES]));
        let policy = prop_oneof![4 => Just(good.policy), 1 => any_policy];
        let attachment = prop_oneof![15 => Just(good.attachment), 1 => uniform24(any::<u8>())];
        let changes = (vec(self.policy_change(), 0..4), vec(self.attachment_change(), 0..2));
        (policy, attachment, changes).prop_map(|(mut policy, mut attachment, (of_policy, of_attachment))| {
            for change in &of_policy {
                put(&mut policy, change);
            }
            let flags = word(&policy, FLAGS);
            if flags & (OBSERVE | ACCOUNT) != 0 {
                put(&mut policy, &(FLAGS, (flags | GUARD).to_ne_bytes().to_vec()));
            }
            for change in &of_attachment {
                put(&mut attachment, change);
            }
            Records { policy, attachment }
        })
    }

    fn policy_change(&self) -> impl Strategy<Value = Change> + use<> {
        let indexes = [0, -1, 1, self.uplink, self.other, self.uplink | 1 << 16, i32::MAX, i32::MIN];
        let cookie = self.netns_cookie;
        let cookies = prop_oneof![select(vec![0, cookie, cookie + 1, !cookie, cookie << 32]), any::<u64>()];
        let names = |at| {
            prop_oneof![Just(padded("a0")), Just(padded("a1")), vec(any::<u8>(), 1..64)]
                .prop_map(move |name| (at, name))
        };
        prop_oneof![
            2 => words(KIND, vec![0, STEER, EXEMPT, 3, STEER << 8, EXEMPT << 24]),
            2 => words(FLAGS, (0..17).map(|bit| 1 << bit).chain([0, u32::MAX, ROUTE | 6]).collect()),
            2 => words(IFINDEX, indexes.map(i32::cast_unsigned).to_vec()),
            2 => Just((MARK, [SOME_MARK, SOME_MASK].map(u32::to_ne_bytes).concat())),
            1 => words(MARK, vec![0, SOME_MARK, SOME_MARK | 1]),
            1 => words(UPLINK, vec![0, 1, 255, 256, u32::MAX]),
            1 => words(MEMBERS, vec![0, 1, 8, u32::MAX]),
            1 => words(OWNER, (0..4).collect()),
            1 => cookies.prop_map(|cookie| (NETNS_COOKIE, cookie.to_ne_bytes().to_vec())),
            1 => vec(any::<u8>(), 1..NAME - RESOLVERS).prop_map(|address| (RESOLVERS, address)),
            1 => names(NAME),
            1 => names(INTERFACE),
            1 => (0..POLICY_BYTES, any::<u8>()).prop_map(|(at, byte)| (at, vec![byte])),
        ]
    }

    fn attachment_change(&self) -> impl Strategy<Value = Change> + use<> {
        let ids = any::<u64>().prop_map(|id| (CGROUP_ID, id.to_ne_bytes().to_vec()));
        prop_oneof![
            words(SLOT, vec![0, self.slot, SPARE, SPARE - 1, SLOTS, self.slot | 1 << 31, u32::MAX]),
            words(ATTACHMENT_FLAGS, (0..8).collect()),
            ids,
        ]
    }
}

fn padded(name: &str) -> Vec<u8> {
    name.bytes().chain([0; 16]).collect()
}

/// A word: one of the known values or any value.
fn words(at: usize, known: Vec<u32>) -> BoxedStrategy<Change> {
    let word = prop_oneof![3 => select(known), 1 => any::<u32>()];
    word.prop_map(move |word| (at, word.to_ne_bytes().to_vec())).boxed()
}

fn put(record: &mut [u8], (at, bytes): &Change) {
    record[*at..*at + bytes.len()].copy_from_slice(bytes);
}

/// The bed's maps, clients and captures.
struct Run<'a> {
    known: &'a Known,
    cgroup: [u8; 8],
    policies: PinnedMap<POLICY_BYTES>,
    attachments: PinnedMap<ATTACHMENT_BYTES>,
    /// With all capabilities, and without any.
    clients: Vec<Strayed>,
    spy: Spy,
    uplink: Capture,
    /// Packets that were seen on the uplink.
    seen: usize,
}

impl Run<'_> {
    fn write(&self, records: &Records) -> Outcome {
        self.policies.set(&self.known.slot.to_ne_bytes(), &records.policy)?;
        Ok(self.attachments.set(&self.cgroup, &records.attachment)?)
    }

    fn check(&mut self, records: &Records) -> Outcome {
        let expected = self.known.expected(records);
        let port = self.known.port(expected);
        self.write(records)?;
        let want = match expected {
            Expected::Bound(ifindex) => NewSocket::Bound(ifindex),
            Expected::Closed | Expected::Unmarked(_) => NewSocket::Bound(-1),
            Expected::Refused(_) => NewSocket::Refused("EPERM".to_owned()),
            Expected::LeftAlone | Expected::Marked(_) => NewSocket::Bound(0),
        };
        for client in &mut self.clients {
            let got = client.round(port)?;
            ensure!(got.len() == 4 && got.iter().all(|socket| *socket == want), "{expected:?}: {got:?}");
        }
        self.spy.saw_nothing().with_context(|| format!("{expected:?}"))?;
        self.check_uplink().with_context(|| format!("{expected:?}"))
    }

    fn check_uplink(&mut self) -> Outcome {
        let packets = self.uplink.take()?;
        let sent = |port| {
            let its = packets.iter().filter(move |packet| packet.direction == Direction::Out);
            its.filter(move |packet| packet.dst_port == Some(port)).collect::<Vec<_>>()
        };
        ensure!(sent(NOWHERE).is_empty(), "by the uplink: {:#?}", sent(NOWHERE));
        self.seen += sent(BY_UPLINK).len();
        Ok(())
    }

    /// Proves that the captures see the packets that they must see.
    fn prove_captures(&mut self) -> Outcome {
        let mut exempt = self.known.good.clone();
        put(&mut exempt.policy, &(KIND, EXEMPT.to_ne_bytes().to_vec()));
        self.write(&exempt)?;
        self.clients[0].round(Some(NOWHERE))?;
        wait_until("the packets of an exempt cgroup", PATIENCE, || self.spy.saw_nothing().is_err())?;
        Ok(())
    }
}

fn any_map_content() -> Outcome {
    let bed = Bed::new("records")?;
    let clients = USERS.map(|user| Strayed::start(&bed, &bed.cgroup, user, "a0"));
    let clients = clients.into_iter().collect::<Result<_, _>>()?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    // From here on both links have resolved their neighbours, so packets are sent at once.
    bed.check_unsteered(None)?;
    bed.check_steered(&bed.cgroup, 1)?;

    let (policies, attachments) = (PinnedMap::open(&bed, "POLICIES")?, PinnedMap::open(&bed, "ATTACHMENTS")?);
    let cgroup = bed.cgroup.id()?.to_ne_bytes();
    let attachment = attachments.get(&cgroup)?;
    let slot = word(&attachment, SLOT);
    let policy = policies.get(&slot.to_ne_bytes())?;
    let index = |number| anyhow::Ok(i32::try_from(bed.net.ifindex(number)?)?);
    let (other, uplink) = (index(0)?, index(1)?);
    let mut spare = policy;
    put(&mut spare, &(IFINDEX, other.to_ne_bytes().to_vec()));
    policies.set(&SPARE.to_ne_bytes(), &spare)?;
    let good = Records { policy, attachment };
    let known = Known { netns_cookie: long(&policy, NETNS_COOKIE), good, spare, slot, uplink, other };
    ensure!(
        known.expected(&known.good) == Expected::Bound(uplink),
        "the record of the attachment is not a good one: {policy:?}"
    );

    let (spy, uplink) = (Spy::on(&bed, &["a1"])?, Capture::start(&bed.net.client, "a1")?);
    let mut run = Run { known: &known, cgroup, policies, attachments, clients, spy, uplink, seen: 0 };
    compare(&mut run)?;
    run.prove_captures()?;
    run.write(&known.good)?;
    bed.check_steered(&bed.cgroup, 1)
}

fn compare(run: &mut Run<'_>) -> Outcome {
    let known = run.known;
    let run = RefCell::new(run);
    let (by_uplink, nowhere) = (Cell::new(0_usize), Cell::new(0_usize));
    let config = Config {
        cases: if stride(0) == 1 { 100_000 } else { 5_000 },
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let done = TestRunner::new(config).run(&known.records(), |records| {
        let sent = match known.port(known.expected(&records)) {
            Some(BY_UPLINK) => Some(&by_uplink),
            Some(_) => Some(&nowhere),
            None => None,
        };
        if let Some(sent) = sent {
            sent.set(sent.get() + 1);
        }
        run.borrow_mut().check(&records).map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    match done {
        Ok(()) => {}
        Err(TestError::Fail(reason, records)) => anyhow::bail!("{reason}, with {records:?}"),
        Err(TestError::Abort(reason)) => anyhow::bail!("{reason}"),
    }
    let seen = run.borrow().seen;
    ensure!(
        by_uplink.get() > 100 && nowhere.get() > 1_000,
        "{} by the uplink, {} nowhere",
        by_uplink.get(),
        nowhere.get()
    );
    // From each client, over IPv4 and IPv6.
    let expected = by_uplink.get() * 4;
    ensure!(seen >= expected, "{seen} packets by the uplink, of {expected} at least");
    Ok(())
}
