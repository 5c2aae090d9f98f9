//! The data of OCI runtimes: the state that hooks get, a bundle's configuration, a runtime's command line.
//!
//! **Invariant:** this module only reads. Data that cannot be parsed is an error, never a container without a request.

mod call;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{ContainerState, Spec, State};
use thiserror::Error;

use crate::model::spec::annotations::{self, Invalid, Request};

pub use call::{Action, Call, UnknownCall};

/// The maximum size of a state or configuration, in bytes.
const MOST_BYTES: u64 = 16 << 20;

/// An error in the data of a runtime.
#[derive(Debug, Error)]
pub enum Error {
    /// The data cannot be read.
    #[error("read {what}: {source}")]
    Read {
        /// What was to be read.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The data does not conform to the OCI runtime specification.
    #[error("{what} does not conform to the OCI runtime specification: {source}")]
    Parse {
        /// What was read.
        what: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// A hook was called at a stage at which it can do nothing.
    #[error(
        "the container is {status} and its process is {pid}: call this hook at createRuntime and poststop, in the runtime's own \
         namespaces"
    )]
    Stage {
        /// The reported status of the container.
        status: ContainerState,
        /// The reported process, 0 for none.
        pid: i32,
    },
}

/// The stage of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The container exists; its program has not been executed.
    Created(Created),
    /// The container is gone.
    Stopped,
}

/// Annotations of a container.
pub type Annotations = HashMap<String, String>;

/// Reads the state that a hook gets on its standard input.
pub fn stage(input: impl Read) -> Result<Stage, Error> {
    let state = state("the state on standard input", input)?;
    if *state.status() == ContainerState::Stopped {
        return Ok(Stage::Stopped);
    }
    Created::read(&state, &[ContainerState::Creating, ContainerState::Created]).map(Stage::Created)
}

/// A container that has been created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its id in the runtime.
    pub id: String,
    /// Its process, as seen from the host.
    pub pid: u32,
    /// The directory with its configuration.
    pub bundle: PathBuf,
    /// The annotations of its state. A hook's state has all of them; the output of a runtime's command `state` may not.
    pub annotations: Annotations,
}

impl Created {
    fn read(state: &State, expected: &[ContainerState]) -> Result<Self, Error> {
        let (status, pid) = (*state.status(), state.pid().unwrap_or_default());
        match u32::try_from(pid) {
            Ok(pid @ 1..) if expected.contains(&status) => Ok(Self {
                id: state.id().clone(),
                pid,
                bundle: state.bundle().clone(),
                annotations: state.annotations().clone().unwrap_or_default(),
            }),
            _ => Err(Error::Stage { status, pid }),
        }
    }
}

/// Parses the output of a runtime's command `state`. A container that is not waiting for its start is an error.
pub fn created(printed: &[u8]) -> Result<Created, Error> {
    Created::read(&state("what the runtime's `state` printed", printed)?, &[ContainerState::Created])
}

/// A bundle's configuration, reduced to the fields that steer reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    annotations: Annotations,
    /// Environment of its program, `NAME=value` each.
    environment: Vec<String>,
}

impl Bundle {
    /// Reads `config.json` of a bundle.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let file = directory.join("config.json");
        let what = file.display().to_string();
        let input = File::open(&file).map_err(|source| Error::Read { what: what.clone(), source })?;
        let spec: Spec = parse(&what, input)?;
        let environment = spec.process().as_ref().and_then(|process| process.env().clone());
        Ok(Self {
            annotations: spec.annotations().clone().unwrap_or_default(),
            environment: environment.unwrap_or_default(),
        })
    }

    /// The request in its annotations or, without one there, in the variables of its environment: STEER_POLICY, STEER_INTERFACE,
    /// STEER_ENFORCE, STEER_DNS.
    pub fn asked(&self) -> Result<Option<Request>, Invalid> {
        let annotated = asked(&self.annotations)?;
        if annotated.is_some() {
            return Ok(annotated);
        }
        let variables: Vec<(String, &str)> = self
            .environment
            .iter()
            .filter_map(|variable| {
                let (name, value) = variable.split_once('=')?;
                Some((annotations::of_variable(name)?, value))
            })
            .collect();
        Request::of(variables.iter().map(|(name, value)| (name.as_str(), *value)))
    }
}

/// The request in annotations.
pub fn asked(annotations: &Annotations) -> Result<Option<Request>, Invalid> {
    Request::of(annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Parses a state. The types of the specification read a missing status as `stopped`, for which nothing would be done.
fn state(what: &str, input: impl Read) -> Result<State, Error> {
    let fields: serde_json::Map<String, serde_json::Value> = parse(what, input)?;
    let failed = |source| Error::Parse { what: what.to_owned(), source };
    for field in ["id", "status"] {
        if !fields.contains_key(field) {
            return Err(failed(serde::de::Error::missing_field(field)));
        }
    }
    serde_json::from_value(fields.into()).map_err(failed)
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, input: impl Read) -> Result<T, Error> {
    let mut bytes = Vec::new();
    input.take(MOST_BYTES).read_to_end(&mut bytes).map_err(|source| Error::Read { what: what.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Parse { what: what.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::{Bundle, Created, Error, Stage, created, stage};

    #[test]
    fn the_state_of_runc_and_crun() {
        let runc = r#"{"ociVersion":"1.0.2-dev","id":"a","status":"creating","pid":42,"bundle":"/b",
            "annotations":{"steer.interface":"eth1"}}"#;
        let Stage::Created(read) = stage(runc.as_bytes()).expect("a state") else { panic!("not created") };
        assert_eq!((read.id.as_str(), read.pid, read.annotations["steer.interface"].as_str()), ("a", 42, "eth1"));
        let crun =
            r#"{"ociVersion":"1.0","id":"a","pid":42,"root":"/r","bundle":"/b","status":"created","annotations":{}}"#;
        assert!(matches!(stage(crun.as_bytes()), Ok(Stage::Created(Created { pid: 42, .. }))));
        let stopped = r#"{"ociVersion":"1.0","id":"a","pid":0,"status":"stopped","bundle":"/b"}"#;
        assert_eq!(stage(stopped.as_bytes()).expect("a state"), Stage::Stopped);
        assert_eq!(created(crun.as_bytes()).expect("created").bundle, std::path::Path::new("/b"));
    }

    #[test]
    fn another_stage_is_refused() {
        for state in [
            r#"{"ociVersion":"1.0","id":"a","pid":0,"status":"created","bundle":"/b"}"#,
            r#"{"ociVersion":"1.0","id":"a","status":"creating","bundle":"/b"}"#,
            r#"{"ociVersion":"1.0","id":"a","pid":-3,"status":"creating","bundle":"/b"}"#,
            r#"{"ociVersion":"1.0","id":"a","pid":42,"status":"running","bundle":"/b"}"#,
        ] {
            assert!(matches!(stage(state.as_bytes()), Err(Error::Stage { .. })), "{state}");
        }
        for broken in [
            "",
            "{}",
            "{}x",
            "[]",
            r#"{"ociVersion":"1.0","id":"a","pid":42}"#,
            r#"{"ociVersion":"1.0","id":"a","pid":42,"status":"asleep"}"#,
        ] {
            assert!(matches!(stage(broken.as_bytes()), Err(Error::Parse { .. })), "{broken}");
        }
    }

    #[test]
    fn annotations_come_before_the_environment() {
        let bundle = |annotations: &[(&str, &str)], environment: &[&str]| Bundle {
            annotations: annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            environment: environment.iter().map(|variable| (*variable).to_owned()).collect(),
        };
        let policy = |bundle: Bundle| bundle.asked().expect("right").and_then(|asked| asked.policy);
        assert_eq!(policy(bundle(&[], &["PATH=/bin", "STEER_POLICY=vpn", "STEER_LOG=x"])).as_deref(), Some("vpn"));
        assert_eq!(policy(bundle(&[("steer.policy", "a")], &["STEER_POLICY=vpn"])).as_deref(), Some("a"));
        assert_eq!(policy(bundle(&[], &["STEER_LOG=x", "STEER"])), None);
        assert!(bundle(&[], &["STEER_POLICY="]).asked().is_err(), "an empty variable is an error");
    }
}
