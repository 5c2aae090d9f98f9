//! What all tables of a file are read with: values of the kinds they have, and every mistake with its place.

use std::ops::Range;

use steer_common::record::INTERFACE_BYTES;
use toml::{Spanned, de::DeValue};

use super::{Pattern, Problem, Resolvers, Source};

/// Reads one file, and notes what is wrong in it.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn problem(&mut self, span: Range<usize>, key: &str, value: &str, message: impl Into<String>) {
        let text = &self.source.text;
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.problems.push(Problem {
            file: self.source.file.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            key: key.to_owned(),
            value: value.to_owned(),
            message: message.into(),
        });
    }

    /// A problem with a value, which is quoted as it stands in the file.
    pub(super) fn wrong(&mut self, key: &str, value: &Spanned<DeValue<'_>>, message: impl Into<String>) {
        let written = self.source.text.get(value.span()).unwrap_or_default().to_owned();
        self.problem(value.span(), key, written.lines().next().unwrap_or_default(), message);
    }

    pub(super) fn short_text(&mut self, key: &str, value: &Spanned<DeValue<'_>>, bytes: usize) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) if !text.is_empty() && text.len() < bytes && !text.contains(char::is_control) => {
                Some(text.to_owned())
            }
            _ => {
                self.wrong(
                    key,
                    value,
                    format!("expected a string of 1 to {} bytes without control characters", bytes - 1),
                );
                None
            }
        }
    }

    pub(super) fn interface(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Interface> {
        let name = self.short_text(key, value, INTERFACE_BYTES)?;
        if name == "none" {
            return Some(Interface::None);
        }
        // As dev_valid_name() in the kernel.
        if name == "." || name == ".." || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            self.wrong(key, value, "expected the name of a network interface, without space, / or :");
            return None;
        }
        Some(Interface::Named(name))
    }

    pub(super) fn dns(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Resolvers {
        let expected = "expected a list of addresses, as [\"10.64.0.1\", \"2001:db8::53\"]";
        let mut resolvers = Resolvers::default();
        let Some(list) = value.get_ref().as_array() else {
            self.wrong(key, value, expected);
            return resolvers;
        };
        for item in list {
            match item.get_ref().as_str().map(|text| resolvers.add(text)) {
                Some(Ok(())) => {}
                Some(Err(problem)) => self.wrong(key, item, problem),
                None => self.wrong(key, item, expected),
            }
        }
        resolvers
    }

    pub(super) fn cgroups<'v, 'i>(
        &mut self,
        key: &str,
        value: &'v Spanned<DeValue<'i>>,
    ) -> Vec<(Pattern, &'v Spanned<DeValue<'i>>)> {
        let expected = "expected a list of cgroup2 paths or globs, as [\"/system.slice/x.service\"]";
        let Some(list) = value.get_ref().as_array() else {
            self.wrong(key, value, expected);
            return Vec::new();
        };
        let mut patterns = Vec::new();
        for item in list {
            match item.get_ref().as_str().map(Pattern::parse) {
                Some(Ok(pattern)) if pattern.matches(&[]) => {
                    self.wrong(
                        key,
                        item,
                        "it matches the root cgroup, that is, the whole machine; expected a part of it",
                    );
                }
                Some(Ok(pattern)) => patterns.push((pattern, item)),
                Some(Err(reason)) => {
                    self.wrong(
                        key,
                        item,
                        format!("{reason}; expected a cgroup2 path or glob like \"/user.slice/**/app-*.scope\""),
                    );
                }
                None => self.wrong(key, item, expected),
            }
        }
        patterns
    }
}

/// `interface`, when there is no mistake in it.
pub(super) enum Interface {
    None,
    Named(String),
}

impl Interface {
    pub(super) fn name(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Named(name) => Some(name),
        }
    }
}
