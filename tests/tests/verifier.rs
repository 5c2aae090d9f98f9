//! How much the kernel's verifier does when it loads the programs: each command that loads them waits for that.

use std::fs;

use anyhow::{Context as _, ensure};
use aya::programs::ProgramInfo;
use steer_tests::{Bed, NotHere, Outcome};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("walks_few_instructions", walks_few_instructions)];

/// Instructions for all programs together, most of which the verifier walks more than once. When this was written, it walked 132,000 on Linux
/// 6.18, without the programs for security hooks, and 162,000 on Linux 6.1. `agent-common/src/verifier.rs` says what keeps it low.
const BUDGET: u32 = 210_000;

fn walks_few_instructions() -> Outcome {
    let bed = Bed::new("verifier")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let mut walked = Vec::new();
    for pin in fs::read_dir(bed.abi().join("programs"))? {
        let pin = pin?;
        let info = ProgramInfo::from_pin(pin.path()).with_context(|| format!("{}", pin.path().display()))?;
        let Some(count) = info.verified_instruction_count() else {
            return Err(NotHere("before Linux 5.16, the kernel does not tell how much it verified".to_owned()).into());
        };
        walked.push((count, pin.file_name()));
    }
    walked.sort_unstable();
    let sum: u32 = walked.iter().map(|(count, _)| count).sum();
    println!("the verifier walked {sum} instructions");
    ensure!(sum > 0 && sum <= BUDGET, "{sum} instructions, more than {BUDGET}: {walked:?}");
    Ok(())
}
