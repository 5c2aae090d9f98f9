//! A policy as requested by a file, the API, options of a command, or annotations of a container.
//!
//! There are two stages. [`PolicySpec`] is the text as written: every key may be absent. [`Target`] is its meaning: every
//! option has a value, and the options are compatible. [`PolicySpec::target`] converts one to the other.
//!
//! **Invariant:** each key, its meaning and the spelling of its values exist once, in [`PolicySpec`]. The configuration
//! parser, the schema of the API, options of commands, annotations and the manual page use [`KEYS`].

mod accounts;
pub mod annotations;
mod difference;
mod except;
pub(in crate::model) mod glob;
mod local;
mod named;
mod pattern;
mod resolvers;
mod serde;
mod target;
mod uplink;
mod value;
mod words;

use std::fmt;

pub use accounts::{Accounts, Allow};
pub use difference::changes;
pub use except::{By, Exception, Exceptions};
pub use local::{Local, Near};
pub use named::{Known, Named, Units, UserUnits, Users};
pub use pattern::Pattern;
pub use resolvers::{LINK, Resolvers};
pub use target::{Conflict, Enforcement, Reach, Target};
pub use uplink::Uplink;
use value::Value;
pub use words::{Account, AllDown, Balance, Enforce, Existing, Ingress, Missing, OnFail, OnReturn, OtherNetns, Word};

use crate::model::{cgroup_path::CgroupPath, uplink::group::GroupName};

/// A key of a policy.
#[derive(Clone, Copy)]
pub struct Key {
    /// Its name in files, in the API and, after `steer.`, in annotations.
    pub name: &'static str,
    /// Its name as an option of commands, without the dashes.
    pub option: &'static str,
    /// The placeholder for the value in help.
    pub placeholder: &'static str,
    /// Its meaning. The first sentence is a summary.
    pub description: &'static str,
    /// Whether its value is a list.
    pub is_list: bool,
    /// The fields of an item of a list, with their meanings: in files and the API an item is a table of texts, and may also be one text, with
    /// `=` between the fields. Empty: an item is text.
    pub fields: &'static [(&'static str, &'static str)],
    /// The accepted words, with their meanings. Empty: other text is expected.
    pub words: fn() -> Vec<(&'static str, &'static str)>,
    /// The word that applies if the key is absent.
    pub default_word: fn() -> Option<&'static str>,
    /// What is expected, as part of a message.
    pub expected: fn() -> String,
}

impl Key {
    /// One sentence for the help of commands, without the full stop.
    pub fn summary(&self) -> &'static str {
        let description = self.description.trim();
        description.split_once(". ").map_or_else(|| description.trim_end_matches('.'), |(summary, _)| summary)
    }

    /// Whether its value is true or false in files and in the API.
    pub fn is_bool(&self) -> bool {
        (self.words)().iter().map(|(word, _)| *word).eq(["false", "true"])
    }
    /// The text of each field of an item, with its name.
    pub fn split<'t>(&self, item: &'t str) -> impl Iterator<Item = (&'static str, &'t str)> {
        self.fields.iter().map(|(field, _)| *field).zip(item.splitn(self.fields.len(), '='))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// Why a key or its value is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// There is no such key.
    Key,
    /// The value is wrong. The text says what is expected.
    Value(String),
}

impl fmt::Display for Rejected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Key => "unknown key",
            Self::Value(problem) => problem,
        })
    }
}

macro_rules! policy_spec {
    ($( $(#[doc = $help:literal])+ $name:ident: $type:ty = ($option:literal, $placeholder:literal); )+) => {
        /// A policy as written.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct PolicySpec {
            $( $(#[doc = $help])+ pub $name: Option<$type>, )+
        }

        /// Every key of a policy except its name, in the order in which they are written.
        pub static KEYS: &[Key] = &[ $( Key {
            name: stringify!($name),
            option: $option,
            placeholder: $placeholder,
            description: concat!($($help),+),
            is_list: <$type as Value>::IS_LIST,
            fields: <$type as Value>::FIELDS,
            words: <$type as Value>::words,
            default_word: <$type as Value>::default_word,
            expected: <$type as Value>::expected,
        } ),+ ];

        impl PolicySpec {
            /// Adds one text to the value of a key. The value of a key that is not a list is replaced.
            pub fn add(&mut self, key: &str, text: &str) -> Result<(), Rejected> {
                match key {
                    $( stringify!($name) => Value::add(&mut self.$name, text).map_err(Rejected::Value), )+
                    _ => Err(Rejected::Key),
                }
            }

            /// Checks one field of an item that is to be added to a list.
            pub(crate) fn check(&self, key: &str, field: &str, text: &str) -> Result<(), Rejected> {
                match key {
                    $( stringify!($name) => {
                        Value::check(self.$name.as_ref(), field, text).map_err(Rejected::Value)
                    } )+
                    _ => Err(Rejected::Key),
                }
            }

            /// The texts of a key that is present.
            pub fn texts(&self, key: &str) -> Option<Vec<String>> {
                match key {
                    $( stringify!($name) => self.$name.as_ref().map(Value::texts), )+
                    _ => None,
                }
            }

            /// Takes the value of a key that is absent here from `other`.
            pub fn fill_from(&mut self, other: Self) {
                $( if self.$name.is_none() { self.$name = other.$name; } )+
            }

            fn remove(&mut self, key: &str) {
                match key {
                    $( stringify!($name) => self.$name = None, )+
                    _ => {}
                }
            }

            /// Makes a key that is a list present, with no item.
            pub(crate) fn set_empty(&mut self, key: &str) {
                match key {
                    $( stringify!($name) if <$type as Value>::IS_LIST => self.$name = <$type as Value>::empty(), )+
                    _ => {}
                }
            }
        }
    };
}

policy_spec! {
    /// Name or alternative name of the uplink; "none" exempts. It is looked up in the network namespace of the daemon, or of the
    /// command that attaches. While a policy's interface does not exist, its cgroups are closed.
    interface: Uplink = ("interface", "IF");
    /// Name of a group of uplinks, `[[uplink]]` in steer.toml, instead of an interface. The sockets get its best members. While all of
    /// them are missing, the policy's cgroups are closed.
    uplink: GroupName = ("uplink", "NAME");
    /// Path or glob of cgroups; the policy also applies to all cgroups below them. Within a component of a path, `*`, `?`,
    /// `[...]` and `{a,b}` match as in a shell; `**` matches any number of components. The cgroups need not exist. Use an empty
    /// list for a policy that only containers or `steer attach --policy` use.
    cgroups: Vec<Pattern> = ("cgroup", "PATTERN");
    /// Units of systemd, in whatever slice they are; globs are allowed. Without an ending, it is a service. The units need not run.
    units: Units = ("unit", "UNIT");
    /// Units of users' managers, such as "app-*firefox*.scope" for a program of a desktop. They are found for every user.
    user_units: UserUnits = ("user-unit", "UNIT");
    /// Users, by name or id: all processes of their sessions and managers, but not services of the system with `User=`.
    users: Users = ("user", "USER");
    /// A cgroup around them that the daemon holds closed. In it, only cgroups that a policy names can send, so a service that
    /// restarts is closed until the daemon has attached its new cgroup. Policies may have the same parent.
    parent: CgroupPath = ("parent", "CGROUP");
    /// How steer enforces the uplink against programs that try to use another interface.
    enforce: Enforce = ("enforce", "LEVEL");
    /// By which links packets may come in; "uplink" needs strict or observe. Packets that come in by another link are dropped.
    ingress: Ingress = ("ingress", "LINKS");
    /// What happens to sockets of other network namespaces. The index of the uplink is not valid there.
    other_netns: OtherNetns = ("other-netns", "WHAT");
    /// What happens to existing sockets that are bound elsewhere, and when the uplink returns with another index.
    existing: Existing = ("existing", "WHAT");
    /// Resolver behind the uplink, at most one of each family. It gets all queries on port 53, over UDP and TCP, whatever server
    /// a program asks. Its answers have the address of the server that the program asked. Queries of a family without a resolver
    /// go to the server that the program asks, by the uplink. "link" stands for the resolvers that systemd-resolved has for the uplink.
    dns: Resolvers = ("dns", "ADDRESS");
    /// What of this host and its networks the programs reach besides the uplink, and what reaches their listeners. Nothing by default: such
    /// calls are refused.
    local: Local = ("local", "WORD");
    /// Destinations that do not go by the uplink. As an option, and as text in files, an item is TO=BY. The longest prefix that has a
    /// destination decides. Queries on port 53 go to the resolver in any case if there is one.
    except: Exceptions = ("except", "TO=BY");
    /// Whether steer counts the bytes and packets of the policy's cgroups, by link, for status and metrics. Each packet costs more with it.
    account: Account = ("account", "BOOL");
    /// Users, by name or id, who may run commands by this policy without privilege, by `steer exec --policy`. Nobody by default.
    allow_users: Accounts = ("allow-user", "USER");
    /// Groups, by name or id, whose members may do so.
    allow_groups: Accounts = ("allow-group", "GROUP");
}

/// Whether a key is about the policy itself, so that a command that steers at once has no option for it.
pub fn is_of_policy_only(key: &str) -> bool {
    Named::is_key(key) || ["parent", "allow_users", "allow_groups"].contains(&key)
}

/// The word for an empty list in options of commands.
pub const NOTHING: &str = "none";

/// The keys that `[defaults]` may set.
pub const DEFAULTS: [&str; 4] = ["local", "dns", "enforce", "existing"];

/// Reads `parent`, here and in `[containers]`.
pub fn parent(text: &str) -> Result<CgroupPath, String> {
    let mut parent = None;
    Value::add(&mut parent, text)?;
    parent.ok_or_else(<CgroupPath as Value>::expected)
}

/// The key of this name.
pub fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl PolicySpec {
    /// The keys that are present, with their texts.
    pub fn entries(&self) -> impl Iterator<Item = (&'static Key, Vec<String>)> {
        KEYS.iter().filter_map(|key| Some((key, self.texts(key.name)?)))
    }

    /// The same as options of commands, with their values.
    pub fn options(&self) -> impl Iterator<Item = (&'static str, String)> {
        let value = |texts: Vec<String>| if texts.is_empty() { NOTHING.to_owned() } else { texts.join(",") };
        self.entries().map(move |(key, texts)| (key.option, value(texts)))
    }

    /// The same without the keys that say what applies without them, where `[defaults]` are these.
    #[must_use]
    pub fn brief(mut self, defaults: &Self) -> Self {
        let exempts = self.interface == Some(Uplink::Exempt);
        for key in KEYS {
            let Some(texts) = self.texts(key.name) else { continue };
            let is_usual =
                if key.is_list { texts.is_empty() } else { (key.default_word)().is_some_and(|it| texts == [it]) };
            if is_usual && (exempts || defaults.texts(key.name).is_none_or(|default| default == texts)) {
                self.remove(key.name);
            }
        }
        self
    }

    /// All patterns of cgroups, in the order in which they are written.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        let lists = [
            self.cgroups.as_ref(),
            self.units.as_ref().map(|units| &units.0),
            self.user_units.as_ref().map(|units| &units.0),
            self.users.as_ref().map(|users| &users.0),
        ];
        lists.into_iter().flatten().flatten()
    }

    /// Sets the lists of patterns; those without one become absent, except `cgroups`.
    #[must_use]
    pub fn with_patterns(mut self, patterns: &[Pattern]) -> Self {
        let of =
            |named: Named| patterns.iter().filter(move |pattern| pattern.named() == named).cloned().collect::<Vec<_>>();
        let some = |named: Named| Some(of(named)).filter(|list| !list.is_empty());
        self.cgroups = Some(of(Named::Cgroup));
        self.units = some(Named::Unit).map(Units);
        self.user_units = some(Named::UserUnit).map(UserUnits);
        self.users = some(Named::User).map(Users);
        self
    }

    /// Who may run commands by the policy.
    pub fn allow(&self) -> Allow {
        Allow {
            users: self.allow_users.clone().unwrap_or_default(),
            groups: self.allow_groups.clone().unwrap_or_default(),
        }
    }

    /// Sets who may run commands by the policy.
    #[must_use]
    pub fn with_allow(mut self, Allow { users, groups }: Allow) -> Self {
        let some = |accounts: Accounts| Some(accounts).filter(|accounts| !accounts.0.is_empty());
        (self.allow_users, self.allow_groups) = (some(users), some(groups));
        self
    }

    /// Whether a key that names cgroups is present.
    pub fn names_cgroups(&self) -> bool {
        Named::ALL.iter().any(|named| self.texts(named.key()).is_some())
    }

    /// The uplink that `interface` or `uplink` names. `None`: neither does.
    pub fn named_uplink(&self) -> Option<Uplink> {
        self.interface.clone().or_else(|| self.uplink.clone().map(Uplink::Group))
    }

    /// Takes keys that are absent from `[defaults]`. An exemption takes none: it binds no socket.
    pub fn fill_from_defaults(&mut self, defaults: &Self) {
        if matches!(self.named_uplink(), Some(Uplink::Interface(_) | Uplink::Group(_))) {
            self.fill_from(defaults.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KEYS, PolicySpec, Rejected, Target, Uplink};

    #[test]
    fn keys_are_read_and_written() {
        let mut spec = PolicySpec::default();
        for (key, text) in [("interface", "wg0"), ("cgroups", "/a"), ("cgroups", "/b/*"), ("dns", "10.0.0.1")] {
            assert_eq!(spec.add(key, text), Ok(()), "{key}");
        }
        assert_eq!(spec.texts("cgroups"), Some(vec!["/a".to_owned(), "/b/*".to_owned()]));
        let written: Vec<_> = spec.entries().map(|(key, _)| key.name).collect();
        assert_eq!(written, ["interface", "cgroups", "dns"]);
        assert_eq!(spec.add("color", "red"), Err(Rejected::Key));
        assert_eq!(
            spec.add("enforce", "lax"),
            Err(Rejected::Value("expected \"steer\", \"observe\" or \"strict\"".to_owned()))
        );
        assert!(
            KEYS.iter()
                .all(|key| key.description.ends_with('.') && !key.summary().is_empty() && !(key.expected)().is_empty())
        );
    }

    pub(super) fn spec(pairs: &[(&str, &str)]) -> PolicySpec {
        let mut spec = PolicySpec::default();
        for (key, text) in pairs {
            spec.add(key, text).expect("accepted");
        }
        spec
    }

    #[test]
    fn options_say_what_applies_without_them_only_if_asked() {
        let options = |spec: PolicySpec| {
            spec.options().map(|(option, value)| format!("{option}={value}")).collect::<Vec<_>>().join(" ")
        };
        let target =
            spec(&[("local", "host"), ("except", "10.0.1.0/24=main")]).target(Uplink::Interface("a".to_owned()));
        let full = target.expect("fits").spec();
        let want = "interface=a enforce=strict ingress=any other-netns=leave existing=keep dns=none local=host except=10.0.1.0/24=main";
        assert_eq!(options(full.clone()), want);
        let none = PolicySpec::default();
        assert_eq!(options(full.clone().brief(&none)), "interface=a local=host except=10.0.1.0/24=main");
        let defaults = spec(&[("local", "host"), ("dns", "10.0.0.1"), ("enforce", "steer"), ("existing", "keep")]);
        assert_eq!(
            options(full.brief(&defaults)),
            "interface=a enforce=strict dns=none local=host except=10.0.1.0/24=main"
        );
        let exempt = Target::exempt().spec();
        assert_eq!(options(exempt.brief(&defaults)), "interface=none");
    }
}
