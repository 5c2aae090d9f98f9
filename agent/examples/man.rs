//! Writes a manual page for every command of steer, made from its command line, and that of the configuration, into the directory given.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    path::PathBuf,
};

use clap::CommandFactory as _;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use steer::model::spec::{KEYS, Key};

/// The manual page of the configuration, without the keys of a policy.
const CONFIGURATION: &str = include_str!("../../packaging/steer.toml.5");
/// Where the keys belong.
const PLACE: &str = ".\\\" KEYS\n";

/// One key of a policy, as roff.
fn entry(key: &Key) -> String {
    let escaped = |text: &str| text.replace('\\', "\\e").replace('-', "\\-").replace('"', "\\(dq");
    let mut entry = format!(".TP\n.B {}\n{}\n", key.name, escaped(key.description.trim()));
    let default = (key.default_word)();
    for (word, meaning) in (key.words)() {
        let mark = if default == Some(word) { " (default)" } else { "" };
        // Writing to a string does not fail.
        let _ = write!(entry, ".br\n.BR \\(dq{word}\\(dq {mark:?}:\n{}\n", escaped(meaning.trim()));
    }
    for (field, meaning) in key.fields {
        let _ = write!(entry, ".br\n.BR {field} :\n{}\n", escaped(meaning));
    }
    entry
}

fn main() -> io::Result<()> {
    let directory =
        std::env::args_os().nth(1).map(PathBuf::from).ok_or_else(|| io::Error::other("which directory?"))?;
    let (before, after) = CONFIGURATION.split_once(PLACE).ok_or_else(|| io::Error::other("no place for the keys"))?;
    let keys: String = KEYS.iter().map(entry).collect();
    fs::write(directory.join("steer.toml.5"), format!("{before}{keys}{after}"))?;
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
