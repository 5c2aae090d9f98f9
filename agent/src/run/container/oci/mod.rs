//! The data of OCI runtimes: the state that hooks get, a bundle's configuration, a runtime's command line.
//!
//! **Invariant:** this module only reads. Data that cannot be parsed is an error, never a container without a request.

mod bundle;
mod call;
mod image;

use std::{
    collections::HashMap,
    io::{self, Read},
    path::PathBuf,
};

use oci_spec::runtime::{ContainerState, State};
use thiserror::Error;

use crate::model::spec::annotations::{Invalid, Request};

pub use bundle::{Bundle, asked_by};
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
    #[error("{what} does not conform to the OCI specifications: {source}")]
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
    /// The request is invalid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The files of an image are not where they are expected.
    #[error(
        "the container asks for an uplink, and its image {id} cannot be read ({directory}), so steer cannot tell whether the \
         user asks or the image"
    )]
    Image {
        /// The image.
        id: String,
        /// The directory or file that names it, or should have it.
        directory: PathBuf,
    },
    /// The request may be that of the image.
    #[error(
        "{what} is also in the image {image}, and what an image says does not count: use an image without it, or ask for \
         something else"
    )]
    OfImage {
        /// The annotation or variable, with its value.
        what: String,
        /// The image.
        image: String,
    },
    /// A variable of a container that has no known image.
    #[error(
        "{variable} is a variable of the container, and steer cannot find its image to tell whether the variable is the \
         image's; ask by an annotation"
    )]
    UnknownImage {
        /// Its name.
        variable: String,
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

/// The request in annotations, whoever wrote them.
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
    let bytes = contents(what, input)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Parse { what: what.to_owned(), source })
}

fn contents(what: &str, input: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    input.take(MOST_BYTES).read_to_end(&mut bytes).map_err(|source| Error::Read { what: what.to_owned(), source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Created, Error, Stage, created, stage};

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
}
