//! What is known of a member's health in one family, as words and as the integers that are kept with the pins.
//!
//! **Invariant:** a number never changes its meaning.

use serde::{Deserialize, Serialize};
use strum::{Display, FromRepr};
use utoipa::ToSchema;

/// The state of a member in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, FromRepr)]
#[repr(u8)]
#[strum(serialize_all = "lowercase")]
pub enum State {
    /// It carries its share.
    Up = 0,
    /// It carries its share and is probed, because something points to a failure or it was never probed.
    Suspect = 1,
    /// It carries nothing.
    Down = 2,
    /// It works again, and is not preferred before it has worked for some time.
    Held = 3,
}

/// Why a member is in its state. The text completes "NAME is STATE: ".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, FromRepr)]
#[repr(u8)]
pub enum Reason {
    /// Suspect: new.
    #[strum(serialize = "not probed yet")]
    New = 0,
    /// Up.
    #[strum(serialize = "it works")]
    Works = 1,
    /// Suspect.
    #[strum(serialize = "a probe was not answered")]
    ProbeFailed = 2,
    /// Down.
    #[strum(serialize = "probes are not answered")]
    ProbesFail = 3,
    /// Suspect or down.
    #[strum(serialize = "many connections fail")]
    TrafficFails = 4,
    /// Down.
    #[strum(serialize = "the interface does not exist")]
    NoInterface = 5,
    /// Down.
    #[strum(serialize = "its link is down or has no carrier")]
    NoCarrier = 6,
    /// Down.
    #[strum(serialize = "no address of this family")]
    NoAddress = 7,
    /// Down.
    #[strum(serialize = "no default route of this family")]
    NoRoute = 8,
    /// Up or down.
    #[strum(serialize = "set by hand")]
    ByHand = 9,
    /// Down: what made it so is over, but too few probes were answered since.
    #[strum(serialize = "not enough probes answered yet")]
    Unproven = 10,
    /// Held.
    #[strum(serialize = "it works again, but not long enough yet")]
    Returned = 11,
}

/// What an administrator has decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Display, FromRepr, Serialize, Deserialize, ToSchema)]
#[repr(u8)]
#[strum(serialize_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Hand {
    /// Nothing: probes and the state of the link decide.
    #[default]
    Auto = 0,
    /// Down, for maintenance.
    Down = 1,
    /// Up whatever probes and connections say, as long as the link is there.
    Up = 2,
}
