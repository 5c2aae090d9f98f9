//! What a program answers the kernel.

/// The call fails with EPERM.
pub(crate) const REFUSE: i32 = 0;
/// The call goes on.
pub(crate) const ALLOW: i32 = 1;
