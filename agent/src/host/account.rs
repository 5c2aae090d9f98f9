//! The accounts of this host, and what it knows about the names of a configuration.
//!
//! **Invariant:** reads only. A name that cannot be looked up is unknown.

use std::fs;

use nix::unistd::{Uid, User};

use super::units;
use crate::model::spec::{Known, Named, Pattern};

/// The account with this name or id. An error means that it cannot be looked up.
pub fn find(name: &str) -> nix::Result<Option<User>> {
    match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_not_a_number) => User::from_name(name),
    }
}

/// The names of the accounts in /etc/passwd.
pub fn local_names() -> Vec<String> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines().filter_map(|line| line.split(':').next()).map(str::to_owned).collect()
}

/// What the host knows about the names of users and units among these.
pub fn known<'a>(patterns: impl Iterator<Item = &'a Pattern>) -> Known {
    let mut known = Known::default();
    for pattern in patterns {
        let name = pattern.as_str();
        match pattern.named() {
            Named::User => {
                if let Ok(Some(user)) = find(name) {
                    known.users.insert(name.to_owned(), user.uid.as_raw());
                }
            }
            Named::Unit if pattern.is_literal() => {
                if let Some(unit) = units::other_name(name) {
                    known.units.insert(name.to_owned(), unit);
                }
            }
            Named::Unit | Named::UserUnit | Named::Cgroup => {}
        }
    }
    known
}
