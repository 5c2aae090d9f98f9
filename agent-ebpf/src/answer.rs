//! The return values of a program.

/// The call fails with EPERM.
pub(crate) const REFUSE: i32 = 0;
/// The call continues.
pub(crate) const ALLOW: i32 = 1;
