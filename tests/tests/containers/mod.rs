//! Containers, with the runtimes that Debian packages. They use the uplink that they request, from before their first
//! instruction, or they do not start.

pub(crate) mod docker;
pub(crate) mod failures;
pub(crate) mod manifest;
pub(crate) mod many;
pub(crate) mod namespaces;
pub(crate) mod nri;
pub(crate) mod oci;
pub(crate) mod parent;
pub(crate) mod podman;
pub(crate) mod wrapped;

use steer_tests::{
    Bed,
    container::{Bundle, Host, Runtime, Ways, everything},
};

use crate::Test;

/// Two policies that only containers request, and an interface that they may request.
pub(crate) const CONFIG: &str = "\
    [containers]\npolicies = [\"vpn\", \"lan\"]\ninterfaces = [\"a1\", \"eth0\", \"eth1\"]\n\
    [[policy]]\nname = \"vpn\"\ninterface = \"a1\"\ncgroups = []\n\
    [[policy]]\nname = \"lan\"\ninterface = \"a0\"\ncgroups = []\n\
    [[policy]]\nname = \"kept\"\ninterface = \"a0\"\ncgroups = []\n";

/// A bed with this configuration. The caller makes the host of containers in it.
fn bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    bed.write_config(CONFIG)?;
    Ok(bed)
}

/// Runs a container that tries each way once, and removes it.
fn run_everything(
    host: &Host<'_>,
    runtime: &Runtime,
    bundle: Bundle<'_>,
    ways: Ways<'_>,
) -> anyhow::Result<steer_tests::Output> {
    runtime.run(host, &bundle.hooked(host).command(&everything(ways)))
}

/// A shell command.
fn shell(line: &str) -> Vec<String> {
    ["sh", "-c", line].map(str::to_owned).to_vec()
}

/// The same tests with each of the two runtimes.
macro_rules! with_both {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[
            $(
                (concat!("runc::", stringify!($name)), || $name("runc")),
                (concat!("crun::", stringify!($name)), || $name("crun")),
            )*
        ];
    };
}
use with_both;

/// All modules of these tests.
pub(crate) const MODULES: [(&str, &[Test]); 11] = [
    ("containers", oci::TESTS),
    ("containers", namespaces::TESTS),
    ("containers", parent::TESTS),
    ("containers", failures::TESTS),
    ("containers", many::TESTS),
    ("containers", wrapped::TESTS),
    ("containers", podman::TESTS),
    ("containers", docker::TESTS),
    ("containers", manifest::TESTS),
    ("containers::nri", nri::TESTS),
    ("containers::nri::deployed", nri::deployed::TESTS),
];
