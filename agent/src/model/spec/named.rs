//! What a policy names cgroups by: their paths, units of systemd, units of users, or users.
//!
//! **Invariant:** this is the only place that knows where systemd puts units and users. A unit of the system is found below slices only:
//! what a user makes below a delegated unit is never taken for it.

use std::collections::BTreeMap;

use super::{
    pattern::{Part, Pattern},
    value::Value,
};
use crate::model::unit_name;

/// What a pattern names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Named {
    /// Cgroups, by their paths.
    Cgroup,
    /// Units of the system.
    Unit,
    /// Units of users' managers.
    UserUnit,
    /// All processes of a user's sessions and manager.
    User,
}

impl Named {
    /// All.
    pub const ALL: [Self; 4] = [Self::Cgroup, Self::Unit, Self::UserUnit, Self::User];

    /// The key of a policy.
    pub fn key(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroups",
            Self::Unit => "units",
            Self::UserUnit => "user_units",
            Self::User => "users",
        }
    }

    /// Whether a key of a policy names cgroups.
    pub fn is_key(key: &str) -> bool {
        Self::ALL.iter().any(|named| named.key() == key)
    }
}

/// What the host knows about names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Ids of users.
    pub users: BTreeMap<String, u32>,
    /// Names of units for other names of the same units.
    pub units: BTreeMap<String, String>,
}

impl Pattern {
    /// A unit of the system, in whatever slice it is.
    pub fn unit(text: &str) -> Result<Self, String> {
        Self::of_unit(text, Named::Unit, Vec::new())
    }

    /// A unit of any user's manager.
    pub fn user_unit(text: &str) -> Result<Self, String> {
        let manager = ["user.slice", "user-*.slice", "user@*.service"];
        Self::of_unit(text, Named::UserUnit, manager.into_iter().map(Part::name).collect::<Result<_, _>>()?)
    }

    fn of_unit(text: &str, named: Named, mut parts: Vec<Part>) -> Result<Self, String> {
        let text = unit_name::complete(text)?;
        parts.extend([Part::Slices, Part::Unit(vec![Part::name(&text)?])]);
        Ok(Self { text, named, parts })
    }

    /// A user, by name or id. A name matches nothing before it is [resolved](Self::resolve).
    pub fn user(text: &str) -> Result<Self, String> {
        let is_wrong = |c: char| c.is_control() || c.is_whitespace() || "/:,*?[]{}".contains(c);
        if text.is_empty() || text.starts_with('-') || text.contains(is_wrong) {
            return Err("it is not the name of a user".to_owned());
        }
        let mut user = Self { text: text.to_owned(), named: Named::User, parts: Vec::new() };
        user.set_user(text.parse().ok());
        Ok(user)
    }

    fn set_user(&mut self, uid: Option<u32>) {
        let own = uid.map_or(Part::Nothing, |uid| Part::Literal(format!("user-{uid}.slice")));
        self.parts = vec![Part::Literal("user.slice".to_owned()), own];
    }

    /// Adds what the host knows about the name.
    pub fn resolve(&mut self, known: &Known) {
        match self.named {
            Named::User if self.text.parse::<u32>().is_err() => self.set_user(known.users.get(&self.text).copied()),
            Named::Unit => {
                if let (Some(name), Some(Part::Unit(names))) = (known.units.get(&self.text), self.parts.last_mut()) {
                    names.truncate(1);
                    names.push(Part::Literal(name.clone()));
                }
            }
            Named::Cgroup | Named::UserUnit | Named::User => {}
        }
    }
}

macro_rules! list_of_patterns {
    ($name:ident, $named:ident, $parse:path, $expected:literal) => {
        #[doc = concat!("A list for [`Named::", stringify!($named), "`].")]
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub Vec<Pattern>);

        impl Value for $name {
            const IS_LIST: bool = true;

            fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
                let pattern = $parse(text).map_err(|reason| format!("{reason}; {}", Self::expected()))?;
                value.get_or_insert_default().0.push(pattern);
                Ok(())
            }

            fn empty() -> Option<Self> {
                Some(Self::default())
            }

            fn texts(&self) -> Vec<String> {
                self.0.iter().map(|pattern| pattern.as_str().to_owned()).collect()
            }

            fn expected() -> String {
                $expected.to_owned()
            }
        }
    };
}

list_of_patterns!(
    Units,
    Unit,
    Pattern::unit,
    "expected a list of units, as [\"transmission.service\", \"backup@*.service\"]"
);
list_of_patterns!(
    UserUnits,
    UserUnit,
    Pattern::user_unit,
    "expected a list of users' units, as [\"app-*firefox*.scope\"]"
);
list_of_patterns!(Users, User, Pattern::user, "expected a list of users, as [\"alice\"]");

#[cfg(test)]
mod tests {
    use super::{Known, Pattern};
    use crate::model::config::parse;

    fn matches(pattern: &Pattern, path: &str) -> bool {
        pattern.matches(&path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>())
    }

    #[test]
    fn units_are_found_in_any_slice_and_nowhere_else() {
        for (name, path, want) in [
            ("x", "/system.slice/x.service", true),
            ("x", "/a.slice/a-b.slice/x.service", true),
            ("init.scope", "/init.scope", true),
            ("a-b.slice", "/a.slice/a-b.slice", true),
            ("cpu.x", "/system.slice/_cpu.x.service", true),
            ("x@*", "/system.slice/system-x.slice/x@1.service", true),
            ("my app", "/system.slice/my\\x20app.service", true),
            ("x", "/system.slice/y.service", false),
            ("x", "/system.slice/y.service/x.service", false),
            ("x", "/user.slice/user-1.slice/user@1.service/app.slice/x.service", false),
            ("x", "/docker/x.service", false),
            ("x", "/system.slice/x.service/inner", false),
        ] {
            let pattern = Pattern::unit(name).expect(name);
            assert_eq!(matches(&pattern, path), want, "{name} {path}");
        }
        let x = Pattern::unit("x").expect("a unit");
        for (path, want) in [
            ("/", true),
            ("/system.slice", true),
            ("/a.slice/a-b.slice", true),
            ("/init.scope", false),
            ("/user.slice/user-1.slice/user@1.service", false),
        ] {
            assert_eq!(
                x.may_match_below(&path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>()),
                want,
                "{path}"
            );
        }
        assert!(x.is_literal() && !Pattern::unit("x@*").expect("a glob").is_literal());
    }

    #[test]
    fn units_of_users() {
        let firefox = Pattern::user_unit("app-*firefox*.scope").expect("a glob");
        for (path, want) in [
            ("/user.slice/user-1.slice/user@1.service/app.slice/app-gnome-firefox-3.scope", true),
            ("/user.slice/user-1.slice/user@1.service/app.slice/app-x.slice/app-firefox.scope", true),
            ("/user.slice/user-1.slice/app-firefox.scope", false),
            ("/system.slice/app-firefox.scope", false),
        ] {
            assert_eq!(matches(&firefox, path), want, "{path}");
        }
        assert!(!Pattern::user_unit("x").expect("a unit").is_literal());
    }

    #[test]
    fn in_a_configuration() {
        let text = "[[policy]]
name = \"a\"
interface = \"wg0\"
units = [\"transmission\", \"backup@*.service\"]
user_units = [\"app-*firefox*.scope\"]
users = [\"alice\"]
[[policy]]
name = \"b\"
interface = \"wg0\"
units = [\"transmission.service\", \"x.timer\"]
users = [\"a b\"]
";
        let config = parse("f.toml", &text[..text.rfind("[[").expect("two")]).expect("valid");
        let texts: Vec<_> = config.policies[0].cgroups.iter().map(crate::model::spec::Pattern::as_str).collect();
        assert_eq!(texts, ["transmission.service", "backup@*.service", "app-*firefox*.scope", "alice"]);
        let problems = parse("f.toml", text).expect_err("mistakes").to_string();
        let want = [
            "f.toml:10:10: policy \"b\": units = \"transmission.service\": policy \"a\" claims the same units",
            "f.toml:10:34: policy \"b\": units = \"x.timer\": a timer has no processes; expected a list of units",
            "f.toml:11:10: policy \"b\": users = \"a b\": it is not the name of a user",
        ];
        assert_eq!(problems.lines().count(), want.len(), "{problems}");
        for (problem, want) in problems.lines().zip(want) {
            assert!(problem.starts_with(want), "{want}\nnot\n{problem}");
        }
    }

    #[test]
    fn names_are_resolved() {
        let known = Known {
            users: [("alice".to_owned(), 1000)].into(),
            units: [("sshd.service".to_owned(), "ssh.service".to_owned())].into(),
        };
        let resolved = |pattern: Result<Pattern, String>| {
            let mut pattern = pattern.expect("right");
            pattern.resolve(&known);
            pattern
        };
        assert!(matches(&resolved(Pattern::user("alice")), "/user.slice/user-1000.slice"));
        assert!(matches(&resolved(Pattern::user("7")), "/user.slice/user-7.slice"));
        assert!(!matches(&resolved(Pattern::user("bob")), "/user.slice/user-1000.slice"));
        assert!(resolved(Pattern::user("bob")).may_match_below(&["user.slice"]), "it may be added");
        for path in ["/system.slice/ssh.service", "/system.slice/sshd.service"] {
            assert!(matches(&resolved(Pattern::unit("sshd")), path), "{path}");
        }
        for text in ["", "a b", "a*", "-a", "a/b"] {
            assert!(Pattern::user(text).is_err(), "{text}");
        }
    }
}
