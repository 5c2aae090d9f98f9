//! The entry point: parses the arguments, runs the command and prints its error chain.

use steer::{
    cli::{exit_code, log_lines, parse},
    model::error_text::describe,
};

fn main() -> std::process::ExitCode {
    let cli = parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            log_lines::complain(&describe(&error));
            exit_code(&error)
        }
    }
}
