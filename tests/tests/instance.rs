//! Instances of steer and what is theirs: the pin directory, the socket, the policies until the next boot, and the daemon.

use std::{
    fs,
    os::unix::{
        fs::{DirBuilderExt as _, chown, symlink},
        net::UnixListener,
    },
    path::Path,
    process::Command,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_tests::{Bed, Daemon, NOBODY, Outcome, binary, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_pin_directory_that_others_may_enter", a_pin_directory_that_others_may_enter),
    ("two_with_the_same_last_part", two_with_the_same_last_part),
    ("off_leaves_the_socket_of_another", off_leaves_the_socket_of_another),
    ("off_from_another_mount_namespace", off_from_another_mount_namespace),
];

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

/// The binary with the pin directory `same` in this directory, and with all that derives from it.
fn in_directory(bed: &Bed, directory: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("STEER_BIN", "steer"));
    command.arg("--bpffs").arg(bed.pins.join(directory).join("same")).args(arguments);
    bed.net.client.enter(&mut command);
    command
}

fn succeed(mut command: Command) -> anyhow::Result<String> {
    let ended = output(&mut command)?;
    ensure!(ended.code == 0, "{command:?}: {ended:?}");
    Ok(ended.stdout)
}

fn two_with_the_same_last_part() -> Outcome {
    let bed = Bed::new("instance-two")?;
    bed.write_config("# no policy\n")?;
    let config = bed.config_file().to_string_lossy().into_owned();
    let cgroups = ["one", "other"].map(|name| bed.cgroup.child(name));
    let mut daemons = Vec::new();
    for (uplink, cgroup) in ["a0", "a1"].into_iter().zip(&cgroups) {
        let path = cgroup.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?.path();
        daemons.push(Daemon::spawn(&bed, in_directory(&bed, uplink, &["daemon", "--config", &config]))?);
        let set = ["policy", "set", "p", "-i", uplink, "--cgroup", path, "--runtime", "--config", &config];
        succeed(in_directory(&bed, uplink, &set))?;
    }
    let [one, other] = cgroups;
    let (one, other) = (one?, other?);
    bed.check_steered(&one, 0)?;
    bed.check_steered(&other, 1)?;
    succeed(in_directory(&bed, "a0", &["off"]))?;
    bed.check_unsteered(Some(&one))?;
    bed.check_steered(&other, 1)?;
    let listed = succeed(in_directory(&bed, "a1", &["policy", "list", "--config", &config]))?;
    ensure!(listed.contains("memory") && daemons.pop().is_some_and(|mut daemon| daemon.is_running()), "{listed}");
    succeed(in_directory(&bed, "a1", &["off"]))?;
    ["a0", "a1"].iter().try_for_each(|directory| fs::remove_dir(bed.pins.join(directory)))?;
    Ok(())
}

/// As `ip netns exec` makes one, with a /sys of its own.
fn off_from_another_mount_namespace() -> Outcome {
    let bed = Bed::new("instance-off")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let own = bed.steer(&["off", "--forget"]);
    let mut command = Command::new("unshare");
    let script = "umount --lazy /sys && mount -t sysfs none /sys && exec \"$0\" \"$@\"";
    command.args(["--mount", "--propagation", "slave", "sh", "-c", script]);
    command.arg(own.get_program()).args(own.get_args());
    bed.net.client.enter(&mut command);
    let off = succeed(command)?;
    ensure!(off.contains("no longer steered:") && !bed.pins.exists(), "{off}");
    bed.check_unsteered(Some(&bed.cgroup))
}

fn off_leaves_the_socket_of_another() -> Outcome {
    let bed = Bed::new("instance-socket")?;
    let other = UnixListener::bind(bed.socket())?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.succeed(&["off"])?;
    ensure!(bed.socket().exists());
    drop(other);
    // A daemon replaces a socket at which nobody listens.
    let daemon = bed.daemon("# no policy\n")?;
    ensure!(bed.get("/v1/health")?["ok"] == true);
    daemon.end(Signal::SIGTERM)?;
    ensure!(!bed.socket().exists());
    Ok(())
}
