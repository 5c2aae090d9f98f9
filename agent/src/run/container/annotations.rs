//! What a container asks for: its annotations. Pure.

use crate::model::config::{Enforce, Resolvers};

use super::Error;

/// What the names of all annotations of steer begin with.
pub const PREFIX: &str = "steer.";
/// Annotations there are.
pub(super) const POLICY: &str = "steer.policy";
/// See [`POLICY`].
pub(super) const INTERFACE: &str = "steer.interface";
/// See [`POLICY`].
pub(super) const ENFORCE: &str = "steer.enforce";
/// See [`POLICY`].
pub(super) const DNS: &str = "steer.dns";

/// The annotation that a variable of a container's environment stands for.
pub fn annotation_of_variable(name: &str) -> Option<&'static str> {
    match name {
        "STEER_POLICY" => Some(POLICY),
        "STEER_INTERFACE" => Some(INTERFACE),
        "STEER_ENFORCE" => Some(ENFORCE),
        "STEER_DNS" => Some(DNS),
        _ => None,
    }
}

/// What somebody asks for a container: by what to steer it, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Name of a policy.
    pub policy: Option<String>,
    /// Name of an uplink in the container's network namespace.
    pub interface: Option<String>,
    /// How far to go.
    pub enforce: Option<Enforce>,
    /// Whom to ask for names.
    pub dns: Resolvers,
}

impl Asked {
    /// Reads annotations. None of steer's: nothing is asked. One that steer does not know is more likely misspelt than meant for
    /// somebody else, so it is an error.
    pub fn of<'a>(annotations: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Option<Self>, Error> {
        let mut asked = Self::default();
        for (name, value) in annotations.into_iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let wrong = |problem: String| Error::Annotation { name: name.to_owned(), value: value.to_owned(), problem };
            let value = value.trim();
            if value.is_empty() {
                return Err(wrong("it is empty".to_owned()));
            }
            match name {
                POLICY => asked.policy = Some(value.to_owned()),
                INTERFACE => asked.interface = Some(value.to_owned()),
                ENFORCE => {
                    asked.enforce = Some(match value {
                        "steer" => Enforce::Steer,
                        "strict" => Enforce::Strict,
                        _ => return Err(wrong("expected \"steer\" or \"strict\"".to_owned())),
                    });
                }
                DNS => {
                    for address in value.split(',') {
                        asked.dns.add(address.trim()).map_err(wrong)?;
                    }
                }
                _ => {
                    let known = [POLICY, INTERFACE, ENFORCE, DNS].join(", ");
                    return Err(wrong(format!("steer knows no such annotation; it knows {known}")));
                }
            }
        }
        if asked == Self::default() { Ok(None) } else { Ok(Some(asked)) }
    }
}

#[cfg(test)]
mod tests {
    use super::Asked;
    use crate::model::config::Enforce;

    #[test]
    fn reads_what_is_asked() {
        let annotations = [
            ("steer.policy", " vpn "),
            ("steer.enforce", "steer"),
            ("steer.dns", "10.0.0.1, 2001:db8::1"),
            ("io.kubernetes.cri.container-type", "container"),
        ];
        let asked = Asked::of(annotations).expect("right").expect("something");
        assert_eq!((asked.policy.as_deref(), asked.enforce), (Some("vpn"), Some(Enforce::Steer)));
        assert_eq!(asked.dns.iter().count(), 2);
        assert_eq!(Asked::of([("steering", "wheel")]).expect("another's"), None);
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        for (name, value, want) in [
            ("steer.polcy", "vpn", "knows no such annotation"),
            ("steer.policy", " ", "it is empty"),
            ("steer.enforce", "bind", "expected \"steer\""),
            ("steer.dns", "10.0.0.1,dns", "not an IP address"),
            ("steer.dns", "127.0.0.1", "is this host"),
        ] {
            let error = Asked::of([(name, value)]).expect_err(value).to_string();
            assert!(error.starts_with(&format!("annotation {name} = {value:?}: ")) && error.contains(want), "{error}");
        }
    }
}
