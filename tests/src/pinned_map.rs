//! Direct access to a pinned map of steer, without steer's knowledge.

use std::{
    ffi::{CString, c_void},
    fs, io,
    num::NonZero,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::NonNull,
};

use anyhow::Context as _;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::{Bed, foreign::bpf};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_GET: libc::c_long = 7;

/// A map whose values are `N` opaque bytes.
pub struct PinnedMap<const N: usize>(OwnedFd);

#[repr(C)]
#[derive(Default)]
struct Pin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Opens the object that is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> anyhow::Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let pin = Pin { pathname: text.as_ptr() as u64, ..Pin::default() };
    let fd = bpf(BPF_OBJ_GET, &pin).with_context(|| format!("open {}", path.display()))?;
    // SAFETY: a new file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl<const N: usize> PinnedMap<N> {
    /// Opens a map of the version under test. Its values must be of `N` bytes.
    pub fn open(bed: &Bed, name: &str) -> anyhow::Result<Self> {
        let path = bed.abi().join("maps").join(name);
        let map = open_pin(&path)?;
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
        anyhow::ensure!(about.lines().any(|line| line == format!("value_size:\t{N}")), "{}: {about}", path.display());
        Ok(Self(map))
    }

    /// The value of an existing key.
    pub fn get(&self, key: &[u8]) -> io::Result<[u8; N]> {
        let mut value = [0; N];
        bpf(BPF_MAP_LOOKUP_ELEM, &self.element(key, value.as_mut_ptr() as u64))?;
        Ok(value)
    }

    /// Writes the value of a key.
    pub fn set(&self, key: &[u8], value: &[u8; N]) -> io::Result<()> {
        bpf(BPF_MAP_UPDATE_ELEM, &self.element(key, value.as_ptr() as u64)).map(drop)
    }

    fn element(&self, key: &[u8], value: u64) -> Element {
        let map_fd = self.0.as_raw_fd().cast_unsigned();
        Element { map_fd, key: key.as_ptr() as u64, value, ..Element::default() }
    }
}

/// The place in a pinned ring buffer up to which the kernel has written. It is read without taking a record.
pub struct RingPosition(NonNull<c_void>);

impl RingPosition {
    /// Opens a ring buffer of the version under test.
    pub fn open(bed: &Bed, name: &str) -> anyhow::Result<Self> {
        let ring = open_pin(&bed.abi().join("maps").join(name))?;
        // SAFETY: no pointers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let length = NonZero::new(usize::try_from(page)?).context("an empty page")?;
        // The second page begins with the position.
        // SAFETY: a new mapping, which only this value uses.
        let second = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, ring, page)? };
        Ok(Self(second))
    }

    /// The bytes written since the ring was made.
    pub fn bytes(&self) -> u64 {
        // SAFETY: the page begins with this word, which the kernel changes at any time.
        unsafe { self.0.cast::<u64>().read_volatile() }
    }
}
