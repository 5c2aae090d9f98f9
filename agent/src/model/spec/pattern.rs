//! Cgroup patterns: a path, or a glob for paths.
//!
//! Each part between slashes is matched separately: `*` and `?` stay within a part, `[...]` and `{a,b}` work as in a
//! shell, and `**` alone matches any number of parts. `?` is one character. A backslash is a plain character, because systemd's
//! unit names use it.
//!
//! **Invariant:** a match takes at most the number of parts of the pattern times that of the path.

use std::fmt;

use regex::Regex;

use super::glob;

/// A pattern, ready to match.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Literal(String),
    Glob(Regex),
    Any,
}

impl Part {
    fn matches(&self, part: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == part,
            Self::Glob(glob) => glob.is_match(part),
            Self::Any => true,
        }
    }
}

impl Pattern {
    /// Parses a pattern; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("it does not start with /".to_owned());
        };
        let mut parts = Vec::new();
        for part in rest.split('/').filter(|part| !part.is_empty()) {
            parts.push(match part {
                "." | ".." => return Err(format!("{part} is not the name of a cgroup")),
                "**" => Part::Any,
                _ if part.contains("**") => return Err("** must stand alone between slashes".to_owned()),
                _ if part.contains(['*', '?', '[', ']', '{', '}']) => Part::Glob(glob::compile(part)?),
                _ => Part::Literal(part.to_owned()),
            });
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The text, as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it names exactly one cgroup.
    pub fn is_literal(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Literal(_)))
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
    let mut again: Option<(&[Part], &[&str])> = None;
    loop {
        (pattern, path) = match (pattern, path) {
            ([], []) => return true,
            ([Part::Any, rest @ ..], _) => {
                again = Some((rest, path));
                (rest, path)
            }
            ([first, rest @ ..], [part, below @ ..]) if first.matches(part) => (rest, below),
            _ => {
                let Some((rest, [_, below @ ..])) = again else { return false };
                again = Some((rest, below));
                (rest, below)
            }
        };
    }
}

fn may_match_below(pattern: &[Part], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, _) => false,
        (Some((Part::Any, _)), _) | (Some(_), None) => true,
        (Some((first, rest)), Some((part, below))) => first.matches(part) && may_match_below(rest, below),
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
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
