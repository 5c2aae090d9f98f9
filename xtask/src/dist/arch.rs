//! The processors that are packed for, and what each kind of package calls them.
//!
//! **Invariant**: the same toolchain builds for both, whichever of them this machine has.

use std::{env::consts::ARCH, ffi::OsStr, process::Command};

/// What `--arch` takes.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    Amd64,
    Arm64,
    All,
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// This machine's.
    pub(crate) fn host() -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.machine() == ARCH)
    }

    /// Whether this machine runs its programs.
    pub(crate) fn is_host(self) -> bool {
        Self::host() == Some(self)
    }

    /// As Debian and OCI call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As `uname -m`, rpm and pacman call it.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Rust's target for programs that need nothing of the system they run on.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The C compiler, for the assembly and C in dependencies. It makes no use of a C library.
    pub(crate) fn c_compiler(self) -> &'static str {
        match self {
            _ if self.is_host() => "cc",
            Self::Amd64 => "x86_64-linux-gnu-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }

    /// Gives a cargo the compiler and the linker for these targets. rustup's targets have a C library and its start files.
    pub(crate) fn prepare(self, cargo: &mut Command) {
        cargo.env(format!("CC_{}", self.target().replace('-', "_")), self.c_compiler());
        cargo.env(self.variable("LINKER"), "rust-lld");
    }

    /// Gives a cargo flags for what it compiles for the target, not for build scripts.
    pub(crate) fn flags(self, cargo: &mut Command, flags: impl AsRef<OsStr>) {
        cargo.env(self.variable("RUSTFLAGS"), flags);
    }

    /// Cargo's variable for the static target.
    fn variable(self, what: &str) -> String {
        format!("CARGO_TARGET_{}_{what}", self.target().replace('-', "_").to_uppercase())
    }
}

impl Chosen {
    /// The processors. This machine's comes first, because its programs make the manual pages.
    pub(crate) fn archs(self) -> Vec<Arch> {
        let mut archs = match self {
            Self::Amd64 => vec![Arch::Amd64],
            Self::Arm64 => vec![Arch::Arm64],
            Self::All => Arch::ALL.to_vec(),
        };
        archs.sort_by_key(|arch| !arch.is_host());
        archs
    }
}

/// rustup's targets.
pub(crate) fn targets() -> impl Iterator<Item = &'static str> {
    Arch::ALL.into_iter().map(Arch::target)
}
