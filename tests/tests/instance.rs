//! Instances of steer and what is theirs: the pin directory, the socket, the policies until the next boot, and the daemon.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, chown, symlink},
    path::Path,
};

use anyhow::{Context as _, ensure};
use steer_tests::{Bed, NOBODY, Outcome};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("a_pin_directory_that_others_may_enter", a_pin_directory_that_others_may_enter)];

fn make(pins: &Path, mode: u32) -> std::io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(pins)?;
    fs::set_permissions(pins, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// On a bpffs where everybody may create directories, another user may be first.
fn a_pin_directory_that_others_may_enter() -> Outcome {
    type State = fn(&Path) -> std::io::Result<()>;
    let states: [(State, &str); 4] = [
        (|pins| make(pins, 0o755), "has mode 0755"),
        (|pins| make(pins, 0o777), "has mode 0777"),
        (|pins| make(pins, 0o700).and_then(|()| chown(pins, Some(NOBODY.0), Some(NOBODY.1))), "belongs to user 65534"),
        (|pins| symlink("/sys/fs/bpf", pins), "is a symbolic link"),
    ];
    let bed = Bed::new("pins-of-others")?;
    bed.write_config("# no policy\n")?;
    let (cgroup, config) = (bed.cgroup.path(), bed.config_file().to_string_lossy().into_owned());
    let commands: [&[&str]; 9] = [
        &["attach", cgroup, "-i", "a1"],
        &["detach", cgroup],
        &["exec", "-i", "a1", "--", "true"],
        &["daemon", "--config", &config],
        &["status"],
        &["events"],
        &["top", "--count", "1"],
        &["explain", cgroup],
        &["off"],
    ];
    for (make, what) in states {
        make(&bed.pins).context(what)?;
        let before = fs::symlink_metadata(&bed.pins)?;
        for command in commands {
            let refused = bed.run(command)?;
            ensure!(refused.code != 0 && refused.stderr.contains(what), "{what}: {command:?}: {refused:?}");
        }
        let after = fs::symlink_metadata(&bed.pins)?;
        ensure!(before.modified()? == after.modified()?, "{what}: something was written");
        let finding = bed.only_finding("bpffs")?;
        ensure!(finding.text("what").contains(what), "{finding:?}");
        ensure!(bed.repair(&finding)?, "{finding:?}");
        bed.succeed(&["attach", cgroup, "-i", "a1"])?;
        bed.check_steered(&bed.cgroup, 1)?;
        bed.succeed(&["off"])?;
    }
    Ok(())
}
