//! The request of a container: its annotations.

use std::fmt;

use thiserror::Error;

use super::{Key, PolicySpec, key};

/// The prefix of all annotations of steer.
const PREFIX: &str = "steer.";
/// The annotation that names a policy.
const POLICY: &str = "policy";
/// The keys of a policy that an annotation may have.
const KEYS: [&str; 6] = ["interface", "uplink", "enforce", "dns", "local", "except"];

/// An invalid annotation, or an invalid environment variable that stands for one.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("annotation {name} = {value:?}: {problem}")]
pub struct Invalid {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What a container requests: a policy of the configuration, or an interface, and options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Name of a policy of the configuration.
    pub policy: Option<String>,
    /// An interface of the container's network namespace, and options.
    pub spec: PolicySpec,
}

/// The keys of a policy that an annotation may have.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter_map(|name| key(name))
}

/// The names of all annotations.
pub fn names() -> impl Iterator<Item = String> {
    [POLICY].into_iter().chain(KEYS).map(|key| format!("{PREFIX}{key}"))
}

/// The annotation that a variable of a container's environment stands for: `STEER_POLICY` for `steer.policy`.
pub fn of_variable(variable: &str) -> Option<String> {
    let of = |annotation: &String| annotation.to_uppercase().replace('.', "_") == variable;
    names().find(of)
}

/// The part of an annotation's name after the prefix, if it is one of steer's. With a slash, as `steer.example.com/key`, the part
/// before it is a DNS name, whose owner defines the annotation (Kubernetes, *Labels and annotations*).
fn of_steer(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX).filter(|key| !key.contains('/'))
}

/// Whether an annotation is a request, valid or not.
pub fn is_ours(name: &str) -> bool {
    of_steer(name).is_some()
}

impl Request {
    /// Reads annotations. `None`: nothing is requested. An unknown annotation with steer's prefix is an error, because it is
    /// probably misspelt, and the container would start unsteered.
    pub fn of<'a>(annotations: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Option<Self>, Invalid> {
        let mut asked = Self::default();
        for (name, value) in annotations {
            let Some(key) = of_steer(name) else { continue };
            let wrong = |problem: String| Invalid { name: name.to_owned(), value: value.to_owned(), problem };
            asked.add(key, value.trim()).map_err(wrong)?;
        }
        Ok((asked != Self::default()).then_some(asked))
    }

    fn add(&mut self, name: &str, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Err("it is empty".to_owned());
        }
        if name == POLICY {
            self.policy = Some(value.to_owned());
            return Ok(());
        }
        let Some(key) = key(name).filter(|key| KEYS.contains(&key.name)) else {
            let known: Vec<_> = names().collect();
            return Err(format!("steer knows no such annotation; it knows {}", known.join(", ")));
        };
        let texts = if key.is_list { value.split(',').map(str::trim).collect() } else { vec![value] };
        texts.into_iter().try_for_each(|text| self.spec.add(key.name, text)).map_err(|rejected| rejected.to_string())
    }
}

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.policy.iter().map(|name| format!("policy {name:?}"));
        let keys = self.spec.entries().map(|(key, texts)| format!("{} {:?}", key.name, texts.join(", ")));
        formatter.write_str(&policy.chain(keys).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::{Request, of_variable};
    use crate::model::spec::Enforce;

    #[test]
    fn reads_a_request() {
        let annotations = [
            ("steer.policy", " vpn "),
            ("steer.enforce", "steer"),
            ("steer.dns", "10.0.0.1, 2001:db8::1"),
            ("io.kubernetes.cri.container-type", "container"),
        ];
        let asked = Request::of(annotations).expect("right").expect("something");
        assert_eq!((asked.policy.as_deref(), asked.spec.enforce), (Some("vpn"), Some(Enforce::Steer)));
        assert_eq!(asked.spec.dns.map(|dns| dns.iter().count()), Some(2));
        assert_eq!(asked.to_string(), "policy \"vpn\", enforce \"steer\", dns \"10.0.0.1, 2001:db8::1\"");
        let others = [("steering", "wheel"), ("steer.example.com/policy", "x"), ("steer.dev/policy", "vpn")];
        assert_eq!(Request::of(others).expect("another's"), None);
    }

    #[test]
    fn lists_of_words_and_of_exceptions() {
        let annotations = [
            ("steer.interface", "a1"),
            ("steer.local", "lan, host"),
            ("steer.except", "10.0.1.0/24=main, 10.1.0.0/16=b"),
        ];
        let asked = Request::of(annotations).expect("right").expect("something");
        let want = "interface \"a1\", local \"host, lan\", except \"10.0.1.0/24=main, 10.1.0.0/16=b\"";
        assert_eq!(asked.to_string(), want);
    }

    #[test]
    fn variables_stand_for_annotations() {
        assert_eq!(of_variable("STEER_POLICY").as_deref(), Some("steer.policy"));
        assert_eq!(of_variable("STEER_DNS").as_deref(), Some("steer.dns"));
        assert_eq!(of_variable("STEER_LOCAL").as_deref(), Some("steer.local"));
        assert_eq!(of_variable("STEER_LOG"), None);
    }

    #[test]
    fn mistakes_are_refused() {
        for (name, value, want) in [
            ("steer.polcy", "vpn", "knows no such annotation"),
            ("steer.example.com", "vpn", "knows no such annotation"),
            ("steer.policy", " ", "it is empty"),
            ("steer.enforce", "bind", "expected \"steer\""),
            ("steer.dns", "10.0.0.1,dns", "not an IP address"),
            ("steer.dns", "127.0.0.1", "is this host"),
            ("steer.local", "host,wan", "expected \"host\", \"lan\" or \"discovery\""),
            ("steer.local", "host,host", "\"host\" is there already"),
            ("steer.except", "10.0.0.0/8", "expected TO=BY"),
        ] {
            let error = Request::of([(name, value)]).expect_err(value).to_string();
            assert!(error.starts_with(&format!("annotation {name} = {value:?}: ")) && error.contains(want), "{error}");
        }
    }
}
