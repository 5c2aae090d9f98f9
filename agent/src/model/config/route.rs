//! `[route]`: how steer marks the sockets of policies that have `local` or `except`.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Problems, Source, reader::Reader};
use crate::model::mark::MarkMask;

/// The name of the table.
pub(super) const NAME: &str = "route";
/// The key of the mask.
const MARK_MASK: &str = "mark_mask";
/// How many bits the mask may have: one for "steered", and enough for some policies, but not the whole mark.
const BITS: std::ops::RangeInclusive<u32> = 4..=12;

/// The settings of marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// `mark_mask`: the bits of a mark that steer uses. They are contiguous.
    pub mark_mask: u32,
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self { mark_mask: 0xff00_0000 }
    }
}

/// Reads `[route]` of the configuration file. Mistakes elsewhere in it are no error, unless the syntax is wrong.
pub fn route(source: &Source) -> Result<RouteConfig, Problems> {
    let mut reader = Reader { source, problems: Vec::new() };
    let table = reader.table();
    let mut route = RouteConfig::default();
    if reader.problems.is_empty() {
        route = reader.route(table.get_ref());
    }
    let problems = reader.sorted();
    if problems.is_empty() { Ok(route) } else { Err(Problems { problems }) }
}

impl RouteConfig {
    /// The bits of marks that are steer's.
    pub fn marks(&self) -> MarkMask {
        MarkMask::new(self.mark_mask)
    }
}

impl Reader<'_> {
    /// Reads the table, if it is there.
    pub(super) fn route(&mut self, file: &DeTable<'_>) -> RouteConfig {
        let mut route = RouteConfig::default();
        let Some(table) = file.get(NAME) else { return route };
        let Some(fields) = table.get_ref().as_table() else {
            self.wrong(NAME, table, "expected [route], with single brackets");
            return route;
        };
        for (key, value) in fields {
            let path = format!("{NAME}.{}", key.get_ref());
            if key.get_ref() != MARK_MASK {
                self.problem(key.span(), &path, "", format!("unknown key; expected {MARK_MASK}"));
            } else if let Some(mask) = number(value).and_then(mask) {
                route.mark_mask = mask;
            } else {
                self.wrong(&path, value, expected());
            }
        }
        route
    }
}

fn expected() -> String {
    format!(
        "expected {} to {} contiguous bits of a mark, as \"0xff000000\": the top bit marks steered sockets, the others number \
         the policies",
        BITS.start(),
        BITS.end()
    )
}

/// Reads an integer, or a string that has one, in the notations of TOML.
fn number(value: &Spanned<DeValue<'_>>) -> Option<u32> {
    let value = value.get_ref();
    if let Some(integer) = value.as_integer() {
        return u32::from_str_radix(integer.as_str(), integer.radix()).ok();
    }
    let text = value.as_str()?;
    let hexadecimal = text.strip_prefix("0x").map(|digits| (digits, 16));
    let (digits, radix) = hexadecimal.unwrap_or((text, 10));
    // Without a sign, which Rust would read.
    u32::from_str_radix(digits, radix).ok().filter(|_| digits.chars().all(|digit| digit.is_digit(radix)))
}

/// The number, if it can be a mask.
fn mask(number: u32) -> Option<u32> {
    let ones = number.count_ones();
    let span = 32 - number.leading_zeros() - number.trailing_zeros().min(32 - number.leading_zeros());
    (BITS.contains(&ones) && span == ones).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::RouteConfig;
    use crate::model::config::parse;

    fn read(value: &str) -> Result<u32, String> {
        let text = format!("[route]\nmark_mask = {value}\n");
        parse("f.toml", &text).map(|config| config.route.mark_mask).map_err(|problems| problems.to_string())
    }

    #[test]
    fn masks() {
        assert_eq!(parse("f.toml", "[route]\n").expect("valid").route, RouteConfig { mark_mask: 0xff00_0000 });
        for (value, mask) in [
            ("\"0xff000000\"", 0xff00_0000),
            ("0xff000000", 0xff00_0000),
            ("\"0x00FF0000\"", 0x00ff_0000),
            ("0xff_0000", 0x00ff_0000),
            ("\"15\"", 0xf),
            ("15", 0xf),
            ("0b1111_1111_1111", 0xfff),
            ("0xf0000000", 0xf000_0000),
        ] {
            assert_eq!(read(value), Ok(mask), "{value}");
        }
    }

    #[test]
    fn mistakes() {
        for value in [
            "7",
            "0x1fff",
            "0xffffffff",
            "\"0xf0f0\"",
            "0",
            "-1",
            "0x1ff000000",
            "\"ff\"",
            "\"\"",
            "\"0x\"",
            "true",
            "[]",
            "\"0x+ff\"",
            "\"+15\"",
        ] {
            let want = format!("f.toml:2:13: route.mark_mask = {value}: expected 4 to 12 contiguous bits of a mark");
            let problems = read(value).expect_err(value);
            assert!(problems.starts_with(&want) && problems.contains("the top bit marks"), "{value}: {problems}");
        }
        let unknown = parse("f.toml", "[route]\nmask = 1\n").expect_err("unknown").to_string();
        assert_eq!(unknown, "f.toml:2:1: route.mask: unknown key; expected mark_mask");
        assert!(parse("f.toml", "route = 1\n").expect_err("no table").to_string().contains("expected [route]"));
    }
}
