//! The import rule: a layer imports only from the layers below it.
//!
//! The test reads every path that starts at the crate root, in `use` declarations and elsewhere.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The layers, lowest first.
const LAYERS: [&str; 7] = ["model", "host", "kernel", "apply", "observe", "run", "cli"];

/// The layer of a module, as its position in [`LAYERS`].
fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == module)
}

/// The source without line comments.
fn code(source: &str) -> String {
    source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The modules directly below the crate root that a file names. `depth` is how many modules the file is below the root.
fn imports(source: &str, depth: usize) -> BTreeSet<String> {
    let source = code(source);
    let to_root = format!("{}::", vec!["super"; depth].join("::"));
    let starts = source.match_indices("crate::").chain(source.match_indices(&to_root));
    let mut found = BTreeSet::new();
    for (start, prefix) in starts {
        let rest = source[start + prefix.len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(list) => found.extend(first_words(list)),
            None => {
                found.insert(word(rest));
            }
        }
    }
    found
}

/// The first word of each item of a list in braces, whose opening brace has been read.
fn first_words(list: &str) -> Vec<String> {
    let (mut open, mut start) = (1, 0);
    let mut items = Vec::new();
    for (at, character) in list.char_indices() {
        open += i32::from(character == '{') - i32::from(character == '}');
        if open == 0 || open == 1 && character == ',' {
            items.push(word(list[start..at].trim_start()));
            start = at + 1;
        }
        if open == 0 {
            break;
        }
    }
    items
}

fn word(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the sources are readable") {
        let path = entry.expect("the sources are readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn a_layer_imports_only_from_layers_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for file in files {
        let relative = file.strip_prefix(&root).expect("a file below src");
        let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
        let [first, rest @ ..] = &parts[..] else { continue };
        if rest.is_empty() {
            continue;
        }
        let own = layer(first).unwrap_or_else(|| panic!("{} is in no layer", relative.display()));
        seen.insert(own);
        let depth = parts.len() - usize::from(rest.last().is_some_and(|name| name == "mod.rs"));
        for import in imports(&fs::read_to_string(&file).expect("a readable source"), depth) {
            if layer(&import).is_some_and(|other| other > own) {
                wrong.push(format!("{} imports from {import}", relative.display()));
            }
        }
    }
    assert_eq!(seen.len(), LAYERS.len(), "every layer has files");
    assert!(wrong.is_empty(), "imports against the order {}:\n{}", LAYERS.join(" < "), wrong.join("\n"));
}

#[test]
fn the_rule_finds_imports_in_every_form() {
    let source = "use crate::{host::cgroup::{Cgroup, Scope}, kernel};\n// use crate::cli;\nfn f() { crate::run::go(); }\nuse super::super::observe::x;";
    assert_eq!(imports(source, 2).into_iter().collect::<Vec<_>>(), ["host", "kernel", "observe", "run"]);
}
