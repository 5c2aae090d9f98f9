//! Markdown as roff: headings, paragraphs, lists, tables of two columns, blocks of code, code, bold and links.
//!
//! **Invariant:** only what docs/configuration.md and docs/uplinks.md use. Other Markdown becomes plain text.

/// What the line before belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing: text begins a paragraph.
    Nowhere,
    /// A paragraph or an item, which goes on.
    Text,
    /// A table, after its header.
    Table,
    /// A block of code.
    Code,
    /// A paragraph for developers.
    Skipped,
}

/// Converts a document. `sections`: the level of headings that are sections of the manual page, 0 for `#`. Headings above are left out.
pub(crate) fn roff(document: &str, sections: usize) -> String {
    let mut page = String::new();
    let mut place = Place::Nowhere;
    for line in document.lines() {
        place = add(&mut page, line, place, sections);
    }
    page
}

fn add(page: &mut String, line: &str, place: Place, sections: usize) -> Place {
    let fence = line.starts_with("```");
    match place {
        Place::Code if fence => push(page, ".EE"),
        Place::Code => {
            push(page, &code(line));
            return Place::Code;
        }
        _ if fence => {
            push(page, ".PP\n.EX");
            return Place::Code;
        }
        _ if line.is_empty() => {}
        Place::Skipped => return Place::Skipped,
        Place::Text | Place::Table | Place::Nowhere => return text(page, line, place, sections),
    }
    Place::Nowhere
}

fn text(page: &mut String, line: &str, place: Place, sections: usize) -> Place {
    if let Some(heading) = line.strip_prefix('#') {
        let level = heading.len() - heading.trim_start_matches('#').len();
        let title = inline(heading.trim_start_matches('#').trim());
        match level.checked_sub(sections) {
            None => {}
            Some(0) => push(page, &format!(".SH {}", title.to_uppercase())),
            Some(_) => push(page, &format!(".SS {title}")),
        }
        return Place::Nowhere;
    }
    if let Some((term, meaning)) = row(line) {
        // The first row is the header.
        push(
            page,
            &if place == Place::Table {
                format!(".TP\n{}\n{}", inline(term), inline(meaning))
            } else {
                format!(".PP\n{}:", inline(&capitalized(term)))
            },
        );
        return Place::Table;
    }
    if place == Place::Table {
        // The line below the header.
        return Place::Table;
    }
    if line.starts_with("Tests: ") {
        return Place::Skipped;
    }
    if let Some(item) = line.strip_prefix("- ") {
        push(page, &format!(".IP \\(bu 2\n{}", inline(item)));
    } else {
        page.push_str(if place == Place::Nowhere { ".PP\n" } else { "" });
        push(page, &inline(line.trim_start()));
    }
    Place::Text
}

/// The two cells of a row.
fn row(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn push(page: &mut String, line: &str) {
    page.push_str(line);
    page.push('\n');
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}

/// A line of code. A line must not begin with a full stop.
fn code(line: &str) -> String {
    let line = escaped(line);
    if line.starts_with('.') { format!("\\&{line}") } else { line }
}

/// A line of text.
fn inline(text: &str) -> String {
    let mut line = String::new();
    for (number, part) in text.split('`').enumerate() {
        if number % 2 == 1 {
            line.push_str(&["\\fB", &escaped(part).replace("\\e|", "|"), "\\fR"].concat());
        } else {
            line.push_str(&bold(&without_links(&escaped(part))));
        }
    }
    if line.starts_with('.') { format!("\\&{line}") } else { line }
}

fn bold(text: &str) -> String {
    let mut parts = text.split("**");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.enumerate().fold(first, |line, (number, part)| line + if number % 2 == 0 { "\\fB" } else { "\\fR" } + part)
}

/// Leaves the texts of links.
fn without_links(text: &str) -> String {
    let mut line = String::new();
    let mut rest = text;
    while let Some((before, (label, after))) =
        rest.split_once('[').and_then(|(before, after)| Some((before, after.split_once("](")?)))
    {
        line.push_str(before);
        line.push_str(label);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    line + rest
}
