//! One attempt to bypass the steering of a program: see [`steer_lab::escape`]. The exit status is 0 if the attempt was
//! made, whatever its result, and 2 for wrong usage. SIGALRM ends a hanging attempt.

use clap::Parser;
use steer_lab::escape::{EscapeArgs, run};

#[derive(Parser)]
#[command(name = "steer-escape", about, version)]
struct Cli {
    #[command(flatten)]
    args: EscapeArgs,
}

fn main() -> std::process::ExitCode {
    // Some waits of some sockets have no timeout, and the parent process must not wait forever.
    nix::unistd::alarm::set(60);
    match run(&Cli::parse().args, &mut std::io::stdout()) {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("steer-escape: {error}");
            1.into()
        }
    }
}
