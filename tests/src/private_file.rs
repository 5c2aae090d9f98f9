//! Files of the machine that a command sees with other content.

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Makes `command` see `instead` at `path`, in its own mount namespace. Call it before anything that drops privileges.
pub fn replace_file(command: &mut Command, path: &Path, instead: &Path) {
    replace_files(command, &[(path, instead)]);
}

/// The same for several files or directories.
pub fn replace_files(command: &mut Command, pairs: &[(&Path, &Path)]) {
    let pairs: Vec<_> = pairs.iter().map(|(path, instead)| ((*path).to_owned(), (*instead).to_owned())).collect();
    let none = None::<&Path>;
    let replace = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        for (path, instead) in &pairs {
            mount(Some(instead), path, none, MsFlags::MS_BIND, none)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls, and copies paths to the stack.
    unsafe { command.pre_exec(replace) };
}
