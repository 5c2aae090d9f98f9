//! Starting cargo and other programs, and reading from cargo what it built.
//!
//! **Invariant**: the path of a built file is what cargo reports, never a guess about its target directory.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// An executable that cargo built.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The name of the target: a binary's name, or a test's file stem.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The directory of the package, in which cargo starts tests.
    pub(crate) package_dir: PathBuf,
    pub(crate) is_test: bool,
}

/// The packages that run on the host. Every build that is not optimised selects these: cargo compiles a dependency with the
/// features that the selected packages need, and again for another selection.
pub(crate) const HOST: [&str; 3] = ["--workspace", "--exclude", "steer-ebpf"];

/// The packages of the optimised programs. Every optimised build selects these, for the same reason.
const OPTIMISED: [&str; 6] = ["--package", "steer", "--package", "steer-bench", "--package", "steer-lab"];

/// The programs that the integration tests start.
pub(crate) const TESTED: [&str; 8] =
    ["--bin", "steer", "--bin", "steer-probe", "--bin", "steer-escape", "--bin", "steer-demo"];

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the xtask package lies in a directory of the workspace")
}

/// The cargo that started xtask, at the root of the workspace.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs a command to its end. Any status but success is an error that shows the command line.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", display(command)))?;
    ensure!(status.success(), "`{}` failed: {status}", display(command));
    Ok(())
}

/// Runs a cargo build (`build ...` or `test --no-run ...`) and returns its executables.
pub(crate) fn build(args: &[&str]) -> Result<Vec<Executable>> {
    let messages = messages(cargo([]).args(args))?;
    Ok(messages.iter().filter_map(|message| executable(message)).collect())
}

/// Runs a cargo build and returns its messages.
fn messages(command: &mut Command) -> Result<Vec<String>> {
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {}", display(command)))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let messages: std::io::Result<Vec<_>> = BufReader::new(stdout).lines().collect();
    let status = child.wait().context("wait for cargo")?;
    ensure!(status.success(), "`{}` failed: {status}", display(command));
    messages.context("read cargo's messages")
}

/// What a build for another target leaves.
pub(crate) struct Built {
    pub(crate) executables: Vec<Executable>,
    /// The output of the agent's build script.
    pub(crate) agent_out: Option<PathBuf>,
}

/// Builds these targets of the optimised programs' packages for a target of rustup, with these further arguments, after `prepare` has set
/// variables.
pub(crate) fn build_for(args: &[&str], target: &str, prepare: impl FnOnce(&mut Command)) -> Result<Built> {
    let mut command = command_for(args, target, prepare);
    let messages = messages(&mut command)?;
    let agent_out = messages.iter().filter_map(|message| build_script_of_agent(message)).next_back();
    Ok(Built { executables: messages.iter().filter_map(|message| executable(message)).collect(), agent_out })
}

/// The command of [`build_for`].
pub(crate) fn command_for(args: &[&str], target: &str, prepare: impl FnOnce(&mut Command)) -> Command {
    let mut command = cargo(["build", "--target", target]);
    prepare(command.args(OPTIMISED).args(args));
    command
}

/// Builds the integration tests and the programs that they start for a target of rustup, after `prepare` has set variables.
pub(crate) fn tested_for(target: &str, prepare: impl FnOnce(&mut Command)) -> Result<Vec<Executable>> {
    let mut command = cargo(["build", "--target", target, "--test", "steer"]);
    prepare(command.args(HOST).args(TESTED));
    Ok(messages(&mut command)?.iter().filter_map(|message| executable(message)).collect())
}

/// Builds the agent for this machine's tests, and returns the directory with the objects of the kernel side.
pub(crate) fn kernel_objects() -> Result<PathBuf> {
    let messages = messages(cargo(["build", "--bin", "steer"]).args(HOST))?;
    let built = messages.iter().filter_map(|message| build_script_of_agent(message)).next_back();
    built.context("cargo did not report the agent's build script")
}

/// Builds these targets in release mode, such as `--bin steer`, and returns the executables.
pub(crate) fn release(targets: &[&str]) -> Result<Vec<Executable>> {
    build(&[&["build", "--release"], &OPTIMISED[..], targets].concat())
}

/// Builds these targets of the workspace for tests: not optimised, but for what reads BTF.
pub(crate) fn programs(targets: &[&str]) -> Result<Vec<Executable>> {
    build(&[&["build"], &HOST[..], targets].concat())
}

/// Builds all tests.
pub(crate) fn tests() -> Result<Vec<Executable>> {
    build(&[&["test", "--no-run"], &HOST[..]].concat())
}

/// Builds only the integration tests.
pub(crate) fn integration_tests() -> Result<Executable> {
    let built = build(&[&["test", "--no-run"], &HOST[..], &["--test", "steer"]].concat())?;
    built.into_iter().find(|executable| executable.is_test).context("cargo built the tests without reporting them")
}

/// The binary of this name among the executables.
pub(crate) fn binary(built: &[Executable], name: &str) -> Result<PathBuf> {
    let found = built.iter().find(|executable| !executable.is_test && executable.name == name);
    Ok(found.with_context(|| format!("cargo built no binary {name}"))?.path.clone())
}

/// Cargo's target directory.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let mut command = cargo(["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("start {}", display(&command)))?;
    ensure!(output.status.success(), "`{}` failed: {}", display(&command), output.status);
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo's metadata")?;
    let directory = metadata.get("target_directory").and_then(Value::as_str);
    Ok(directory.context("cargo's metadata names no target directory")?.into())
}

/// Parses one of cargo's JSON messages. `None` for messages that report no executable.
fn executable(message: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(message).ok()?;
    let text = |pointer| message.pointer(pointer)?.as_str();
    if text("/reason")? != "compiler-artifact" {
        return None;
    }
    Some(Executable {
        name: text("/target/name")?.to_owned(),
        path: text("/executable")?.into(),
        package_dir: Path::new(text("/manifest_path")?).parent()?.to_owned(),
        is_test: message.pointer("/profile/test")?.as_bool()?,
    })
}

/// Parses one of cargo's JSON messages. The output directory, if it reports that the agent's build script ran.
fn build_script_of_agent(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let text = |key: &str| message.get(key)?.as_str();
    let is_agent = text("reason")? == "build-script-executed" && text("package_id")?.contains("/agent#");
    is_agent.then(|| text("out_dir").map(PathBuf::from))?
}

/// A command line in the form of a shell, for messages.
pub(crate) fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_artifacts_are_taken() {
        let binary = r#"{"reason":"compiler-artifact","manifest_path":"/w/agent/Cargo.toml",
            "target":{"name":"steer"},"profile":{"test":false},"executable":"/t/release/steer"}"#;
        let expected = Executable {
            name: "steer".into(),
            path: "/t/release/steer".into(),
            package_dir: "/w/agent".into(),
            is_test: false,
        };
        assert_eq!(executable(binary), Some(expected));

        let library = binary.replace("\"/t/release/steer\"", "null");
        assert_eq!(executable(&library), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable("not JSON"), None);
    }
}
