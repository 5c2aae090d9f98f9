//! Reads each kind of value from text, and writes it as text.

use steer_common::record::INTERFACE_BYTES;

use super::{Exceptions, Local, Near, Pattern, Resolvers, Uplink, Word, except};
use crate::model::{cgroup_path::CgroupPath, uplink::group::GroupName};

/// The value of a key. All values are text, or lists of text; an item of a list may also be a table of texts.
pub(super) trait Value: Sized {
    /// Whether it is a list.
    const IS_LIST: bool = false;

    /// The fields of an item that is a table, with their meanings. The text of an item is that of its fields, in this order, with `=` in
    /// between; only the last one may have a `=` of its own. Empty: an item is text.
    const FIELDS: &'static [(&'static str, &'static str)] = &[];

    /// Checks the text of one field of an item that is to be added.
    fn check(_value: Option<&Self>, _field: &str, _text: &str) -> Result<(), String> {
        Ok(())
    }

    /// Adds one text. A value that is not a list is replaced.
    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String>;

    /// The list without any item.
    fn empty() -> Option<Self> {
        None
    }

    /// The texts that [`Self::add`] reads.
    fn texts(&self) -> Vec<String>;

    /// What is expected, as part of a message.
    fn expected() -> String;

    /// The accepted words, with their meanings. Empty: other text is expected.
    fn words() -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }

    /// The default word.
    fn default_word() -> Option<&'static str> {
        None
    }
}

impl<W: Word + Default> Value for W {
    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        *value = Some(W::read(text)?);
        Ok(())
    }

    fn texts(&self) -> Vec<String> {
        vec![self.text().to_owned()]
    }

    fn expected() -> String {
        <W as Word>::expected()
    }

    fn words() -> Vec<(&'static str, &'static str)> {
        W::all()
    }

    fn default_word() -> Option<&'static str> {
        Some(W::default().text())
    }
}

impl Value for Uplink {
    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        *value = Some(Self::parse(text)?);
        Ok(())
    }

    fn texts(&self) -> Vec<String> {
        vec![self.to_string()]
    }

    fn expected() -> String {
        format!("expected a string of 1 to {} bytes without control characters", INTERFACE_BYTES - 1)
    }
}

impl Value for GroupName {
    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        *value = Some(Self::parse(text)?);
        Ok(())
    }

    fn texts(&self) -> Vec<String> {
        vec![self.to_string()]
    }

    fn expected() -> String {
        Self::expected()
    }
}

impl Value for Vec<Pattern> {
    const IS_LIST: bool = true;

    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        let pattern = Pattern::parse(text).map_err(|reason| {
            format!("{reason}; expected a cgroup2 path or glob like \"/user.slice/**/app-*.scope\"")
        })?;
        if pattern.matches(&[]) {
            return Err("it matches the root cgroup, that is, the whole machine; expected a part of it".to_owned());
        }
        value.get_or_insert_default().push(pattern);
        Ok(())
    }

    fn empty() -> Option<Self> {
        Some(Self::default())
    }

    fn texts(&self) -> Vec<String> {
        self.iter().map(|pattern| pattern.as_str().to_owned()).collect()
    }

    fn expected() -> String {
        "expected a list of cgroup2 paths or globs, as [\"/system.slice/x.service\"]".to_owned()
    }
}

impl Value for CgroupPath {
    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        let pattern = Pattern::parse(text).map_err(|reason| format!("{reason}; {}", Self::expected()))?;
        if pattern.matches(&[]) {
            return Err("it is the root cgroup, that is, the whole machine; expected a part of it".to_owned());
        }
        let path = pattern.as_str().parse().ok().filter(|_| pattern.is_literal());
        *value = Some(path.ok_or_else(Self::expected)?);
        Ok(())
    }

    fn texts(&self) -> Vec<String> {
        vec![self.to_string()]
    }

    fn expected() -> String {
        "expected the path of one cgroup, as \"/kubepods.slice\"".to_owned()
    }
}

impl Value for Resolvers {
    const IS_LIST: bool = true;

    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        value.get_or_insert_default().add(text)
    }

    fn empty() -> Option<Self> {
        Some(Self::default())
    }

    fn texts(&self) -> Vec<String> {
        Self::texts(self)
    }

    fn expected() -> String {
        "expected a list of addresses, as [\"10.64.0.1\", \"2001:db8::53\"], or \"link\"".to_owned()
    }
}

impl Value for Local {
    const IS_LIST: bool = true;

    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        value.get_or_insert_default().add(text)
    }

    fn empty() -> Option<Self> {
        Some(Self::NONE)
    }

    fn texts(&self) -> Vec<String> {
        Self::words(*self).map(|word| word.text().to_owned()).collect()
    }

    fn expected() -> String {
        let words: Vec<_> = Near::all().into_iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("expected a list of words, of {}", words.join(", "))
    }

    fn words() -> Vec<(&'static str, &'static str)> {
        Near::all()
    }
}

impl Value for Exceptions {
    const IS_LIST: bool = true;
    const FIELDS: &'static [(&'static str, &'static str)] = except::FIELDS;

    fn check(value: Option<&Self>, field: &str, text: &str) -> Result<(), String> {
        value.unwrap_or(&Self::NONE).check(field, text)
    }

    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        value.get_or_insert_default().add(text)
    }

    fn empty() -> Option<Self> {
        Some(Self::NONE)
    }

    fn texts(&self) -> Vec<String> {
        self.iter().map(ToString::to_string).collect()
    }

    fn expected() -> String {
        "expected a list of exceptions, as [{ to = \"192.168.3.0/24\", by = \"eth0\" }]".to_owned()
    }
}
