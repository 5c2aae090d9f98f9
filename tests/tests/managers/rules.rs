//! Rules as wg-quick and Tailscale write them, added and removed beside those of steer.

use anyhow::ensure;
use steer_tests::{
    Outcome,
    beside::{Beside, THIRD},
};

use super::{Run, check_back};

const ROUNDS: usize = 25;

pub(super) fn come_and_go() -> Outcome {
    let beside = Beside::new("managers-rules")?;
    beside.steer(None)?;
    let mut run = Run::start(beside)?;
    for _ in 0..ROUNDS {
        for family in ["-4", "-6"] {
            let gateway = if family == "-4" { "10.0.7.1" } else { "fd00:7::1" };
            // What wg-quick does, with another link in the place of the tunnel.
            let tunnel = ["not fwmark 0xca6c table 51820", "table main suppress_prefixlength 0"];
            // What tailscaled does.
            let mesh = [
                "pref 5210 fwmark 0x80000/0xff0000 table main",
                "pref 5230 fwmark 0x80000/0xff0000 table default",
                "pref 5250 fwmark 0x80000/0xff0000 unreachable",
                "pref 5270 table 52",
            ];
            for table in [51820, 52] {
                run.beside
                    .bed
                    .ip(&format!("{family} route replace default via {gateway} dev {THIRD} table {table}"))?;
            }
            for rule in tunnel.iter().chain(&mesh) {
                run.beside.bed.ip(&format!("{family} rule add {rule}"))?;
            }
            run.settle("rules added")?;
            let findings = [run.beside.findings("foreign-rule")?, run.beside.findings("mark-clash")?].concat();
            ensure!(findings.is_empty(), "{findings:?}");
            for rule in tunnel.iter().chain(&mesh) {
                run.beside.bed.ip(&format!("{family} rule delete {rule}"))?;
            }
            for table in [51820, 52] {
                run.beside.bed.ip(&format!("{family} route flush table {table}"))?;
            }
            run.settle("rules deleted")?;
        }
    }
    let (beside, repairs) = run.finish("Rules of wg-quick and Tailscale")?;
    let log = beside.log()?;
    ensure!(!log.contains("retrying") && !log.contains("another program removed"), "{log}");
    check_back(&repairs)
}
