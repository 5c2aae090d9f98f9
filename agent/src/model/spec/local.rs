//! `local`: what of this host and its networks a steered program reaches, besides its uplink.
//!
//! **Invariant:** each word is a field of [`Local`], and is written once, in the order of [`Near`].

use strum::{EnumMessage, IntoStaticStr, VariantArray};

use super::Word;

/// A word of `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Near {
    /// All addresses of this host.
    Host,
    /// The private networks that are directly connected on links which are not tunnels: of RFC 1918, RFC 3927 (link-local) and RFC 4193, as
    /// 192.168.3.0/24 and fd00:3::/64.
    Lan,
    /// mDNS, SSDP, LLMNR and broadcasts on those links.
    Discovery,
}

/// A set of words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// See [`Near::Host`].
    pub host: bool,
    /// See [`Near::Lan`].
    pub lan: bool,
    /// See [`Near::Discovery`].
    pub discovery: bool,
}

impl Local {
    /// Nothing.
    pub const NONE: Self = Self { host: false, lan: false, discovery: false };

    /// Adds a word as written. The error says what is wrong with it.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let word = self.has_mut(Near::read(text)?);
        if std::mem::replace(word, true) { Err(format!("{text:?} is there already; expected it once")) } else { Ok(()) }
    }

    /// Whether it has this word.
    pub fn has(&self, word: Near) -> bool {
        match word {
            Near::Host => self.host,
            Near::Lan => self.lan,
            Near::Discovery => self.discovery,
        }
    }

    fn has_mut(&mut self, word: Near) -> &mut bool {
        match word {
            Near::Host => &mut self.host,
            Near::Lan => &mut self.lan,
            Near::Discovery => &mut self.discovery,
        }
    }

    /// Whether it has no word.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// Its words.
    pub fn words(self) -> impl Iterator<Item = Near> {
        Near::VARIANTS.iter().copied().filter(move |word| self.has(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::{Local, Near};

    #[test]
    fn each_word_once() {
        let mut local = Local::NONE;
        local.add("lan").expect("a word");
        assert_eq!(local, Local { lan: true, ..Local::NONE });
        assert_eq!(local.add("lan").expect_err("twice"), "\"lan\" is there already; expected it once");
        local.add("host").expect("a word");
        assert_eq!(local.words().collect::<Vec<_>>(), [Near::Host, Near::Lan]);
        assert!(local.has(Near::Host) && !local.has(Near::Discovery) && !local.is_empty());
        assert_eq!(local.add("wan").expect_err("wrong"), "expected \"host\", \"lan\" or \"discovery\"");
    }
}
