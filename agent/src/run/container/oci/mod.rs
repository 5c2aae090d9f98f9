//! The data of OCI runtimes: the state that hooks get, a bundle's configuration, a runtime's command line.
//!
//! **Invariant:** this module only reads. Data that cannot be parsed is an error, never a container without a request.

mod call;
mod image;

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
use image::{Image, Places};

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

/// A bundle's configuration, reduced to the fields that steer reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    directory: PathBuf,
    annotations: Annotations,
    /// Environment of its program, `NAME=value` each.
    environment: Vec<String>,
    root: Option<PathBuf>,
    /// The sources of its mounts.
    mounts: Vec<PathBuf>,
}

impl Bundle {
    /// Reads `config.json` of a bundle.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let file = directory.join("config.json");
        let what = file.display().to_string();
        let input = File::open(&file).map_err(|source| Error::Read { what: what.clone(), source })?;
        let spec: Spec = parse(&what, input)?;
        let environment = spec.process().as_ref().and_then(|process| process.env().clone());
        let mounts = spec.mounts().iter().flatten().filter_map(|mount| mount.source().clone());
        Ok(Self {
            directory: directory.to_owned(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            environment: environment.unwrap_or_default(),
            root: spec.root().as_ref().map(|root| directory.join(root.path())),
            mounts: mounts.collect(),
        })
    }

    /// The request in its annotations.
    pub fn asked(&self, id: &str) -> Result<Option<Request>, Error> {
        let Some(asked) = asked(&self.annotations)? else { return Ok(None) };
        if let Some(image) = self.image(id)? {
            refuse_words_of(&image, &self.annotations)?;
        }
        Ok(Some(asked))
    }

    /// The request in the variables of its environment: STEER_POLICY, STEER_INTERFACE, STEER_ENFORCE, STEER_DNS. Every engine
    /// passes those of the image on, so the image must be known.
    pub fn asked_by_variables(&self, id: &str) -> Result<Option<Request>, Error> {
        let variables: Vec<_> = self.variables().collect();
        let Some(asked) = Request::of(variables.iter().map(|(name, _, value)| (name.as_str(), *value)))? else {
            return Ok(None);
        };
        let Some(image) = self.image(id)? else {
            let variable = variables.first().map(|(_, whole, _)| (*whole).to_owned()).unwrap_or_default();
            return Err(Error::UnknownImage { variable });
        };
        match variables.into_iter().find(|(_, whole, _)| image.environment.contains(*whole)) {
            Some((_, whole, _)) => Err(Error::OfImage { what: format!("variable {whole}"), image: image.id }),
            None => Ok(Some(asked)),
        }
    }

    /// The first variable of its environment that would be a request.
    pub fn variable(&self) -> Option<&str> {
        self.variables().next().map(|(_, whole, _)| whole)
    }

    /// Whether its annotations or variables are a request, valid or not.
    pub fn asks(&self) -> bool {
        self.annotations.keys().any(|name| annotations::is_ours(name)) || self.variable().is_some()
    }

    /// The annotation that each variable stands for, the whole variable, and its value.
    fn variables(&self) -> impl Iterator<Item = (String, &str, &str)> {
        self.environment.iter().filter_map(|variable| {
            let (name, value) = variable.split_once('=')?;
            Some((annotations::of_variable(name)?, variable.as_str(), value))
        })
    }

    fn image(&self, id: &str) -> Result<Option<Image>, Error> {
        image::find(id, Places { bundle: &self.directory, root: self.root.as_deref(), mounts: &self.mounts })
    }
}

/// The request in the annotations of a created container.
pub fn asked_by(created: &Created) -> Result<Option<Request>, Error> {
    let Some(asked) = asked(&created.annotations)? else { return Ok(None) };
    let bundle = match Bundle::read(&created.bundle) {
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Bundle { directory: created.bundle.clone(), ..Bundle::default() }
        }
        bundle => bundle?,
    };
    if let Some(image) = bundle.image(&created.id)? {
        refuse_words_of(&image, &created.annotations)?;
    }
    Ok(Some(asked))
}

/// The request in annotations, whoever wrote them.
pub fn asked(annotations: &Annotations) -> Result<Option<Request>, Invalid> {
    Request::of(annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Refuses annotations that the image has with the same value. The user may have asked for the same, so they are not ignored.
fn refuse_words_of(image: &Image, container: &Annotations) -> Result<(), Error> {
    let ours = container.iter().filter(|(name, _)| annotations::is_ours(name));
    let mut words = ours.map(|(name, value)| format!("{name}={value}"));
    match words.find(|word| image.annotations.contains(word)) {
        Some(word) => Err(Error::OfImage { what: format!("annotation {word}"), image: image.id.clone() }),
        None => Ok(()),
    }
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
    fn variables_need_a_known_image() {
        let directory = std::env::temp_dir().join(format!("steer-test-image-{}", std::process::id()));
        let images = directory.join("image/vfs/imagedb/content/sha256");
        std::fs::create_dir_all(&images).expect("a directory");
        std::fs::create_dir_all(directory.join("containers/c")).expect("a directory");
        let write = |path: &str, text: &str| std::fs::write(directory.join(path), text).expect("written");
        write("containers/c/config.v2.json", r#"{"Image": "sha256:1a"}"#);
        write("image/vfs/imagedb/content/sha256/1a", r#"{"config": {"Env": ["PATH=/bin", "STEER_DNS=10.0.0.1"]}}"#);
        let bundle = |environment: &[&str]| Bundle {
            environment: environment.iter().map(|variable| (*variable).to_owned()).collect(),
            root: Some(directory.join("vfs/dir/1")),
            ..Bundle::default()
        };
        let policy =
            |variables: &[&str]| bundle(variables).asked_by_variables("c").map(|asked| asked.and_then(|it| it.policy));
        assert_eq!(policy(&["PATH=/bin", "STEER_POLICY=vpn", "STEER_LOG=x"]).expect("right").as_deref(), Some("vpn"));
        assert_eq!(policy(&["STEER_LOG=x", "STEER"]).expect("right"), None);
        assert!(matches!(policy(&["STEER_POLICY=vpn", "STEER_DNS=10.0.0.1"]), Err(Error::OfImage { .. })));
        assert!(policy(&["STEER_POLICY="]).is_err(), "an empty variable is an error");
        let unknown = bundle(&["STEER_POLICY=vpn"]).asked_by_variables("d");
        assert!(matches!(unknown, Err(Error::UnknownImage { .. })), "{unknown:?}");
        std::fs::remove_file(images.join("1a")).expect("removed");
        assert!(matches!(policy(&["STEER_POLICY=vpn"]), Err(Error::Image { .. })));
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
