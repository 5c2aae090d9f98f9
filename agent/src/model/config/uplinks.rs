//! `[[uplink]]`: groups of uplinks, in the configuration file only.
//!
//! **Invariant:** each key of a group and of a member is read here, and nowhere else.

use std::time::Duration;

use steer_common::uplink::MEMBERS;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Problems, Source, reader::Reader};
use crate::model::{
    spec::{AllDown, Balance, OnFail, OnReturn, Resolvers, Uplink, Word},
    uplink::{
        auto::{Auto, Selector},
        group::{self, Group, GroupName, HOLD, Member},
        probe::{self, Probe, Target},
    },
};

/// The name of the tables.
pub(super) const NAME: &str = "uplink";
const KEYS: [&str; 9] = ["name", "members", "auto", "balance", "probe", "hold", "on_fail", "on_return", "all_down"];
const AUTO_KEYS: [&str; 3] = ["exclude", "prefer", "include"];
const PROBE_KEYS: [&str; 7] = ["targets", "need", "interval", "timeout", "fall", "rise", "idle"];
const MEMBER_KEYS: [&str; 5] = ["interface", "tier", "weight", "metered", "dns"];
/// The longest `hold`.
const LONGEST_HOLD: Duration = Duration::from_hours(1);

/// Reads the groups of the configuration file. Mistakes elsewhere in it are no error, unless the syntax is wrong.
pub fn uplinks(source: &Source) -> Result<Vec<Group>, Problems> {
    let mut reader = Reader { source, problems: Vec::new() };
    let table = reader.table();
    let mut groups = Vec::new();
    if reader.problems.is_empty() {
        groups = reader.uplinks(table.get_ref());
    }
    let problems = reader.sorted();
    if problems.is_empty() { Ok(groups) } else { Err(Problems { problems }) }
}

impl Reader<'_> {
    /// Reads all groups.
    pub(super) fn uplinks(&mut self, file: &DeTable<'_>) -> Vec<Group> {
        let Some(value) = file.get(NAME) else { return Vec::new() };
        let Some(tables) = value.get_ref().as_array() else {
            self.wrong(NAME, value, "expected [[uplink]], with double brackets");
            return Vec::new();
        };
        let mut groups: Vec<Group> = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            let at = format!("{NAME}[{index}]");
            let Some(fields) = table.get_ref().as_table() else {
                self.wrong(&at, table, "expected a table");
                continue;
            };
            let Some(group) = self.group(&at, table, fields) else { continue };
            if groups.iter().any(|other| other.name == group.name) {
                let path = format!("{at}.name");
                self.problem(
                    table.span(),
                    &path,
                    "",
                    format!("another [[uplink]] is named {}; expected another name", group.name),
                );
            } else {
                groups.push(group);
            }
        }
        self.name_problems(NAME, tables);
        groups
    }

    fn group(&mut self, at: &str, table: &Spanned<DeValue<'_>>, fields: &DeTable<'_>) -> Option<Group> {
        let (mut name, mut members, mut auto) = (None, None, None);
        let (mut balance, mut on_fail, mut all_down) = (Balance::default(), OnFail::default(), AllDown::default());
        let (mut probe, mut hold, mut on_return) = (None, HOLD, None);
        for (key, value) in fields {
            let path = format!("{at}.{}", key.get_ref());
            match key.get_ref().as_ref() {
                "name" => name = self.parsed(&path, value, configurable_name),
                "members" => members = self.members(&path, value),
                "auto" => auto = self.auto(&path, value),
                "balance" => balance = self.one_word(&path, value).unwrap_or(balance),
                "on_fail" => on_fail = self.one_word(&path, value).unwrap_or(on_fail),
                "on_return" => on_return = self.one_word::<OnReturn>(&path, value),
                "all_down" => all_down = self.one_word(&path, value).unwrap_or(all_down),
                "probe" => probe = self.probe(&path, value),
                "hold" => hold = self.parsed(&path, value, read_hold).unwrap_or(hold),
                _ => self.unknown_key(key, &path, &KEYS),
            }
        }
        for (key, is_there, expected) in [
            ("name", fields.contains_key("name"), "expected name = \"...\", as policies use it"),
            (
                "members",
                fields.contains_key("members") || fields.contains_key("auto"),
                "expected members = [{ interface = \"eth0\" }, ...], or auto = {}",
            ),
        ] {
            if !is_there {
                self.problem(table.span(), &format!("{at}.{key}"), "", format!("missing; {expected}"));
            }
        }
        if let Some(value) = fields.get("auto").filter(|_| fields.contains_key("members")) {
            self.wrong(&format!("{at}.auto"), value, "expected members or auto, not both");
            return None;
        }
        let members = if fields.contains_key("auto") { Vec::new() } else { members? };
        let group = Group { name: name?, members, auto, balance, probe, hold, on_fail, on_return, all_down };
        match (group.check(), fields.get("members")) {
            (Err(problem), Some(value)) => {
                self.wrong(&format!("{at}.members"), value, problem);
                None
            }
            _ => Some(group),
        }
    }

    fn auto(&mut self, at: &str, value: &Spanned<DeValue<'_>>) -> Option<Auto> {
        let Some(fields) = value.get_ref().as_table() else {
            self.wrong(at, value, "expected a table, as { exclude = [\"docker*\"] }");
            return None;
        };
        let mut auto = Auto::default();
        for (key, value) in fields {
            let path = format!("{at}.{}", key.get_ref());
            let globs = match key.get_ref().as_ref() {
                "exclude" => &mut auto.exclude,
                "prefer" => &mut auto.prefer,
                "include" => &mut auto.include,
                _ => {
                    self.unknown_key(key, &path, &AUTO_KEYS);
                    continue;
                }
            };
            let items = value.get_ref().as_array().map(|items| items.iter().map(|item| item.get_ref().as_str()));
            match items.and_then(Iterator::collect::<Option<Vec<_>>>) {
                Some(items) => *globs = items.into_iter().map(str::to_owned).collect(),
                None => self.wrong(&path, value, "expected a list of names of interfaces, with globs, as [\"eth*\"]"),
            }
        }
        if let Err(problem) = Selector::new(&auto) {
            self.wrong(at, value, problem);
        }
        Some(auto)
    }

    fn members(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<Member>> {
        let Some(items) = value.get_ref().as_array() else {
            let expected = format!("expected a list of 1 to {MEMBERS} members, as [{{ interface = \"eth0\" }}]");
            self.wrong(path, value, expected);
            return None;
        };
        let members: Vec<_> = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| self.member(&format!("{path}[{index}]"), item))
            .collect();
        (members.len() == items.len()).then_some(members)
    }

    fn member(&mut self, at: &str, item: &Spanned<DeValue<'_>>) -> Option<Member> {
        if item.get_ref().as_str().is_some() {
            return self.parsed(at, item, interface).map(Member::new);
        }
        let Some(fields) = item.get_ref().as_table() else {
            self.wrong(at, item, "expected the name of an interface, or a table with it");
            return None;
        };
        let before = self.problems.len();
        let mut member = Member::new(String::new());
        for (key, value) in fields {
            let path = format!("{at}.{}", key.get_ref());
            match key.get_ref().as_ref() {
                "interface" => member.interface = self.parsed(&path, value, interface).unwrap_or_default(),
                "tier" => member.tier = self.small(&path, value).unwrap_or(member.tier),
                "weight" => member.weight = self.small(&path, value).unwrap_or(member.weight),
                "metered" => member.metered = self.is_true(&path, value),
                "dns" => member.dns = self.resolvers(&path, value),
                _ => self.unknown_key(key, &path, &MEMBER_KEYS),
            }
        }
        if !fields.contains_key("interface") {
            let expected = "missing; expected interface = \"...\", the name of an interface";
            self.problem(item.span(), &format!("{at}.interface"), "", expected);
        }
        (self.problems.len() == before).then_some(member)
    }

    fn probe(&mut self, at: &str, value: &Spanned<DeValue<'_>>) -> Option<Probe> {
        let Some(fields) = value.get_ref().as_table() else {
            self.wrong(at, value, "expected a table, as { targets = [\"gateway\"] }");
            return None;
        };
        let before = self.problems.len();
        let mut probe = Probe::default();
        for (key, value) in fields {
            let path = format!("{at}.{}", key.get_ref());
            match key.get_ref().as_ref() {
                "targets" => probe.targets = self.targets(&path, value),
                "need" => probe.need = self.small(&path, value).unwrap_or(probe.need),
                "interval" => probe.interval = self.parsed(&path, value, probe::duration).unwrap_or(probe.interval),
                "timeout" => probe.timeout = self.parsed(&path, value, probe::duration).unwrap_or(probe.timeout),
                "fall" => probe.fall = self.small(&path, value).unwrap_or(probe.fall),
                "rise" => probe.rise = self.small(&path, value).unwrap_or(probe.rise),
                "idle" => probe.idle = self.is_true(&path, value),
                _ => self.unknown_key(key, &path, &PROBE_KEYS),
            }
        }
        if !fields.contains_key("timeout") {
            probe.timeout = probe.timeout.min(probe.interval);
        }
        if self.problems.len() == before {
            for (key, problem) in probe.problems() {
                let place = fields.get(key).unwrap_or(value);
                self.wrong(&format!("{at}.{key}"), place, problem);
            }
        }
        (self.problems.len() == before).then_some(probe)
    }

    fn targets(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Vec<Target> {
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(path, value, "expected a list, as [\"gateway\", \"dns:192.0.2.53\"]");
            return Vec::new();
        };
        let read = |(index, item)| self.parsed(&format!("{path}[{index}]"), item, Target::parse);
        items.iter().enumerate().filter_map(read).collect()
    }

    fn is_true(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> bool {
        if value.get_ref().as_bool().is_none() {
            self.wrong(path, value, "expected true or false");
        }
        value.get_ref().as_bool().unwrap_or_default()
    }

    fn resolvers(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Resolvers {
        let mut resolvers = Resolvers::NONE;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(path, value, "expected a list of addresses, as [\"192.0.2.53\"]");
            return resolvers;
        };
        for item in items {
            match item.get_ref().as_str().map(|text| resolvers.add(text)) {
                Some(Ok(())) if resolvers.link => self.wrong(path, item, "expected addresses"),
                Some(Ok(())) => {}
                Some(Err(problem)) => self.wrong(path, item, problem),
                None => self.wrong(path, item, "expected an address in quotes"),
            }
        }
        resolvers
    }

    /// Reads text.
    fn parsed<T>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let parsed = value.get_ref().as_str().ok_or_else(|| "expected a string".to_owned()).and_then(parse);
        parsed.map_err(|problem| self.wrong(path, value, problem)).ok()
    }

    fn one_word<W: Word>(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<W> {
        let read = value.get_ref().as_str().ok_or_else(W::expected).and_then(W::read);
        read.map_err(|problem| self.wrong(path, value, problem)).ok()
    }

    /// Reads a number from 1 to 100.
    fn small(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<u8> {
        let number = value.get_ref().as_integer().and_then(|it| u8::from_str_radix(it.as_str(), it.radix()).ok());
        let number = number.filter(|number| (1..=100).contains(number));
        if number.is_none() {
            self.wrong(path, value, "expected a number from 1 to 100");
        }
        number
    }
}

fn configurable_name(text: &str) -> Result<GroupName, String> {
    let name = GroupName::parse(text)?;
    if group::named(&[], &name).is_some() {
        return Err(format!("{text:?} needs no [[uplink]]; expected another name"));
    }
    Ok(name)
}

fn interface(text: &str) -> Result<String, String> {
    match Uplink::parse(text)? {
        Uplink::Interface(name) => Ok(name),
        Uplink::Group(_) | Uplink::Exempt | Uplink::Closed => Err("expected the name of an interface".to_owned()),
    }
}

fn read_hold(text: &str) -> Result<Duration, String> {
    let hold = text.parse::<jiff::SignedDuration>().ok().and_then(|hold| Duration::try_from(hold).ok());
    let fits = hold.filter(|hold| *hold <= LONGEST_HOLD && hold.subsec_nanos() == 0);
    fits.ok_or_else(|| "expected whole seconds up to an hour, as \"30s\" or \"5m\"".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::model::{
        config::parse,
        spec::{AllDown, Balance, OnFail, OnReturn, Uplink},
    };

    const GROUP: &str = r#"
[[uplink]]
name = "internet"
members = [
  { interface = "eth1", weight = 3, dns = ["192.0.2.53"] },
  "eth2",
  { interface = "wwan0", tier = 2, metered = true },
]
balance = "socket"
probe = { targets = ["gateway", "dns:192.0.2.53"], interval = "300ms" }
hold = "1m"
on_fail = "keep"
on_return = "linger"
all_down = "close"

[[policy]]
name = "a"
uplink = "internet"
cgroups = ["/a"]
"#;

    #[test]
    fn a_group_and_a_policy_that_uses_it() {
        let config = parse("f.toml", GROUP).expect("valid");
        let [group] = config.uplinks.as_slice() else { panic!("one group: {:?}", config.uplinks) };
        let members: Vec<_> =
            group.members.iter().map(|it| (it.interface.as_str(), it.tier, it.weight, it.metered)).collect();
        assert_eq!(members, [("eth1", 1, 3, false), ("eth2", 1, 1, false), ("wwan0", 2, 1, true)]);
        assert!(group.members[0].dns.v4.is_some());
        let settings = (group.balance, group.hold, group.on_fail, group.on_return, group.all_down);
        let want = (Balance::Socket, Duration::from_mins(1), OnFail::Keep, Some(OnReturn::Linger), AllDown::Close);
        assert_eq!(settings, want);
        let probe = group.probe.as_ref().expect("a probe");
        assert_eq!((probe.targets.len(), probe.timeout, probe.fall), (2, Duration::from_millis(300), 3));
        let by_a_member = GROUP.replacen("internet", "eth2", 1).replace("uplink = \"internet\"", "uplink = \"eth2\"");
        assert!(
            parse("f.toml", &(by_a_member + "except = [\"192.0.2.0/24=eth2\"]\n")).is_ok(),
            "a group named as a member"
        );
        let target = &config.policies[0].target;
        assert_eq!(target.uplink, Uplink::Group(group.name.clone()));
        assert_eq!(target.spec().target(target.uplink.clone()), Ok(target.clone()), "written as read");
    }

    #[test]
    fn mistakes() {
        let cases = [
            ("weight = 3", "weight = 0", "uplink \"internet\": members 1: weight = 0: expected a number from 1 to 100"),
            ("\"eth2\"", "\"eth1\"", "eth1 is a member twice; expected each interface once"),
            (
                "\"eth2\"",
                "7",
                "uplink \"internet\": members 2 = 7: expected the name of an interface, or a table with it",
            ),
            ("interface = \"wwan0\", ", "", "uplink \"internet\": members 3: interface: missing"),
            ("metered = true", "metered = 1", "members 3: metered = 1: expected true or false"),
            ("\"1m\"", "\"2h\"", "uplink \"internet\": hold = \"2h\": expected whole seconds up to an hour"),
            (
                "\"socket\"",
                "\"random\"",
                "uplink \"internet\": balance = \"random\": expected \"cgroup\", \"destination\" or",
            ),
            (
                "\"gateway\"",
                "\"ping\"",
                "uplink \"internet\": probe.targets 1 = \"ping\": expected \"gateway\", \"icmp:ADDRESS\"",
            ),
            ("interval", "every", "uplink \"internet\": probe.every: unknown key; expected targets, need,"),
            ("300ms", "3ms", "uplink \"internet\": probe.interval = \"3ms\": expected 50ms to 1h"),
            ("balance", "auto", "uplink \"internet\": auto = \"socket\": expected a table"),
            ("balance = \"socket\"", "auto = {}", "uplink \"internet\": auto = {}: expected members or auto, not both"),
            (
                "name = \"internet\"",
                "name = \"auto\"",
                "uplink \"auto\": name = \"auto\": \"auto\" needs no [[uplink]]; expected another",
            ),
            (
                "name = \"internet\"",
                "name = \"a+b\"",
                "uplink \"a+b\": name = \"a+b\": \"a+b\" needs no [[uplink]]; expected another",
            ),
            ("all_down", "all_up", "uplink \"internet\": all_up: unknown key; expected name, members,"),
            ("name = \"internet\"\n", "", "uplink 1: name: missing"),
            ("uplink = \"internet\"", "uplink = \"lte\"", "policy \"a\": uplink: there is no [[uplink]] \"lte\""),
            ("uplink = \"internet\"", "uplink = \"a,b\"", "policy \"a\": uplink = \"a,b\": `,` and `!` are not part"),
            ("uplink = \"internet\"", "uplink = \"internet\"\ninterface = \"eth0\"", "expected interface or uplink"),
            (
                "uplink = \"internet\"",
                "uplink = \"internet\"\nexcept = [{ to = \"10.0.0.0/8\", by = \"eth7\" }, \"192.0.2.0/24=internet\"]",
                "policy \"a\": except: 192.0.2.0/24 is to go by \"internet\", which is an [[uplink]]; expected one interface, as its \
                 member \"eth1\", \"main\" or \"refuse\"",
            ),
            ("[[uplink]]", "[uplink]", "uplink = [uplink]: expected [[uplink]], with double brackets"),
        ];
        for (from, to, want) in cases {
            let problems = parse("f.toml", &GROUP.replacen(from, to, 1)).expect_err(want).to_string();
            assert!(problems.contains(want), "{want}\nin\n{problems}");
        }
    }
}
