//! Quotes words of a shell command.

/// `word` as one word of a shell command.
pub fn quoted(word: &str) -> String {
    // Only NUL cannot be quoted, and no name or path contains it.
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), std::borrow::Cow::into_owned)
}
