//! What steer tells of a group of uplinks, to those who follow the events.
//!
//! **Invariant:** the field names are stable. A text that others chose fits, or is shortened.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest name that is told if the whole does not fit.
const SHORT: usize = 16;

/// A change, as it is kept in the ring of events.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct News {
    /// When, in nanoseconds since boot.
    pub boottime_ns: u64,
    /// What has changed.
    #[serde(flatten)]
    pub change: UplinkChange,
}

/// A change of a group of uplinks: the state of a member, or the choice. Absent fields do not concern the change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct UplinkChange {
    /// The name of the group.
    pub group: String,
    /// The member whose state has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Its state now: `up`, `suspect`, `down` or `held`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The family of the state: `ipv4` or `ipv6`. Absent: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// The members that new IPv4 sockets get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Choice>,
    /// The members that new IPv6 sockets get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Choice>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The members whose sockets were moved or ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// How many connections were ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// How many sockets were moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<u64>,
}

/// The members that new sockets of a family get.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct Choice {
    /// Before.
    pub from: Vec<String>,
    /// Now. None: the group is closed.
    pub to: Vec<String>,
}

impl News {
    /// As JSON of at most `limit` bytes. `None`: it does not fit, even with short names.
    pub fn to_json(&self, limit: usize) -> Option<Vec<u8>> {
        let json = |news: &Self| serde_json::to_vec(news).ok().filter(|json| json.len() <= limit);
        json(self).or_else(|| json(&self.shortened()))
    }

    fn shortened(&self) -> Self {
        let short = |name: &String| name.chars().take(SHORT).collect::<String>();
        let all = |names: &Vec<String>| names.iter().map(short).collect::<Vec<_>>();
        let choice = |choice: &Choice| Choice { from: all(&choice.from), to: all(&choice.to) };
        let change = &self.change;
        let change = UplinkChange {
            member: change.member.as_ref().map(short),
            ipv4: change.ipv4.as_ref().map(choice),
            ipv6: change.ipv6.as_ref().map(choice),
            left: all(&change.left),
            ..change.clone()
        };
        Self { change, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::{Choice, News, UplinkChange};

    #[test]
    fn long_names_fit() {
        let names: Vec<String> = (0..8).map(|number| format!("{number}{}", "n".repeat(120))).collect();
        let choice = Choice { from: names.clone(), to: names[..1].to_vec() };
        let change = UplinkChange { ipv4: Some(choice.clone()), ipv6: Some(choice), left: names, ..Default::default() };
        let news = News { boottime_ns: u64::MAX, change };
        assert_eq!(news.to_json(100), None);
        let json = news.to_json(1024).expect("with short names");
        let read: News = serde_json::from_slice(&json).expect("what was written");
        assert_eq!(read, news.shortened());
        assert_eq!(read.change.left[7].len(), 16);
    }
}
