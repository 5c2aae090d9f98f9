//! The request of a container in its bundle or its state, if it is not its image's.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;

use super::{
    Annotations, Created, Error, asked,
    image::{self, Image, Places},
    parse,
};
use crate::model::spec::annotations::{self, Request};

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

/// Refuses annotations that the image has with the same value. The user may have asked for the same, so they are not ignored.
fn refuse_words_of(image: &Image, container: &Annotations) -> Result<(), Error> {
    let ours = container.iter().filter(|(name, _)| annotations::is_ours(name));
    let mut words = ours.map(|(name, value)| format!("{name}={value}"));
    match words.find(|word| image.annotations.contains(word)) {
        Some(word) => Err(Error::OfImage { what: format!("annotation {word}"), image: image.id.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Bundle, Error};

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
