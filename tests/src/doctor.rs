//! `steer doctor` on a bed, and the fixes that it prints.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{Bed, Output, binary, output, replace_file};

/// Files of the machine that the doctor reads, with the content of a healthy machine, by their names in the bed.
const MACHINE: [(&str, &str, &str); 2] = [
    ("/etc/resolv.conf", "resolv.conf", "nameserver 203.0.113.53\n"),
    ("/etc/nsswitch.conf", "nsswitch.conf", "hosts: files dns\n"),
];
/// A directory of the machine; it is empty on a healthy machine.
const RUN: (&str, &str) = ("/run", "run");

/// The report of a doctor.
#[derive(Debug)]
pub struct Examination {
    /// Exit status.
    pub code: i32,
    /// The whole report.
    pub json: Value,
    /// Its findings, without those that depend on this machine alone.
    pub findings: Vec<Finding>,
}

/// One finding.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its check.
    pub id: String,
    /// The whole finding.
    pub json: Value,
}

impl Finding {
    /// A text field of it, such as "what".
    pub fn text(&self, field: &str) -> &str {
        self.json[field].as_str().unwrap_or_default()
    }

    /// The command that repairs it.
    pub fn command(&self) -> anyhow::Result<&str> {
        self.json["fix"]["command"].as_str().with_context(|| format!("no command: {}", self.json))
    }

    /// The other ways to repair it.
    pub fn advice(&self) -> anyhow::Result<&str> {
        self.json["fix"]["advice"].as_str().with_context(|| format!("no advice: {}", self.json))
    }
}

impl Bed {
    /// The doctor's command line for steer on this bed.
    pub fn steer_words(&self) -> String {
        format!("steer --bpffs {} --socket {}", self.pins.display(), self.socket().display())
    }

    /// The bed's replacement for a file of the machine.
    pub fn machine_file(&self, name: &str) -> std::path::PathBuf {
        self.directory.join(name)
    }

    /// Makes a command see a healthy machine, with the changes of the test, in the client's network namespace.
    fn on_a_healthy_machine(&self, mut command: Command) -> anyhow::Result<Command> {
        for (path, name, healthy) in MACHINE {
            let file = self.machine_file(name);
            if !file.exists() {
                fs::write(&file, healthy)?;
            }
            replace_file(&mut command, Path::new(path), &file);
        }
        let (path, name) = RUN;
        fs::create_dir_all(self.machine_file(name))?;
        replace_file(&mut command, Path::new(path), &self.machine_file(name));
        self.net.client.enter(&mut command);
        Ok(command)
    }

    /// `steer doctor` with the bed's configuration, which is empty unless it was written, and more arguments.
    pub fn doctor_text(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        if !self.config_file().exists() {
            self.write_config("")?;
        }
        let mut command = self.steer_here(&["doctor", "--config"]);
        command.arg(self.config_file()).args(arguments);
        output(&mut self.on_a_healthy_machine(command)?)
    }

    /// The same with `--json`, parsed.
    pub fn doctor(&self, arguments: &[&str]) -> anyhow::Result<Examination> {
        let said = self.doctor_text(&[&["--json"], arguments].concat())?;
        let json: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
        let findings = json["findings"].as_array().context("no findings")?.iter().map(|finding| Finding {
            id: finding["id"].as_str().unwrap_or_default().to_owned(),
            json: finding.clone(),
        });
        // Findings about this kernel, and about programs that others have attached to all cgroups.
        let is_the_machines = |finding: &Finding| {
            matches!(&*finding.id, "lsm-bpf") || finding.json["subject"] == serde_json::json!({ "cgroup": "/" })
        };
        let (machines, findings): (Vec<_>, Vec<_>) = findings.partition(is_the_machines);
        // The machine's findings alone make no difference to the status here.
        let alone = !machines.is_empty() && findings.iter().all(|finding: &Finding| finding.text("severity") == "info");
        let warns = machines.iter().any(|finding| finding.text("severity") != "info");
        ensure!(!warns || said.code == 1, "exit status {} with {machines:?}", said.code);
        let code = if alone && warns { 0 } else { said.code };
        Ok(Examination { code, json, findings })
    }

    /// Checks that this fault is the only finding.
    pub fn only_finding(&self, id: &str) -> anyhow::Result<Finding> {
        let said = self.doctor(&[])?;
        let [finding] = &said.findings[..] else { anyhow::bail!("expected only {id}, found {:#?}", said.findings) };
        ensure!(finding.id == id, "not {id}: {finding:#?}");
        let code = i32::from(finding.text("severity") != "info");
        ensure!(said.code == code, "exit status {}: {finding:#?}", said.code);
        for field in ["what", "why"] {
            ensure!(!finding.text(field).is_empty(), "no {field}: {finding:#?}");
        }
        Ok(finding.clone())
    }

    /// Checks that there are no findings.
    pub fn is_healthy(&self) -> anyhow::Result<()> {
        let said = self.doctor(&[])?;
        ensure!(said.findings.is_empty(), "{:#?}", said.findings);
        ensure!(said.code == 0, "exit status {}", said.code);
        Ok(())
    }

    /// Runs the command that repairs a finding, as a user would. Returns false if the machine lacks the program.
    pub fn repair(&self, finding: &Finding) -> anyhow::Result<bool> {
        self.run_in_a_shell(finding.command()?)
    }

    /// Runs a command as printed, with the `steer` under test. Returns false if the machine lacks the program.
    pub fn run_in_a_shell(&self, line: &str) -> anyhow::Result<bool> {
        let steer = binary("STEER_BIN", "steer");
        let mut path = OsString::from(steer.parent().context("no directory")?);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).env("PATH", path).stdin(Stdio::null());
        let ran = output(&mut self.on_a_healthy_machine(shell)?)?;
        if ran.code == 127 {
            eprintln!("not tried, the program is not installed: {line}");
            return Ok(false);
        }
        ensure!(ran.code == 0, "{line}: {ran:?}");
        Ok(true)
    }
}
