//! Where the daemon does not see new cgroups, and why.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    host::cgroup::{Error, Skipped},
    model::cgroup_path::CgroupPath,
};

/// Users may make any number of cgroups that cannot be reached.
const KEPT: usize = 32;

/// A cgroup in which new cgroups are steered late, or get no policy of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlindSpot {
    /// The cgroup.
    pub cgroup: CgroupPath,
    /// What is wrong, and what follows.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for BlindSpot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cgroup, why, fix } = self;
        write!(formatter, "{cgroup}: {why}; {fix}")
    }
}

/// The blind spots that were found in one run, by cgroup, at most [`KEPT`].
#[derive(Clone, Debug, Default)]
pub(crate) struct BlindSpots {
    spots: BTreeMap<CgroupPath, BlindSpot>,
    is_unwatched: bool,
}

impl BlindSpots {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &BlindSpot> {
        self.spots.values()
    }

    /// Whether a cgroup cannot be watched, so that new cgroups in it are found only when all are read.
    pub(crate) fn is_unwatched(&self) -> bool {
        self.is_unwatched
    }

    pub(super) fn unwatched(&mut self, cgroup: &CgroupPath, error: &Error) {
        self.is_unwatched = true;
        let why = format!("new cgroups in it are steered up to a second late, because it cannot be watched: {error}");
        let fix = match error {
            Error::Watch(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                "set a larger number with `sysctl -w fs.inotify.max_user_watches=NUMBER`, and in /etc/sysctl.d"
            }
            _ => "remove the cause of the error",
        };
        self.add(cgroup, why, fix);
    }

    pub(super) fn skipped(&mut self, cgroup: &CgroupPath, skipped: &Skipped) {
        let fix = match skipped {
            Skipped::Name(_) => "create it with another name",
            Skipped::Path => "remove them, and limit the depth by cgroup.max.depth",
        };
        self.add(cgroup, skipped.to_string(), fix);
    }

    fn add(&mut self, cgroup: &CgroupPath, why: String, fix: &str) {
        if self.spots.len() < KEPT || self.spots.contains_key(cgroup) {
            let spot = BlindSpot { cgroup: cgroup.clone(), why, fix: fix.to_owned() };
            self.spots.insert(cgroup.clone(), spot);
        }
    }

    /// Logs those that are not in `before`.
    pub(super) fn log_since(&self, before: &Self) {
        for (cgroup, spot) in &self.spots {
            if before.spots.get(cgroup) != Some(spot) {
                log::error!("{spot}");
            }
        }
    }
}
