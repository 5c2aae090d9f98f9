//! Files that several processes write: replaced as a whole, and locked.
//!
//! **Invariant:** a file is either the old or the new one, even if its writer is killed or the power fails.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::mpsc,
    thread,
    time::Instant,
};

use nix::fcntl::{Flock, FlockArg};

/// Larger files are not read, in bytes.
const MOST: u64 = 16 << 20;

/// Reads a text. Fails if it is no regular file, which could let the reader wait without end, or is larger than 16 MiB.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let file = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file; expected one"));
    }
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16 MiB; expected a smaller file"));
    }
    Ok(text)
}

/// Writes a new file next to the old one, and renames it over the old one when it is on the disk. Creates the directory.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    // A killed writer may have left it. `lock` orders the writers.
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync(directory)
}

/// Removes a file, also from the disk. It is no error if there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync(path.parent().unwrap_or(Path::new("/")))),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

/// Locks a file or directory by flock(2). Waits in the kernel's queue, which is first come, first served. `None`: not locked
/// before `deadline`.
pub(crate) fn lock_until(file: fs::File, deadline: Instant) -> Option<nix::Result<Flock<fs::File>>> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((file, nix::Error::EWOULDBLOCK)) => file,
        Ok(flock) => return Some(Ok(flock)),
        Err((_, errno)) => return Some(Err(errno)),
    };
    // Only a signal ends the wait early, so another thread waits. If it gets the lock too late, it releases it at once.
    let (locked, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut waiting = file;
        let flock = loop {
            match Flock::lock(waiting, FlockArg::LockExclusive) {
                Err((file, nix::Error::EINTR)) => waiting = file,
                flock => break flock.map_err(|(_, errno)| errno),
            }
        };
        drop(locked.send(flock));
    });
    receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}
