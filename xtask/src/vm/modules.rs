//! The kernel modules that a guest must load, with all of their dependencies, in the order in which they load.
//!
//! **Invariant**: only a kernel's own directory of modules is read. A module that is not there counts as built in, which cannot be
//! verified. A dependency of a module is itself a module, so it must be there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// A module, ready for init_module(2).
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) image: Vec<u8>,
}

/// The modules of one kernel.
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Reads a directory such as `/lib/modules/6.1.0-1-amd64`.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        walk(&directory.join("kernel"), &mut files)?;
        Ok(Self { files })
    }

    /// These modules and their dependencies, each after its dependencies, without built-in ones.
    pub(super) fn with_dependencies(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut loaded = Vec::new();
        for name in names.iter().filter(|name| self.files.contains_key(**name)) {
            self.add(name, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn add(&self, name: &str, loaded: &mut Vec<Module>) -> Result<()> {
        if loaded.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let path = self.files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
        let image = unpack(path)?;
        for dependency in dependencies(&image) {
            self.add(&dependency, loaded)?;
        }
        loaded.push(Module { name: name.to_owned(), image });
        Ok(())
    }
}

fn walk(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The module's name, such as `af_packet` for `kernel/net/packet/af-packet.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let (name, compression) = path.file_name()?.to_str()?.split_once(".ko")?;
    ["", ".xz", ".gz", ".zst"].contains(&compression).then(|| name.replace('-', "_"))
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let program: &[&str] = match path.extension().and_then(|extension| extension.to_str()) {
        // Busybox is required anyway, and supports these two formats.
        Some("xz") => &["busybox", "xzcat"],
        Some("gz") => &["busybox", "zcat"],
        Some("zst") => &["zstd", "-dc"],
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    let output = Command::new(program[0]).args(&program[1..]).arg(path).output();
    let output = output.with_context(|| format!("start {}", program[0]))?;
    ensure!(output.status.success(), "unpack {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// Reads the dependencies from a module's image: `depends=a,b` among strings that end with NUL.
fn dependencies(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value: Vec<u8> = image[start + KEY.len()..].iter().copied().take_while(|&byte| byte != 0).collect();
    let value = String::from_utf8_lossy(&value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dependencies_are_read() {
        for (path, name) in [
            ("kernel/drivers/net/veth.ko", Some("veth")),
            ("kernel/lib/libcrc32c.ko.xz", Some("libcrc32c")),
            ("kernel/net/nf-tables.ko.zst", Some("nf_tables")),
            ("modules.order", None),
            ("kernel/veth.ko.dbg", None),
        ] {
            assert_eq!(module_name(Path::new(path)).as_deref(), name, "{path}");
        }
        assert_eq!(dependencies(b"\x7fELF\0license=GPL\0depends=udp_tunnel,ip6-udp\0x"), ["udp_tunnel", "ip6_udp"]);
        assert!(dependencies(b"\0depends=\0retpoline=Y\0").is_empty());
    }
}
