//! The path of a cgroup, used by all layers.

use std::{fmt, path::PathBuf, str::FromStr};

use thiserror::Error;

use super::quote::shown;

/// Not the path of a cgroup.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a cgroup path: expected one like /system.slice/x.service, or a directory below the cgroup2 mount"
)]
pub struct InvalidPath(String);

/// The path without the directory where systemd mounts the hierarchy, which people write before it.
pub fn below_mount(text: &str) -> &str {
    let below = |mount| text.strip_prefix(mount).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match below("/sys/fs/cgroup/unified").or_else(|| below("/sys/fs/cgroup")) {
        Some("") => "/",
        Some(rest) => rest,
        None => text,
    }
}

/// An absolute, normalised path from the root of the hierarchy: `/` or `/a/b`, without `.`, `..` or empty parts.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct CgroupPath(String);

impl TryFrom<String> for CgroupPath {
    type Error = InvalidPath;

    fn try_from(text: String) -> Result<Self, InvalidPath> {
        text.parse()
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.0
    }
}

impl CgroupPath {
    /// The root cgroup.
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// Whether it is the root cgroup.
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its components, outermost first; none for the root.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// The cgroup `name` in this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self(format!("{}/{name}", self.0.trim_end_matches('/')))
    }

    /// The last part; empty for the root.
    pub fn name(&self) -> &str {
        self.parts().last().unwrap_or_default()
    }

    /// Its parent cgroup.
    pub fn parent(&self) -> Option<Self> {
        let (parent, name) = self.0.rsplit_once('/')?;
        match (parent, name) {
            (_, "") => None,
            ("", _) => Some(Self::root()),
            (parent, _) => Some(Self(parent.to_owned())),
        }
    }

    /// Its ancestors, the nearest first.
    pub fn ancestors(&self) -> Vec<Self> {
        std::iter::successors(self.parent(), Self::parent).collect()
    }

    /// The cgroup of a systemd unit: the nearest of this cgroup and its ancestors with the unit's name. systemd puts an
    /// underscore before names that conflict with the kernel's files.
    pub fn of_unit(&self, unit: &str) -> Option<Self> {
        let is_its = |path: &Self| path.name() == unit || path.name().strip_prefix('_') == Some(unit);
        self.self_and_ancestors().into_iter().find(is_its)
    }

    /// Itself and its ancestors, the nearest first.
    pub fn self_and_ancestors(&self) -> Vec<Self> {
        std::iter::successors(Some(self.clone()), Self::parent).collect()
    }

    /// Whether it is `outer` or in it.
    pub fn is_in(&self, outer: &Self) -> bool {
        outer.is_root() || self.0.strip_prefix(&outer.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Relative to the mount point.
    pub(crate) fn relative(&self) -> PathBuf {
        self.parts().collect()
    }
}

impl FromStr for CgroupPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        if !text.starts_with('/') || text.split('/').any(|part| part == "." || part == "..") {
            return Err(InvalidPath(text.to_owned()));
        }
        let parts = text.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>();
        Ok(Self(format!("/{}", parts.join("/"))))
    }
}

/// For people: the name of a cgroup can contain anything but a slash. See [`CgroupPath::as_str`] for the text itself.
impl fmt::Display for CgroupPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        shown(&self.0).fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::{CgroupPath, below_mount};

    fn path(text: &str) -> CgroupPath {
        text.parse().expect("a path")
    }

    #[test]
    fn normalises() {
        for (text, want) in [("/", "/"), ("//a//b/", "/a/b"), ("/a", "/a")] {
            assert_eq!(path(text).as_str(), want);
        }
        for text in ["", "a", "/a/../b", "/./a"] {
            assert!(text.parse::<CgroupPath>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_usual_mount_is_no_part_of_it() {
        for (text, want) in [
            ("/sys/fs/cgroup", "/"),
            ("/sys/fs/cgroup/unified/a", "/a"),
            ("/sys/fs/cgroup/unifieds/a", "/unifieds/a"),
            ("/sys/fs/a", "/sys/fs/a"),
        ] {
            assert_eq!(below_mount(text), want, "{text}");
        }
    }

    #[test]
    fn finds_its_unit() {
        let cases = [
            ("/system.slice/x.service", "x.service", Some("/system.slice/x.service")),
            // Delegate= and DelegateSubgroup= put control processes into a separate cgroup.
            ("/system.slice/x.service/.control", "x.service", Some("/system.slice/x.service")),
            ("/x.service/y/x.service/z", "x.service", Some("/x.service/y/x.service")),
            ("/system.slice/_cpu.x.service", "cpu.x.service", Some("/system.slice/_cpu.x.service")),
            ("/system.slice/y.service", "x.service", None),
            ("/", "x.service", None),
        ];
        for (own, unit, want) in cases {
            assert_eq!(path(own).of_unit(unit), want.map(path), "{own}");
        }
    }

    #[test]
    fn parents_and_children() {
        assert_eq!(path("/a/b").ancestors(), [path("/a"), path("/")]);
        assert_eq!(path("/").ancestors(), []);
        assert_eq!(path("/").child("a"), path("/a"));
        assert!(path("/a/b").is_in(&path("/a")) && path("/a").is_in(&path("/a")) && path("/a").is_in(&path("/")));
        assert!(!path("/ab").is_in(&path("/a")) && !path("/a").is_in(&path("/a/b")));
    }
}
