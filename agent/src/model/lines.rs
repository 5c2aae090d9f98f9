//! Text in lines that fit a terminal.
//!
//! **Invariant:** a line ends between words, and nothing is left out.

/// Text in lines of at most `width` characters, but for longer words; without a width it is as it was. Lines after the first begin with `indent` spaces.
pub fn wrapped(text: &str, width: Option<usize>, indent: usize) -> String {
    let Some(width) = width else { return text.to_owned() };
    let (mut lines, mut used, mut begins) = (String::new(), 0, true);
    for word in text.split(' ') {
        let length = word.chars().count();
        if !begins && used + 1 + length > width {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            (used, begins) = (indent, true);
        }
        if !begins {
            lines.push(' ');
            used += 1;
        }
        lines += word;
        used += length;
        begins = false;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn words_stay_whole() {
        let text = "warning: a-long-name has no effect  here";
        assert_eq!(wrapped(text, None, 2), text);
        assert_eq!(wrapped(text, Some(20), 2), "warning: a-long-name\n  has no effect \n  here");
        assert_eq!(wrapped("a-word-that-is-too-long", Some(8), 2), "a-word-that-is-too-long");
    }
}
