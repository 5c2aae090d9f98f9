//! Writes a manual page for every command of steer, made from its command line and `sections.rs`, and that of the configuration, made
//! from docs/configuration.md and docs/uplinks.md, into the directory given.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory as _};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

mod markdown;
mod sections;

use sections::{ENVIRONMENT, EXIT, FILES, PAGES, Page};
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

/// A section of terms and their meanings. There is none without terms.
fn section<'t>(name: &str, terms: impl Iterator<Item = &'t (&'t str, &'t str)>) -> Roff {
    let mut section = Roff::new();
    let mut terms = terms.peekable();
    if terms.peek().is_some() {
        section.control("SH", [name]);
    }
    for (term, meaning) in terms {
        section.control("TP", []).text([bold(*term)]);
        section.text([roman(*meaning)]);
    }
    section
}

/// The sections that are not made from the command line.
fn sections(page: &Page) -> [Roff; 4] {
    let exit = if page.exit.is_empty() { &EXIT[..] } else { page.exit };
    [
        section("EXAMPLES", page.examples.iter()),
        section("FILES", FILES.iter().chain(page.files)),
        section("EXIT STATUS", exit.iter()),
        section("ENVIRONMENT", ENVIRONMENT.iter().chain(page.environment)),
    ]
}

/// Writes the page of a command, and those of the commands in it. `name`: as in `policy set`.
fn write(directory: &Path, command: &Command, name: &str) -> io::Result<()> {
    let missing = || io::Error::other(format!("no page for `steer {name}` in sections.rs"));
    let page = PAGES.iter().find(|page| page.command == name).ok_or_else(missing)?;
    let about =
        if name.is_empty() { Some("send the traffic of programs by the network interface you chose") } else { None };
    let shown = about.map_or_else(|| command.clone(), |about| command.clone().about(about));
    let man = Man::new(shown).section("8").manual("steer").source(concat!("steer ", env!("CARGO_PKG_VERSION")));
    let mut file = File::create(directory.join(man.get_filename()))?;
    let mut text = Vec::new();
    man.render(&mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    file.write_all(text.replace(".SH EXTRA", ".SH NOTES").as_bytes())?;
    for section in sections(page) {
        section.to_writer(&mut file)?;
    }
    if name == "events" {
        reasons().to_writer(&mut file)?;
    }
    // All commands have their pages; that of the program itself names them.
    let others = PAGES.iter().filter(|other| other.command.is_empty() != name.is_empty());
    let others = others.map(|page| format!("steer {}", page.command).trim_end().replace(' ', "-"));
    let mut see_also: Vec<_> = others.flat_map(|page| [bold(page), roman("(8), ")]).collect();
    see_also.extend([bold("steer.toml"), roman("(5)")]);
    Roff::new().control("SH", ["SEE ALSO"]).text(see_also).to_writer(&mut file)?;
    file.flush()?;
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        write(directory, inner, format!("{name} {}", inner.get_name()).trim_start())?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let directory =
        std::env::args_os().nth(1).map(PathBuf::from).ok_or_else(|| io::Error::other("which directory?"))?;
    fs::write(directory.join("steer.toml.5"), configuration())?;
    let mut steer = steer::cli::Cli::command().disable_help_subcommand(true);
    steer.build();
    write(&directory, &steer, "")
}
