//! One attempt to get past the steering of a program: see [`steer_lab::escape`]. Exit 0 if the attempt was made, whatever
//! came of it, and 2 for wrong usage; SIGALRM ends what hangs.

use clap::Parser;
use steer_lab::escape::{EscapeArgs, run};

#[derive(Parser)]
#[command(name = "steer-escape", about, version)]
struct Cli {
    #[command(flatten)]
    args: EscapeArgs,
}

fn main() -> std::process::ExitCode {
    // Not every wait of every kind of socket has a limit: whoever waits for this program must not wait for ever.
    nix::unistd::alarm::set(60);
    match run(&Cli::parse().args, &mut std::io::stdout()) {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("steer-escape: {error}");
            1.into()
        }
    }
}
