//! Cgroup patterns: a path, or a glob for paths.
//!
//! Each part between slashes is matched separately: `*` and `?` stay within a part, `[...]` and `{a,b}` work as in a
//! shell, and `**` alone matches any number of parts. `?` is one character. A backslash is a plain character, because systemd's
//! unit names use it.
//!
//! Units and users are patterns, too: see `named`.
//!
//! **Invariant:** a match takes at most the number of parts of the pattern times that of the path.

use std::fmt;

use regex::Regex;

use super::{glob, named::Named};
use crate::model::{cgroup_path, unit_name::is_glob};

/// A pattern, ready to match.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub(super) text: String,
    pub(super) named: Named,
    pub(super) parts: Vec<Part>,
}

#[derive(Clone, Debug)]
pub(super) enum Part {
    Literal(String),
    Glob(Regex),
    /// The cgroup of a unit, by its names. systemd puts an underscore before names that conflict with the kernel's files.
    Unit(Vec<Part>),
    /// Any number of parts.
    Any,
    /// Any number of slices. A pattern with this has no [`Part::Any`].
    Slices,
    /// No cgroup: what is named does not exist.
    Nothing,
}

impl Part {
    /// The name of a cgroup, or a glob for it.
    pub(super) fn name(text: &str) -> Result<Self, String> {
        Ok(if is_glob(text) { Self::Glob(glob::compile(text)?) } else { Self::Literal(text.to_owned()) })
    }

    fn matches(&self, part: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == part,
            Self::Glob(glob) => glob.is_match(part),
            Self::Unit(names) => {
                let unescaped = part.strip_prefix('_');
                names.iter().any(|name| name.matches(part) || unescaped.is_some_and(|part| name.matches(part)))
            }
            Self::Any => true,
            Self::Slices => part.strip_suffix(".slice").is_some(),
            Self::Nothing => false,
        }
    }

    fn is_literal(&self) -> bool {
        match self {
            Self::Literal(_) | Self::Nothing => true,
            Self::Unit(names) => names.iter().all(Self::is_literal),
            Self::Glob(_) | Self::Any | Self::Slices => false,
        }
    }
}

impl Pattern {
    /// Parses a pattern; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = cgroup_path::below_mount(text);
        let Some(rest) = text.strip_prefix('/') else {
            return Err("it does not start with /".to_owned());
        };
        let mut parts = Vec::new();
        for part in rest.split('/').filter(|part| !part.is_empty()) {
            parts.push(match part {
                "." | ".." => return Err(format!("{part} is not the name of a cgroup")),
                "**" => Part::Any,
                _ if part.contains("**") => return Err("** must stand alone between slashes".to_owned()),
                _ => Part::name(part)?,
            });
        }
        Ok(Self { text: text.to_owned(), named: Named::Cgroup, parts })
    }

    /// The text, as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the text names.
    pub fn named(&self) -> Named {
        self.named
    }

    /// Whether it names exactly one cgroup.
    pub fn is_literal(&self) -> bool {
        match self.named {
            Named::Cgroup | Named::User => self.parts.iter().all(Part::is_literal),
            // In whatever slice it is.
            Named::Unit => self.parts.last().is_some_and(Part::is_literal),
            // Each user may have it.
            Named::UserUnit => false,
        }
    }

    /// Whether it matches a cgroup, given by its parts.
    pub fn matches(&self, path: &[&str]) -> bool {
        matches(&self.parts, path)
    }

    /// Whether it could match a cgroup below this one.
    pub fn may_match_below(&self, path: &[&str]) -> bool {
        may_match_below(&self.parts, path)
    }
}

fn matches(mut pattern: &[Part], mut path: &[&str]) -> bool {
    // What follows the last `**`, and the path from where that was tried. An earlier `**` need not match more parts.
    let mut again: Option<(&Part, &[Part], &[&str])> = None;
    loop {
        (pattern, path) = match (pattern, path) {
            ([], []) => return true,
            ([many @ (Part::Any | Part::Slices), rest @ ..], _) => {
                again = Some((many, rest, path));
                (rest, path)
            }
            ([first, rest @ ..], [part, below @ ..]) if first.matches(part) => (rest, below),
            _ => {
                let Some((many, rest, [passed, below @ ..])) = again else { return false };
                if !many.matches(passed) {
                    return false;
                }
                again = Some((many, rest, below));
                (rest, below)
            }
        };
    }
}

fn may_match_below(pattern: &[Part], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, _) => false,
        // A unit follows, which is no slice but the last.
        (Some((Part::Slices, _)), _) => path.iter().all(|part| Part::Slices.matches(part)),
        (Some((Part::Any, _)), _) | (Some(_), None) => true,
        (Some((first, rest)), Some((part, below))) => first.matches(part) && may_match_below(rest, below),
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        (self.named, &self.text) == (other.named, &other.text)
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    struct Case {
        pattern: &'static str,
        path: &'static str,
        matches: bool,
        below: bool,
    }

    #[test]
    fn matching() {
        let case = |pattern, path, matches, below| Case { pattern, path, matches, below };
        let cases = [
            case("/", "/", true, false),
            case("/a", "/a", true, false),
            case("/a/", "/a", true, false),
            case("/a", "/", false, true),
            case("/a", "/b", false, false),
            case("/a", "/a/b", false, false),
            case("/a/*", "/a/b", true, false),
            case("/a/*", "/a/b/c", false, false),
            case("/a/*", "/a", false, true),
            case("/**", "/", true, true),
            case("/**", "/a/b", true, true),
            case("/a/**/c", "/a/c", true, true),
            case("/a/**/c", "/a/b/b/c", true, true),
            case("/a/**/c", "/b/c", false, false),
            case("/user.slice/**/app-*firefox*.scope", "/user.slice/u.slice/app-firefox-1.scope", true, true),
            case("/user.slice/**/app-*firefox*.scope", "/user.slice/app-chrome.scope", false, true),
            case(r"/s/app-org\x2dfoo-*.scope", r"/s/app-org\x2dfoo-1.scope", true, false),
            case("/s/{a,b}.service", "/s/b.service", true, false),
            case("/s/[ab]", "/s/c", false, false),
            case("/s/d?k", "/s/dök", true, false),
            case("/**/b/**/c", "/b/a/b/c/c", true, true),
            case("/**/b/**/c/d", "/b/c/c", false, true),
            case("/**/**", "/a", true, true),
            case("/sys/fs/cgroup/a/*", "/a/b", true, false),
            case("/sys/fs/cgroup/unified/a", "/a", true, false),
            case("/sys/fs/cgroups/a", "/a", false, false),
        ];
        for Case { pattern, path, matches, below } in cases {
            let parsed = Pattern::parse(pattern).expect("a pattern");
            let parts = path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>();
            assert_eq!(parsed.matches(&parts), matches, "{pattern} matches {path}");
            assert_eq!(parsed.may_match_below(&parts), below, "{pattern} may match below {path}");
        }
    }

    #[test]
    fn many_wildcards_take_little_time() {
        let pattern = Pattern::parse(&("/**/a".repeat(200) + "/b")).expect("a pattern");
        assert!(!pattern.matches(&["a"; 400]));
        let pattern = Pattern::parse(&format!("/{}b", "*a".repeat(100))).expect("a pattern");
        assert!(!pattern.matches(&["a".repeat(255).as_str()]));
    }

    #[test]
    fn mistakes() {
        for pattern in ["", "a", "/a**", "/[", "/{a", "/a/../b"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }
}
