//! Writes a manual page for every command of steer, made from its command line, into the directory given.

use std::{fs::File, io, path::PathBuf};

use clap::CommandFactory as _;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

fn main() -> io::Result<()> {
    let directory =
        std::env::args_os().nth(1).map(PathBuf::from).ok_or_else(|| io::Error::other("which directory?"))?;
    let mut steer = steer::cli::Cli::command().disable_help_subcommand(true);
    steer.build();
    let commands = steer.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect::<Vec<_>>();
    for command in std::iter::once(steer).chain(commands) {
        let page = Man::new(command).section("8").manual("steer").source(concat!("steer ", env!("CARGO_PKG_VERSION")));
        let mut file = File::create(directory.join(page.get_filename()))?;
        page.render(&mut file)?;
        let see_also = [bold("steer"), roman("(8), "), bold("steer.toml"), roman("(5)")];
        Roff::new().control("SH", ["SEE ALSO"]).text(see_also).to_writer(&mut file)?;
    }
    Ok(())
}
