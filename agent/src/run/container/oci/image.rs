//! The annotations and variables of a container's image, from the files of its engine: containers/storage (Podman, CRI-O) or
//! Docker.
//!
//! Podman passes annotations of the image on, and all engines pass its variables on. A runtime's configuration does not show
//! their origin. The image is made by somebody else than the user who starts the container, so its word must not count.
//!
//! **Invariant:** an image that is known and cannot be read is an error, not an image that says nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{Error, parse};

/// The files in which containers/storage lists the containers. The second has those of `--rm`.
const LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];

/// What an image says.
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

/// A manifest or a configuration of an image.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    annotations: Option<BTreeMap<String, String>>,
    config: Option<Settings>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    #[serde(rename = "Env")]
    environment: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct OfDocker {
    #[serde(rename = "Image", default)]
    image: String,
}

impl Image {
    fn add(&mut self, document: Document) {
        let annotations = document.annotations.unwrap_or_default();
        self.annotations.extend(annotations.iter().map(|(name, value)| format!("{name}={value}")));
        self.environment.extend(document.config.unwrap_or_default().environment.unwrap_or_default());
    }

    fn unreadable(id: &str, directory: &Path) -> Error {
        Error::Image { id: id.to_owned(), directory: directory.to_owned() }
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

/// Reads all manifests and configurations. The other files, such as signatures, are no such documents.
fn image(id: &str, directory: &Path) -> Result<Image, Error> {
    let failed = |_error| Image::unreadable(id, directory);
    let mut found = false;
    let mut image = Image { id: id.to_owned(), ..Image::default() };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        match read::<Document>(&path) {
            Ok(Some(document)) => {
                found = true;
                image.add(document);
            }
            Ok(None) | Err(Error::Parse { .. }) => {}
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
            let file = driver.path().join("imagedb/content/sha256").join(digest);
            if let Some(document) = read(&file)? {
                let mut found = Image { id: image, ..Image::default() };
                found.add(document);
                return Ok(Some(found));
            }
        }
        return Err(Image::unreadable(&image, &root.join("image")));
    }
    Ok(None)
}

/// Reads a document; `None` if there is no such file.
fn read<T: DeserializeOwned>(file: &Path) -> Result<Option<T>, Error> {
    match fs::File::open(file) {
        Ok(input) => parse(&file.display().to_string(), input).map(Some),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(Error::Read { what: file.display().to_string(), source }),
    }
}
