//! A glob for the name of one cgroup, as a regular expression of characters. Its time is linear in the name.

use std::str::Chars;

use regex::Regex;

/// The name of a cgroup has 255 bytes at most.
const MOST_BYTES: usize = 4096;

/// Compiles a glob; the error says what is wrong with it.
pub(in crate::model) fn compile(glob: &str) -> Result<Regex, String> {
    if glob.len() > MOST_BYTES {
        return Err(format!("the glob of a name has {MOST_BYTES} bytes at most"));
    }
    let mut expression = Expression { rest: glob.chars(), text: "^(?s:".to_owned(), alternates: 0 };
    expression.translate()?;
    expression.text.push_str(")$");
    Regex::new(&expression.text)
        .map_err(|_too_complex| "it is too long, or its braces are nested too deeply".to_owned())
}

struct Expression<'a> {
    rest: Chars<'a>,
    text: String,
    /// How many `{` are open.
    alternates: usize,
}

impl Expression<'_> {
    fn translate(&mut self) -> Result<(), String> {
        while let Some(c) = self.rest.next() {
            match c {
                '*' => self.text.push_str(".*"),
                '?' => self.text.push('.'),
                '[' => self.class()?,
                '{' => {
                    self.alternates += 1;
                    self.text.push_str("(?:");
                }
                ',' if self.alternates > 0 => self.text.push('|'),
                '}' if self.alternates == 0 => return Err("} without {".to_owned()),
                '}' => {
                    self.alternates -= 1;
                    self.text.push(')');
                }
                literal => self.literal(literal),
            }
        }
        if self.alternates > 0 { Err("{ without }".to_owned()) } else { Ok(()) }
    }

    /// `[ab]`, `[a-b]` or `[!a]`. A bracket or a hyphen that comes first is a plain character.
    fn class(&mut self) -> Result<(), String> {
        self.text.push('[');
        let negation = self.rest.as_str().strip_prefix(['!', '^']);
        if let Some(rest) = negation {
            self.text.push('^');
            self.rest = rest.chars();
        }
        let mut is_first = true;
        loop {
            let first = match self.rest.next() {
                None => return Err("[ without ]".to_owned()),
                Some(']') if !is_first => break,
                Some(first) => first,
            };
            is_first = false;
            self.literal(first);
            let mut ahead = self.rest.clone();
            if let (Some('-'), Some(last)) = (ahead.next(), ahead.next())
                && last != ']'
            {
                if last < first {
                    return Err(format!("[{first}-{last}] has no character"));
                }
                self.rest = ahead;
                self.text.push('-');
                self.literal(last);
            }
        }
        self.text.push(']');
        Ok(())
    }

    fn literal(&mut self, c: char) {
        if c.is_ascii_punctuation() {
            self.text.push('\\');
        }
        self.text.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_BYTES, compile};

    #[test]
    fn matches_characters() {
        let cases = [
            ("d?k.scope", "dök.scope", true),
            ("d?k.scope", "dok.scope", true),
            ("d?k.scope", "dooek.scope", false),
            ("d?k.scope", "d\nk.scope", true),
            ("d[öä]k", "däk", true),
            ("d[ö]k", "d\u{b6}k", false),
            ("d[!o]k", "dök", true),
            ("d[^ö]k", "dök", false),
            ("[α-ω]*", "λx", true),
            ("[α-ω]", "a", false),
            ("[]a-]", "]", true),
            ("[]a-]", "-", true),
            ("[a&&b]", "&", true),
            ("{a,{b,ö}?}.c", "ö1.c", true),
            ("{a,{b,ö}?}.c", "aXc", false),
            ("a.b+(c)|d,*", "a.b+(c)|d,", true),
            (r"a\x2d*", r"a\x2db", true),
        ];
        for (glob, name, want) in cases {
            assert_eq!(compile(glob).expect(glob).is_match(name), want, "{glob} {name}");
        }
    }

    #[test]
    fn mistakes() {
        for glob in ["[", "[]", "[!", "[b-a]", "{a", "a}", "{a}}"] {
            assert!(compile(glob).is_err(), "{glob}");
        }
        for glob in ["a*".repeat(MOST_BYTES), "{".repeat(1000) + &"}".repeat(1000)] {
            assert!(compile(&glob).is_err(), "{glob}");
        }
        assert!(compile(&"[!a]{b,?}".repeat(MOST_BYTES / 9)).is_ok());
    }
}
