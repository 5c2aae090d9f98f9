//! The manual pages: every command has one, and its examples are command lines that steer takes. docs/commands.md has the exit statuses.

#[path = "../examples/man/sections.rs"]
mod sections;

use clap::{Command, CommandFactory as _, Parser as _};
use sections::{ENVIRONMENT, EXIT, FILES, PAGES};
use steer::cli::Cli;

const DOCUMENT: &str = include_str!("../../docs/commands.md");

fn names(command: &Command, name: &str) -> Vec<String> {
    let shown = command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help");
    let inner = shown.flat_map(|inner| names(inner, format!("{name} {}", inner.get_name()).trim_start()));
    [name.to_owned()].into_iter().chain(inner).collect()
}

#[test]
fn every_command_has_a_page() {
    let names = names(&Cli::command(), "");
    let pages: Vec<_> = PAGES.iter().map(|page| page.command.to_owned()).collect();
    for name in &names {
        assert!(pages.contains(name), "no page for `steer {name}`");
    }
    for page in &pages {
        assert!(names.contains(page), "there is no command `steer {page}`");
    }
}

#[test]
fn the_examples_are_command_lines() {
    for page in PAGES {
        assert!(!page.examples.is_empty(), "no example of `steer {}`", page.command);
        for (line, meaning) in page.examples {
            let words = line.split(' ');
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
            assert!(line.starts_with(format!("steer {}", page.command).trim_end()), "{line}");
            assert!(meaning.ends_with(['.', ',']), "{meaning}");
        }
    }
}

#[test]
fn the_document_has_the_exit_statuses() {
    let section = DOCUMENT.split("\n## ").find(|section| section.starts_with("Exit status")).expect("a section");
    let own = PAGES.iter().filter(|page| !page.exit.is_empty() && !page.command.is_empty());
    for page in own {
        for (status, meaning) in page.exit {
            let row = format!("| `steer {}` | {status} | {meaning} |", page.command);
            assert!(section.contains(&row), "no row {row}");
        }
    }
    for (status, meaning) in EXIT {
        assert!(section.contains(&format!("| all others | {status} | {meaning} |")), "no row for {status}");
    }
    for (name, _) in ENVIRONMENT {
        assert!(DOCUMENT.contains(&format!("`{name}")), "{name}");
    }
    assert!(
        PAGES
            .iter()
            .flat_map(|page| page.files.iter().chain(&FILES).chain(page.environment))
            .all(|(name, _)| !name.is_empty())
    );
}
