//! The cgroup2 hierarchy: where it is mounted, and its cgroups by path and by id.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use super::Error;
use crate::{
    host::mount::private_mount,
    model::cgroup_path::{CgroupPath, below_mount},
};

/// A mounted cgroup2 hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    /// Its root directory, through `/proc/self/fd` when the mount is private.
    root: PathBuf,
    /// The open root directory.
    root_fd: OwnedFd,
    /// The mount that this process made, which ends with this descriptor.
    _private: Option<OwnedFd>,
}

/// A cgroup, held open.
#[derive(Debug)]
pub struct Cgroup {
    /// Its path.
    pub path: CgroupPath,
    /// Its id: the inode number of its directory (64-bit kernels, Linux 5.5), which is never reused.
    pub id: u64,
    directory: fs::File,
}

impl Cgroup {
    /// Its directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Whether it has no child cgroups. False if this cannot be read.
    pub fn is_leaf(&self) -> bool {
        self.directory.metadata().is_ok_and(|metadata| is_leaf(&metadata))
    }
}

/// A cgroup's directory has a link for each cgroup in it.
pub(super) fn is_leaf(directory: &fs::Metadata) -> bool {
    directory.nlink() <= 2
}

/// A cgroup found in a walk of the hierarchy.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its path.
    pub path: CgroupPath,
    /// Its id.
    pub id: u64,
}

impl Hierarchy {
    /// Finds the mount. If none is visible, as under `ip netns exec`, mounts the hierarchy for this process only.
    pub fn find() -> Result<Self, Error> {
        let mountinfo = PathBuf::from("/proc/self/mountinfo");
        let text =
            fs::read_to_string(&mountinfo).map_err(|source| Error::File { action: "read", file: mountinfo, source })?;
        if let Some(root) = mount_point(&text) {
            let directory =
                fs::File::open(&root).map_err(|source| Error::File { action: "open", file: root.clone(), source })?;
            return Ok(Self { root, root_fd: directory.into(), _private: None });
        }
        let mount = private_mount(c"cgroup2").map_err(Error::NoHierarchy)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}/", mount.as_raw_fd()));
        // open_by_handle_at(2) accepts no O_PATH descriptor, such as that of the mount.
        let directory =
            fs::File::open(&root).map_err(|source| Error::File { action: "open", file: root.clone(), source })?;
        Ok(Self { root, root_fd: directory.into(), _private: Some(mount) })
    }

    /// The directory of a cgroup.
    pub fn directory(&self, path: &CgroupPath) -> PathBuf {
        self.root.join(path.relative())
    }

    /// The path of a cgroup as given by the user: `/a/b` from the root, or its directory.
    pub fn parse(&self, text: &str) -> Result<CgroupPath, Error> {
        let path: CgroupPath = text.parse()?;
        Ok(match Path::new(path.as_str()).strip_prefix(&self.root) {
            Ok(below) => format!("/{}", below.display()).parse()?,
            Err(_) => below_mount(path.as_str()).parse()?,
        })
    }

    /// Opens a cgroup.
    pub fn open(&self, path: &CgroupPath) -> Result<Cgroup, Error> {
        let file = self.directory(path);
        let directory = match fs::File::open(&file) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Missing { path: path.clone(), file });
            }
            Err(source) => return Err(Error::File { action: "open", file, source }),
        };
        let metadata =
            directory.metadata().map_err(|source| Error::File { action: "read", file: file.clone(), source })?;
        if !metadata.is_dir() {
            return Err(Error::Missing { path: path.clone(), file });
        }
        Ok(Cgroup { path: path.clone(), id: metadata.ino(), directory })
    }

    /// The id of a cgroup.
    pub fn id(&self, path: &CgroupPath) -> Result<u64, Error> {
        let file = self.directory(path);
        match fs::metadata(&file) {
            Ok(metadata) if metadata.is_dir() => Ok(metadata.ino()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { action: "read", file, source: error })
            }
            _ => Err(Error::Missing { path: path.clone(), file }),
        }
    }

    /// The length of the path of the root.
    pub(super) fn root_bytes(&self) -> usize {
        self.root.as_os_str().len()
    }

    /// The path of the cgroup with this id; `None` if it is gone.
    pub fn path_of(&self, id: u64) -> Option<CgroupPath> {
        let directory = match open_by_id(self.root_fd.as_fd(), id) {
            Ok(directory) => directory,
            // Without CAP_DAC_READ_SEARCH, search the hierarchy.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let found = self.descendants(&CgroupPath::root()).ok()?;
                return found.into_iter().find(|found| found.id == id).map(|found| found.path);
            }
            Err(_) => return None,
        };
        let link = |fd: BorrowedFd<'_>| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        let (path, root) = (link(directory.as_fd())?, link(self.root_fd.as_fd())?);
        format!("/{}", path.strip_prefix(root).ok()?.display()).parse().ok()
    }

    /// Whether the cgroup with this id has been removed. The kernel may detach its programs later.
    pub fn is_gone(&self, id: u64) -> bool {
        match open_by_id(self.root_fd.as_fd(), id) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.path_of(id).is_none(),
            Err(error) => error.raw_os_error() == Some(libc::ESTALE),
        }
    }

    /// The cgroup the calling process is in.
    pub fn own(&self) -> Result<CgroupPath, Error> {
        Self::of("self")
    }

    /// As [`Self::own`], also where no hierarchy is mounted.
    pub fn of_caller() -> Result<CgroupPath, Error> {
        Self::of("self")
    }

    /// The cgroup that a process is in.
    pub fn of_process(&self, pid: u32) -> Result<CgroupPath, Error> {
        Self::of(&pid.to_string())
    }

    fn of(process: &str) -> Result<CgroupPath, Error> {
        let file = Path::new("/proc").join(process).join("cgroup");
        let text =
            fs::read_to_string(&file).map_err(|source| Error::File { action: "read", file: file.clone(), source })?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        Ok(path.parse()?)
    }

    /// The cgroup of the systemd unit of the calling process.
    pub fn own_unit(&self, unit: &str) -> Result<CgroupPath, Error> {
        let own = self.own()?;
        own.of_unit(unit).ok_or_else(|| Error::NotInUnit { own, unit: unit.to_owned() })
    }
}

/// The mount point of the whole cgroup2 hierarchy in a mountinfo(5) text. The last mount hides earlier ones.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().rev().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (filesystem.split(' ').next() == Some("cgroup2") && root == "/").then(|| PathBuf::from(unescape(point)))
    })
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// Opens a cgroup by its id: kernfs accepts the id as a file handle (`FILEID_KERNFS`, Linux 5.5).
fn open_by_id(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    const FILEID_KERNFS: i32 = 0xfe;
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: `Handle` has the layout of `struct file_handle` with eight bytes of handle.
    let fd =
        unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), libc::O_PATH | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::mount_point;

    const UNIFIED: &str = "25 30 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    const HYBRID: &str = "30 29 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
40 30 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn finds_the_mount() {
        let cases = [
            ("unified", UNIFIED, Some("/sys/fs/cgroup")),
            ("hybrid", HYBRID, Some("/sys/fs/cgroup/unified")),
            ("only a part of the hierarchy", "25 30 0:23 /a /mnt rw - cgroup2 cgroup2 rw", None),
            ("space in the path", "25 30 0:23 / /a\\040b rw - cgroup2 cgroup2 rw", Some("/a b")),
            ("none", "25 30 0:23 / /sys rw - sysfs sysfs rw", None),
        ];
        for (name, mountinfo, want) in cases {
            assert_eq!(mount_point(mountinfo).as_deref(), want.map(std::path::Path::new), "{name}");
        }
    }
}
