//! The links of one network namespace, by index and by every name they have. Pure.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::host::resolved::LinkResolvers;

/// The names of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Its name.
    pub name: String,
    /// Its alternative names.
    pub alternative: Vec<String>,
}

/// A change the kernel reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link has these names: it is new, renamed, or changed in some other way.
    Present(u32, Names),
    /// The link of this index is gone.
    Gone(u32),
    /// All links, from a full reading, for example after lost events.
    All(Table),
}

/// The existing links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    links: BTreeMap<u32, Names>,
    /// `None`: nobody has looked.
    resolvers: Option<Arc<LinkResolvers>>,
}

impl Table {
    /// Applies a change; true if a name may resolve differently than before.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Present(index, names) => {
                self.links.get(&index) != Some(&names) && {
                    self.links.insert(index, names);
                    true
                }
            }
            Change::Gone(index) => self.links.remove(&index).is_some(),
            Change::All(table) => {
                *self != table && {
                    *self = table;
                    true
                }
            }
        }
    }

    /// The index of the link with this name or alternative name. In the kernel names are unique. If two links here have the
    /// name, the newest counts: a report of a link that is gone since can come after a full reading.
    pub fn resolve(&self, name: &str) -> Option<i32> {
        let newest = || self.links.iter().rev();
        let named = newest().find(|(_, names)| names.name == name);
        let found = named.or_else(|| newest().find(|(_, names)| names.alternative.iter().any(|alt| alt == name)));
        found.and_then(|(&index, _)| i32::try_from(index).ok())
    }

    /// Adds the resolvers that the host has for the links.
    pub fn set_resolvers(&mut self, resolvers: Option<Arc<LinkResolvers>>) {
        self.resolvers = resolvers;
    }

    /// Takes them out.
    pub fn take_resolvers(&mut self) -> Option<Arc<LinkResolvers>> {
        self.resolvers.take()
    }

    /// The resolvers that the host has for a link. `None`: nobody has looked.
    pub fn resolvers(&self, index: i32) -> Option<&[IpAddr]> {
        let resolvers = self.resolvers.as_ref()?;
        let of_link = u32::try_from(index).ok().and_then(|index| resolvers.get(&index));
        Some(of_link.map_or(&[], Vec::as_slice))
    }

    /// All links, by index.
    pub fn links(&self) -> impl Iterator<Item = (u32, &Names)> {
        self.links.iter().map(|(&index, names)| (index, names))
    }

    /// The name of the link with this index.
    pub fn name(&self, index: i32) -> Option<&str> {
        let names = u32::try_from(index).ok().and_then(|index| self.links.get(&index));
        names.map(|names| names.name.as_str())
    }

    /// As [`Self::resolve`], with an error that lists the existing interfaces.
    pub fn require(&self, name: &str) -> Result<i32, super::Error> {
        self.resolve(name).ok_or_else(|| super::Error::Missing {
            name: name.to_owned(),
            known: self.links.values().map(|names| names.name.clone()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Names, Table};

    fn names(name: &str, alternative: &[&str]) -> Names {
        Names { name: name.to_owned(), alternative: alternative.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn follows_links() {
        let mut table = Table::default();
        assert!(table.apply(Change::Present(3, names("wg0", &["tunnel"]))));
        assert!(!table.apply(Change::Present(3, names("wg0", &["tunnel"]))), "no change");
        assert_eq!((table.resolve("wg0"), table.resolve("tunnel"), table.resolve("eth0")), (Some(3), Some(3), None));
        assert!(table.apply(Change::Present(3, names("wg1", &[]))), "renamed");
        assert_eq!((table.resolve("wg0"), table.resolve("wg1"), table.resolve("tunnel")), (None, Some(3), None));
        assert!(table.apply(Change::Gone(3)) && !table.apply(Change::Gone(3)));
        assert_eq!(table.resolve("wg1"), None);
    }

    #[test]
    fn a_recreated_link_has_its_new_index_in_either_order() {
        let mut table = Table::default();
        table.apply(Change::Present(3, names("wg0", &[])));
        table.apply(Change::Gone(3));
        table.apply(Change::Present(9, names("wg0", &[])));
        assert_eq!(table.resolve("wg0"), Some(9));
        let mut fresh = Table::default();
        fresh.apply(Change::Present(9, names("wg0", &[])));
        assert!(!table.apply(Change::All(fresh)));
    }

    #[test]
    fn a_report_from_before_a_full_reading_changes_nothing() {
        let mut read = Table::default();
        read.apply(Change::Present(9, names("wg0", &["tunnel"])));
        let mut table = Table::default();
        table.apply(Change::All(read));
        for late in [Change::Present(3, names("wg0", &["tunnel"])), Change::Gone(3)] {
            table.apply(late);
            assert_eq!((table.resolve("wg0"), table.resolve("tunnel")), (Some(9), Some(9)));
        }
    }

    #[test]
    fn the_error_lists_the_interfaces() {
        let mut table = Table::default();
        table.apply(Change::Present(1, names("lo", &[])));
        let message = table.require("wg0").expect_err("missing").to_string();
        assert!(message.contains("\"wg0\"") && message.contains("lo"), "{message}");
    }
}
