//! `allow_users` and `allow_groups`: who may run a command by a policy without privilege.

use super::value::Value;

/// Users or groups, by name or id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts(pub Vec<String>);

impl Value for Accounts {
    const IS_LIST: bool = true;

    fn add(value: &mut Option<Self>, text: &str) -> Result<(), String> {
        let is_wrong = |c: char| c.is_control() || c.is_whitespace() || "/:,*?[]{}".contains(c);
        if text.is_empty() || text.starts_with('-') || text.contains(is_wrong) {
            return Err(format!("it is not the name of an account; {}", Self::expected()));
        }
        value.get_or_insert_default().0.push(text.to_owned());
        Ok(())
    }

    fn empty() -> Option<Self> {
        Some(Self::default())
    }

    fn texts(&self) -> Vec<String> {
        self.0.clone()
    }

    fn expected() -> String {
        "expected a list of names or ids, as [\"alice\"]".to_owned()
    }
}

/// Who may run a command by a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// `allow_users`
    pub users: Accounts,
    /// `allow_groups`
    pub groups: Accounts,
}

impl Allow {
    /// Whether it is nobody but root.
    pub fn is_nobody(&self) -> bool {
        self.users.0.is_empty() && self.groups.0.is_empty()
    }
}
