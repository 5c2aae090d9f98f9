//! Writes a manual page for every command of steer, made from its command line, and that of the configuration, made from
//! docs/configuration.md and docs/uplinks.md, into the directory given.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use clap::CommandFactory as _;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

mod markdown;

use steer::observe::events::Reason;

const CONFIGURATION: &str = include_str!("../../../docs/configuration.md");
const UPLINKS: &str = include_str!("../../../docs/uplinks.md");

/// The manual page of the configuration.
fn configuration() -> String {
    [
        ".TH steer.toml 5 \"\" steer steer\n.SH NAME\nsteer.toml \\- which cgroups steer sends through which interface\n",
        ".SH SYNOPSIS\n.I /etc/steer/steer.toml\n.br\n.I /etc/steer/policies.d/*.toml\n.SH DESCRIPTION\n",
        &markdown::roff(CONFIGURATION, 1),
        &markdown::roff(UPLINKS, 0),
        ".SH SEE ALSO\n.BR steer (8),\n.BR steer-daemon (8),\n.BR steer-check (8)\n",
    ]
    .concat()
}

/// The table of reasons, for the page of `steer events`.
fn reasons() -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["REASONS"]);
    for reason in Reason::all() {
        page.control("TP", []).text([bold(reason.name())]);
        page.text([roman(format!("{} To change it: {}", reason.meaning(), reason.cure()))]);
    }
    page
}

fn main() -> io::Result<()> {
    let directory =
        std::env::args_os().nth(1).map(PathBuf::from).ok_or_else(|| io::Error::other("which directory?"))?;
    fs::write(directory.join("steer.toml.5"), configuration())?;
    let mut steer = steer::cli::Cli::command().disable_help_subcommand(true);
    steer.build();
    let commands = steer.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect::<Vec<_>>();
    for command in std::iter::once(steer).chain(commands) {
        let page_is_of_events = command.get_name() == "events";
        let page = Man::new(command).section("8").manual("steer").source(concat!("steer ", env!("CARGO_PKG_VERSION")));
        let mut file = File::create(directory.join(page.get_filename()))?;
        page.render(&mut file)?;
        if page_is_of_events {
            reasons().to_writer(&mut file)?;
        }
        let see_also = [bold("steer"), roman("(8), "), bold("steer.toml"), roman("(5)")];
        Roff::new().control("SH", ["SEE ALSO"]).text(see_also).to_writer(&mut file)?;
    }
    Ok(())
}
