//! The annotations and variables of a container's image, from the files of its engine: containers/storage (Podman, CRI-O) or
//! Docker.
//!
//! Podman passes annotations of the image on, and all engines pass its variables on. A runtime's configuration does not show
//! their origin. The image is made by somebody else than the user who starts the container, so its word must not count.
//!
//! **Invariant:** an image that is known and cannot be read is an error, not an image that says nothing.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io::ErrorKind,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};

use super::{Error, contents, parse};

/// The files in which containers/storage lists the containers. The second has those of `--rm`.
const LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];

/// How the names of files with manifests and configurations begin: `manifest`, and in base64 `manifest` and `sha256`.
const DOCUMENTS: [&str; 3] = ["manifest", "=bWFuaWZlc3Q", "=c2hhMjU2"];

/// What an image says. More is in the sets than annotations and variables; none of these is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// Its id.
    pub(super) id: String,
    /// `name=value` each, of all of its manifests.
    pub(super) annotations: BTreeSet<String>,
    /// `NAME=value` each.
    pub(super) environment: BTreeSet<String>,
}

/// The places in which an engine's files may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    /// The directory with the container's configuration.
    pub(super) bundle: &'a Path,
    /// Its root directory.
    pub(super) root: Option<&'a Path>,
    /// The sources of its mounts.
    pub(super) mounts: &'a [PathBuf],
}

/// The image of a container. `None`: no engine whose files are known has an image for it.
pub(super) fn find(id: &str, places: Places<'_>) -> Result<Option<Image>, Error> {
    if let Some(image) = stored(id, places)? {
        return Ok(Some(image));
    }
    docker(id, places)
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    image: String,
}

#[derive(Deserialize)]
struct OfDocker {
    #[serde(rename = "Image", default)]
    image: String,
}

impl Image {
    /// Adds all words of a document. False if there is no such file.
    fn add(&mut self, file: &Path) -> Result<bool, Error> {
        let Some(text) = open(file)? else { return Ok(false) };
        let bytes = contents(&file.display().to_string(), text)?;
        let failed = |source| Error::Parse { what: file.display().to_string(), source };
        let mut document = serde_json::Deserializer::from_slice(&bytes);
        Words(self).deserialize(&mut document).map_err(failed)?;
        document.end().map_err(failed)?;
        Ok(true)
    }

    fn unreadable(id: &str, directory: &Path) -> Error {
        Error::Image { id: id.to_owned(), directory: directory.to_owned() }
    }
}

/// Reads every pair and every item of a list that are text, at any depth: engines written in Go accept keys in any case, and
/// keys that are repeated. Returns the value, if it is text.
struct Words<'a>(&'a mut Image);

impl<'de> DeserializeSeed<'de> for Words<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<String>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Words<'_> {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value of JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<Option<String>, E> {
        Ok(Some(text.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Option<String>, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Option<String>, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Option<String>, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Option<String>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Option<String>, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<String>, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if let Some(value) = map.next_value_seed(Words(self.0))? {
                self.0.annotations.insert(format!("{name}={value}"));
            }
        }
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Option<String>, A::Error> {
        while let Some(item) = list.next_element_seed(Words(self.0))? {
            self.0.environment.extend(item);
        }
        Ok(None)
    }
}

/// From containers/storage: `GRAPHROOT/DRIVER-containers` and `GRAPHROOT/DRIVER-images/IMAGE`.
fn stored(id: &str, places: Places<'_>) -> Result<Option<Image>, Error> {
    let stores = stores(places);
    for file in
        stores.iter().flat_map(|(root, driver)| LISTS.map(|list| root.join(format!("{driver}-containers")).join(list)))
    {
        let listed: Vec<Listed> = read(&file)?.unwrap_or_default();
        let Some(container) = listed.into_iter().find(|listed| listed.id == id) else { continue };
        if container.image.is_empty() {
            return Ok(None);
        }
        let directories =
            stores.iter().map(|(root, driver)| root.join(format!("{driver}-images")).join(&container.image));
        let Some(directory) = directories.into_iter().find(|directory| directory.is_dir()) else {
            return Err(Image::unreadable(&container.image, &file));
        };
        return image(&container.image, &directory).map(Some);
    }
    Ok(None)
}

/// The graph roots, each with the name of its driver. The bundle is in `GRAPHROOT/DRIVER-containers/ID/userdata`, the root
/// directory below `GRAPHROOT/DRIVER`.
fn stores(places: Places<'_>) -> BTreeSet<(PathBuf, String)> {
    let parts = |path: &Path| Some((path.parent()?.to_owned(), path.file_name()?.to_str()?.to_owned()));
    let of_bundle = places.bundle.ancestors().filter_map(parts).filter_map(|(root, name)| {
        let driver = name.strip_suffix("-containers")?.to_owned();
        Some((root, driver))
    });
    let of_root = places.root.into_iter().flat_map(Path::ancestors).filter_map(parts);
    of_bundle.chain(of_root).collect()
}

/// Reads all manifests and configurations. The other files, such as signatures, may be something else.
fn image(id: &str, directory: &Path) -> Result<Image, Error> {
    let failed = |_error| Image::unreadable(id, directory);
    let mut found = false;
    let mut image = Image { id: id.to_owned(), ..Image::default() };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let is_document = DOCUMENTS.iter().any(|start| name.as_bytes().starts_with(start.as_bytes()));
        match image.add(&entry.path()) {
            Ok(is_there) => found |= is_there && is_document,
            Err(Error::Parse { .. }) if !is_document => {}
            Err(error) => return Err(error),
        }
    }
    if found { Ok(image) } else { Err(Image::unreadable(id, directory)) }
}

/// From Docker: `ROOT/containers/ID/config.v2.json` and `ROOT/image/DRIVER/imagedb/content/sha256/IMAGE`. Docker passes no
/// annotations of images on.
fn docker(id: &str, places: Places<'_>) -> Result<Option<Image>, Error> {
    let named = places.root.into_iter().chain(places.mounts.iter().map(PathBuf::as_path));
    let roots: BTreeSet<_> = named.flat_map(Path::ancestors).collect();
    for root in roots {
        let container = root.join("containers").join(id).join("config.v2.json");
        let Some(OfDocker { image }) = read(&container)? else { continue };
        let digest = image.strip_prefix("sha256:").unwrap_or(&image);
        let drivers = fs::read_dir(root.join("image")).into_iter().flatten().flatten();
        for driver in drivers {
            let mut found = Image { id: image.clone(), ..Image::default() };
            if found.add(&driver.path().join("imagedb/content/sha256").join(digest))? {
                return Ok(Some(found));
            }
        }
        return Err(Image::unreadable(&image, &root.join("image")));
    }
    Ok(None)
}

/// Reads a document; `None` if there is no such file.
fn read<T: DeserializeOwned>(file: &Path) -> Result<Option<T>, Error> {
    open(file)?.map(|input| parse(&file.display().to_string(), input)).transpose()
}

fn open(file: &Path) -> Result<Option<File>, Error> {
    match File::open(file) {
        Ok(input) => Ok(Some(input)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(Error::Read { what: file.display().to_string(), source }),
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeSeed as _;

    use super::{Image, Words};

    #[test]
    fn words_are_found_however_they_are_written() {
        let text = r#"{"schemaVersion": 2, "ANNOTATIONS": {"steer.\u0070olicy": "a"}, "annotations": {"steer.policy": "b"},
            "annotations": null, "config": {"env": ["STEER_DNS=c", 1.5], "Env": []}, "x": true}"#;
        let mut image = Image::default();
        Words(&mut image).deserialize(&mut serde_json::Deserializer::from_str(text)).expect("read");
        assert!(
            image.annotations.contains("steer.policy=a") && image.annotations.contains("steer.policy=b"),
            "{image:?}"
        );
        assert!(image.environment.contains("STEER_DNS=c"), "{image:?}");
    }
}
