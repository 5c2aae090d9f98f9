//! A writer of the archive that the kernel unpacks as its first file system: cpio, format "newc".
//!
//! **Invariant**: every directory is written once, before its contents; root owns all files.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
/// The name that ends the archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Adds a directory and its parents. The path is absolute.
    pub(super) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for directory in ends.map(|end| &path[..end]).filter(|directory| !directory.is_empty()) {
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, DIRECTORY | 0o755, &[]);
            }
        }
    }

    /// Adds an executable file and its parent directories. The path is absolute.
    pub(super) fn file(&mut self, path: &str, data: &[u8]) {
        let path = path.trim_start_matches('/');
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory);
        }
        self.entry(path, REGULAR | 0o755, data);
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("an initramfs holds no file of 4 GiB");
        let name_length = length(name.as_bytes()) + 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of name, checksum
        let words = [self.entries, mode, 0, 0, 1, 0, length(data), 0, 0, 0, 0, name_length, 0];
        self.bytes.extend(b"070701");
        for word in words {
            self.bytes.extend(format!("{word:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    /// Aligns names and data to four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_first_and_once() {
        let mut archive = Archive::default();
        archive.file("/usr/lib/a", b"12345");
        archive.file("/usr/lib/b", b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).expect("an archive of text is text");
        let names: Vec<_> = ["\0a", "usr\0", "usr/lib\0", "usr/lib/a\0", "usr/lib/b\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.matches(name).count())
            .collect();
        assert_eq!(names, [0, 1, 1, 1, 1, 1]);
        assert!(text.find("usr/lib\0") < text.find("usr/lib/a\0"));
        assert!(text.contains("usr/lib/a\x0012345"), "110 bytes of header and 10 of name end at a multiple of four");
    }
}
