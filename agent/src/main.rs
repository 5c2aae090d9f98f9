//! The entry point: parses the arguments, runs the command and prints its error chain.

use clap::Parser as _;
use steer::{
    cli::{Cli, exit_code, log_lines},
    model::error_text::describe,
};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            log_lines::complain(&describe(&error));
            exit_code(&error)
        }
    }
}
