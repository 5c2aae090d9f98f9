//! Reads values of all tables of a file, and collects every mistake with its place.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeArray, DeString, DeTable, DeValue},
};

use super::{Problem, Source};
use crate::model::{
    similar::nearest,
    spec::{Key, LINK, PolicySpec},
};

/// Reads one file, and collects its mistakes.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// Parses the file. Mistakes of the syntax are problems.
    pub(super) fn table(&mut self) -> Spanned<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(&self.source.text);
        for error in errors {
            self.problem(error.span().unwrap_or(0..0), "", "", error.message().trim_end().to_owned());
        }
        table
    }

    /// The mistakes, in the order of the file.
    pub(super) fn sorted(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self.problems
    }
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
            name: None,
            value: value.to_owned(),
            message: message.into(),
        });
    }

    /// Adds the names of policies or groups to the problems in their tables.
    pub(super) fn name_problems(&mut self, kind: &str, tables: &DeArray<'_>) {
        for problem in &mut self.problems {
            let index = problem.key.strip_prefix(kind).and_then(|rest| rest.strip_prefix('[')?.split(']').next());
            let table = index.and_then(|index| tables.get(index.parse::<usize>().ok()?));
            if let Some(table) = table {
                problem.name = written_name(table).map(str::to_owned);
            }
        }
    }

    pub(super) fn unknown_key(&mut self, key: &Spanned<DeString<'_>>, path: &str, known: &[&str]) {
        self.problem(key.span(), path, "", unknown(key.get_ref(), known, &known.join(", ")));
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
            Some(list) if key.is_list => {
                // Also without an item: that wins over `[defaults]`.
                spec.set_empty(key.name);
                list.iter().collect()
            }
            None if !key.is_list || key.name == "dns" && value.get_ref().as_str() == Some(LINK) => vec![value],
            _ => {
                self.wrong(path, value, (key.expected)());
                return Vec::new();
            }
        };
        let mut accepted = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let path = if key.fields.is_empty() { path.to_owned() } else { format!("{path}[{index}]") };
            let text = match (item.get_ref().as_str(), item.get_ref().as_table()) {
                _ if key.is_bool() => {
                    let Some(value) = item.get_ref().as_bool() else {
                        self.wrong(&path, item, (key.expected)());
                        continue;
                    };
                    value.to_string()
                }
                (Some(text), _) => text.to_owned(),
                (None, Some(table)) if !key.fields.is_empty() => {
                    let Some(text) = self.fields(&path, key, item, table, spec) else { continue };
                    text
                }
                _ => {
                    self.wrong(&path, item, (key.expected)());
                    continue;
                }
            };
            match spec.add(key.name, &text) {
                Ok(()) => accepted.push(item),
                Err(rejected) => self.wrong(&path, item, rejected.to_string()),
            }
        }
        accepted
    }

    /// Reads an item that is a table. Returns the same as text, unless there is a mistake.
    fn fields(
        &mut self,
        path: &str,
        key: &Key,
        item: &Spanned<DeValue<'_>>,
        table: &DeTable<'_>,
        spec: &PolicySpec,
    ) -> Option<String> {
        let before = self.problems.len();
        let fields: Vec<_> = key.fields.iter().map(|(field, _)| *field).collect();
        let known = || fields.join(" and ");
        for (name, value) in table {
            let path = format!("{path}.{}", name.get_ref());
            let Some((field, _)) = key.fields.iter().find(|(field, _)| field == name.get_ref()) else {
                self.problem(name.span(), &path, "", unknown(name.get_ref(), &fields, &known()));
                continue;
            };
            match value.get_ref().as_str().map(|text| spec.check(key.name, field, text)) {
                Some(Ok(())) => {}
                Some(Err(rejected)) => self.wrong(&path, value, rejected.to_string()),
                None => self.wrong(&path, value, "expected a string"),
            }
        }
        let mut texts = Vec::new();
        for (field, _) in key.fields {
            match table.get(*field).map(|value| value.get_ref().as_str().unwrap_or_default()) {
                Some(text) => texts.push(text),
                None => {
                    self.problem(item.span(), &format!("{path}.{field}"), "", format!("missing; expected {}", known()));
                }
            }
        }
        (self.problems.len() == before).then(|| texts.join("="))
    }
}

/// The name of a policy or a group as written, whatever else is wrong.
pub(super) fn written_name<'t>(table: &'t Spanned<DeValue<'_>>) -> Option<&'t str> {
    table.get_ref().as_table()?.get("name")?.get_ref().as_str()
}

/// The message about a key that is not one of those that are known. `expected` names these.
pub(super) fn unknown(key: &str, known: &[&str], expected: &str) -> String {
    let near = nearest(key, known.iter().map(|known| (*known).to_owned()));
    let perhaps = near.map_or_else(String::new, |near| format!(", perhaps {near}"));
    format!("unknown key{perhaps}; expected {expected}")
}

#[cfg(test)]
mod tests {
    use crate::model::config::parse;

    #[test]
    fn similar_names() {
        let text = "[[uplink]]\nname = \"internet\"\nmembers = [{ interface = \"eth0\", teir = 2 }]\n\
                    [[policy]]\nname = \"a\"\nuplink = \"internett\"\nunit = [\"x\"]\nlocl = []\n[default]\n\
                    [[policy]]\nname = \"b\"\nuplink = \"internet\"\ncgroups = [\"/b\"]\n";
        let problems = parse("f.toml", text).expect_err("mistakes").to_string();
        let want = [
            "f.toml:3:34: uplink \"internet\": members 1: teir: unknown key, perhaps tier; expected interface,",
            "f.toml:4:1: policy \"a\": units: missing",
            "f.toml:4:1: policy \"a\": uplink: there is no [[uplink]] \"internett\"; did you mean \"internet\"?",
            "f.toml:7:1: policy \"a\": unit = [\"x\"]: unknown key, perhaps units; expected name,",
            "f.toml:8:1: policy \"a\": locl = []: unknown key, perhaps local;",
            "f.toml:9:2: default: unknown key, perhaps defaults; expected [[policy]],",
        ];
        for (problem, want) in problems.lines().zip(want) {
            assert!(problem.starts_with(want), "{want}\nnot\n{problem}");
        }
        assert_eq!(problems.lines().count(), want.len(), "{problems}");
    }

    #[test]
    fn exceptions_are_tables_or_text() {
        let text = |except: &str| {
            format!("[[policy]]\nname = \"a\"\ninterface = \"wg0\"\ncgroups = [\"/a\"]\nexcept = [\n{except}\n]\n")
        };
        let two = "{ to = \"192.168.3.0/24\", by = \"eth0\" },\n\"10.0.1.0/24=refuse\"";
        let config = parse("f.toml", &text(two)).expect("valid");
        let except = &config.policies[0].target.reach.except;
        assert_eq!(
            except.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.1.0/24=refuse", "192.168.3.0/24=eth0"]
        );
        let mistakes = "{ to = \"10.0.0.7/24\", by = \"none\" },\n\"10.0.0.0/8\",\n{ to = \"10.0.1.0/24\", via = \"a\" },\n\
                        { to = 1, by = \"a\" },\n7,\n{ to = \"10.0.1.0/24\", by = \"main\" },\n{ to = \"10.0.1.0/24\", by = \"a\" }";
        let problems = parse("f.toml", &text(mistakes)).expect_err("mistakes").to_string();
        let want = [
            "f.toml:6:8: policy \"a\": except 1: to = \"10.0.0.7/24\": ",
            "f.toml:6:28: policy \"a\": except 1: by = \"none\": expected the name of an interface, \"main\" or \"refuse\"; \"main\" is as",
            "f.toml:7:1: policy \"a\": except 2 = \"10.0.0.0/8\": expected TO=BY",
            "f.toml:8:1: policy \"a\": except 3: by: missing; expected to and by",
            "f.toml:8:23: policy \"a\": except 3: via: unknown key; expected to and by",
            "f.toml:9:8: policy \"a\": except 4: to = 1: expected a string",
            "f.toml:10:1: policy \"a\": except 5 = 7: expected a list of exceptions, as [{ to =",
            "f.toml:12:8: policy \"a\": except 7: to = \"10.0.1.0/24\": 10.0.1.0/24 has an exception already",
        ];
        for (problem, want) in problems.lines().zip(want) {
            assert!(problem.starts_with(want), "{want}\nnot\n{problem}");
        }
        assert_eq!(problems.lines().count(), want.len(), "{problems}");
    }
}
