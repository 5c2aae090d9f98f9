//! Other programs that mark packets with bits of steer's marks.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use steer_tests::{NotHere, Outcome, beside::Beside};

use super::{Run, check_back};

const ROUNDS: usize = 8;
const RULE: &str = "fwmark 0x1000000/0x1000000 lookup 51820";
/// Expressions that give a packet another mark, with bits of the default mask.
const MARKS: [&str; 4] = ["0x01000000", "0x81000000", "meta mark or 0x03000000", "meta mark and 0x00ffffff"];

pub(super) fn collide() -> Outcome {
    let mut beside = Beside::new("managers-marks")?;
    beside.steer(None)?;
    nft(&beside, "list ruleset")?;
    // A packet with the mark of another policy is led by that policy's table.
    beside.marks_change = true;
    let mut run = Run::start(beside)?;
    for _ in 0..ROUNDS {
        for family in ["-4", "-6"] {
            run.beside.bed.ip(&format!("{family} route replace default dev d0 table 51820"))?;
            run.beside.bed.ip(&format!("{family} rule add pref 100 {RULE}"))?;
            run.settle("a rule for a bit of the mask")?;
            let findings = run.beside.findings("mark-clash")?;
            ensure!(
                findings.len() == 1 && findings[0].to_string().contains("0x1000000/0x1000000 lookup 51820"),
                "{findings:?}"
            );
            // The other program also marks packets, of all sockets.
            for mark in MARKS {
                nft(
                    &run.beside,
                    &format!(
                        "add table inet other; add chain inet other out {{ type route hook output priority mangle; }}; add rule inet other out meta mark set {mark}"
                    ),
                )?;
                run.settle("packets with other marks")?;
                nft(&run.beside, "delete table inet other")?;
                run.settle("no other marks")?;
            }
            run.beside.bed.ip(&format!("{family} rule delete pref 100 {RULE}"))?;
            run.beside.bed.ip(&format!("{family} route flush table 51820"))?;
            run.settle("no rule")?;
        }
    }
    let (beside, repairs) = run.finish("Marks of others")?;
    check_back(&repairs)?;
    drop(beside);

    // With a mask that the other program leaves alone.
    let beside = Beside::new("managers-mask")?;
    beside.steer(Some(0x0000_ff00))?;
    for family in ["-4", "-6"] {
        beside.bed.ip(&format!("{family} route replace default dev d0 table 51820"))?;
        beside.bed.ip(&format!("{family} rule add pref 100 {RULE}"))?;
    }
    nft(
        &beside,
        "add table inet other; add chain inet other out { type route hook output priority mangle; }; add rule inet other out meta mark set meta mark or 0x02000000",
    )?;
    ensure!(beside.findings("mark-clash")?.is_empty());
    let mut run = Run::start(beside)?;
    for _ in 0..5 * ROUNDS {
        for family in ["-4", "-6"] {
            run.beside.bed.ip(&format!("{family} rule delete pref 100 {RULE}"))?;
            run.settle("no rule")?;
            run.beside.bed.ip(&format!("{family} rule add pref 100 {RULE}"))?;
            run.settle("a rule")?;
        }
    }
    let (_, repairs) = run.finish("Marks of others, with another `mark_mask`")?;
    check_back(&repairs)
}

/// Runs nft(8) in the client's namespace.
fn nft(beside: &Beside, script: &str) -> Outcome {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match beside.bed.net.client.enter(&mut command).spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(NotHere("there is no nft".to_owned()).into());
        }
        child => child?,
    };
    child.stdin.take().context("no pipe")?.write_all(script.replace("; ", "\n").as_bytes())?;
    let said = child.wait_with_output()?;
    ensure!(said.status.success(), "nft {script}: {}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}
