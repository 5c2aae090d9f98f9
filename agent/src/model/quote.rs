//! Foreign text, as it is shown, and words of a shell command.
//!
//! **Invariant:** the text of this module's functions is printable and on one line, whatever it is made from.

use std::{borrow::Cow, ffi::OsStr, fmt};

/// Text that others chose, such as the name of a cgroup, an interface or a process, for terminals and logs. Control characters,
/// bidirectional overrides and invisible characters are escaped as in Rust, such as `\u{1b}`. JSON has the text itself.
pub fn shown<T: AsRef<OsStr> + ?Sized>(text: &T) -> Shown<'_> {
    Shown(text.as_ref().to_string_lossy())
}

/// See [`shown`].
#[derive(Clone, Debug)]
pub struct Shown<'a>(Cow<'a, str>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `escape_debug` also escapes these. They are printable, and names of systemd units contain backslashes.
        let printable = ['\\', '\'', '"'];
        self.0.split_inclusive(printable).try_for_each(|part| {
            let plain = part.trim_end_matches(printable);
            write!(formatter, "{}{}", plain.escape_debug(), &part[plain.len()..])
        })
    }
}

/// `word` as one word of a shell command.
pub fn quoted(word: &str) -> String {
    if shown(word).to_string() != word {
        return escaped(word);
    }
    // Only NUL cannot be quoted, and no name or path contains it.
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), Cow::into_owned)
}

/// A word that is not printable, in the form `$'...'` of POSIX.1-2024.
fn escaped(word: &str) -> String {
    let escape = |byte: u8| match byte {
        b'\\' | b'\'' => format!("\\{}", char::from(byte)),
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("\\{byte:03o}"),
    };
    format!("$'{}'", word.bytes().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::{quoted, shown};

    #[test]
    fn foreign_text_is_printable() {
        let cases = [
            (r#"a\x2db 'c' "d" dök"#, r#"a\x2db 'c' "d" dök"#),
            ("o\u{308}", "o\u{308}"),
            ("\x1b[2J\r\n\t\u{7f}", r"\u{1b}[2J\r\n\t\u{7f}"),
            ("\\\n\"\u{9b}", "\\\\n\"\\u{9b}"),
            ("a\u{202e}b\u{2066}\u{200b}\u{2028}\u{feff}", r"a\u{202e}b\u{2066}\u{200b}\u{2028}\u{feff}"),
        ];
        for (text, want) in cases {
            assert_eq!(shown(text).to_string(), want, "{text:?}");
        }
    }

    #[test]
    fn words_of_a_shell() {
        let cases = [
            ("a.scope", "a.scope"),
            ("a b", "'a b'"),
            ("a'\\\x1bö", r"$'a\'\\\033\303\266'"),
            ("\u{202e}1", r"$'\342\200\2561'"),
        ];
        for (word, want) in cases {
            assert_eq!(quoted(word), want);
        }
    }
}
