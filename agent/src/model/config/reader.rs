//! Reads values of all tables of a file, and collects every mistake with its place.

use std::ops::Range;

use toml::{Spanned, de::DeValue};

use super::{Problem, Source};
use crate::model::spec::{Key, PolicySpec, Rejected};

/// Reads one file, and collects its mistakes.
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

    /// Adds a problem with a value, quoted as in the file.
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

    /// Reads the value of a key of a policy into `spec`. Returns the items of a list that were accepted.
    pub(super) fn key_of_policy<'v, 'i>(
        &mut self,
        path: &str,
        key: &Key,
        value: &'v Spanned<DeValue<'i>>,
        spec: &mut PolicySpec,
    ) -> Vec<&'v Spanned<DeValue<'i>>> {
        let items = match value.get_ref().as_array() {
            Some(list) if key.is_list => list.iter().collect(),
            None if !key.is_list => vec![value],
            _ => {
                self.wrong(path, value, (key.expected)());
                return Vec::new();
            }
        };
        let mut accepted = Vec::new();
        for item in items {
            let Some(text) = item.get_ref().as_str() else {
                self.wrong(path, item, (key.expected)());
                continue;
            };
            match spec.add(key.name, text) {
                Ok(()) => accepted.push(item),
                Err(Rejected::Value(problem)) => self.wrong(path, item, problem),
                Err(Rejected::Key) => self.wrong(path, item, "unknown key"),
            }
        }
        accepted
    }
}
