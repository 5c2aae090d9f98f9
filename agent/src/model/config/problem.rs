//! Mistakes in a configuration.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// One mistake and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's name, for messages.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key, such as `policy[0].interface`; empty for a syntax error.
    pub key: String,
    /// The name of the policy or of the group of uplinks; absent elsewhere, and where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The value as written; empty where a key is missing.
    pub value: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.key.is_empty() {
            formatter.write_str(&self.place())?;
            if !self.value.is_empty() {
                write!(formatter, " = {}", self.value)?;
            }
            formatter.write_str(": ")?;
        }
        formatter.write_str(&self.message)
    }
}

impl Problem {
    /// The key for people: the table by its name, and lists counted from 1.
    fn place(&self) -> String {
        let mut place = String::new();
        for (depth, part) in self.key.split('.').enumerate() {
            let (word, index) = part.strip_suffix(']').and_then(|part| part.split_once('[')).unzip();
            place += match (depth, place.ends_with(|last: char| last.is_ascii_digit() || last == '"')) {
                (0, _) => "",
                (_, true) => ": ",
                (_, false) => ".",
            };
            place += word.unwrap_or(part);
            match (depth, &self.name, index.and_then(|index| index.parse::<usize>().ok())) {
                (0, Some(name), Some(_)) => place.extend([" ", &format!("{name:?}")]),
                (_, _, Some(index)) => place.extend([" ", &(index + 1).to_string()]),
                (_, _, None) => {}
            }
        }
        place
    }
}

/// All mistakes of a configuration, in the order of its files.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct Problems {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            write!(formatter, "{problem}")?;
        }
        Ok(())
    }
}
