//! The accounts of this host, and what it knows about the names of a configuration.
//!
//! **Invariant:** reads only. A name that cannot be looked up is unknown.

use std::fs;

use nix::unistd::{Group, Uid, User};

use super::units;
use crate::model::spec::{Allow, Known, Named, Pattern};

/// The account with this name or id. An error means that it cannot be looked up.
pub fn find(name: &str) -> nix::Result<Option<User>> {
    match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_not_a_number) => User::from_name(name),
    }
}

/// Whether a user with these groups is allowed. A name that cannot be looked up allows nobody.
pub fn is_allowed(allow: &Allow, uid: u32, gids: &[u32]) -> bool {
    let is_user = |name: &String| match name.parse::<u32>() {
        Ok(id) => id == uid,
        Err(_not_a_number) => matches!(User::from_name(name), Ok(Some(user)) if user.uid.as_raw() == uid),
    };
    let is_member = |name: &String| match name.parse::<u32>() {
        Ok(id) => gids.contains(&id),
        Err(_not_a_number) => matches!(Group::from_name(name), Ok(Some(group)) if gids.contains(&group.gid.as_raw())),
    };
    allow.users.0.iter().any(is_user) || allow.groups.0.iter().any(is_member)
}

/// Whether there is a group of this name.
pub fn has_group(name: &str) -> bool {
    matches!(Group::from_name(name), Ok(Some(_)))
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
