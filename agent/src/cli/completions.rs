//! `steer completions`: completions of command lines for a shell. What only this host knows, such as its interfaces, a shell asks for by
//! `steer complete-values`.

use std::process::ExitCode;

use clap::{Command, CommandFactory as _};

use super::{
    Cli, block_on, config_file,
    output::{say, write},
    target::{groups, links},
};
use crate::{
    host::units::{self, Manager},
    observe::events::Reason,
    run::{
        api::{PolicyDocument, client::Client},
        instance::Instance,
    },
};

/// Arguments of `steer completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// What a shell asks for.
#[derive(Clone, Copy, Debug, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
enum Values {
    Interfaces,
    Policies,
    Uplinks,
    Reasons,
    Units,
}

/// Arguments of `steer complete-values`.
#[derive(Debug, clap::Args)]
pub(super) struct ValuesArgs {
    what: String,
}

/// The options that have such values, and these.
const OPTIONS: [(&str, Values); 5] = [
    ("interface", Values::Interfaces),
    ("policy", Values::Policies),
    ("uplink", Values::Uplinks),
    ("explain", Values::Reasons),
    ("unit", Values::Units),
];
/// The commands whose first argument is a unit, among others.
const OF_UNITS: [&str; 4] = ["attach", "detach", "explain", "unit"];

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // It panics if its writer fails.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut shown(), "steer", &mut text);
    let text = String::from_utf8(text)?;
    let text = match args.shell {
        Shell::Bash => format!("{text}{}", bash()),
        Shell::Zsh => zsh(&text),
        Shell::Fish => format!("{text}{}", fish()),
    };
    write(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the values, one a line; none if they are not known.
pub(super) fn values(args: &ValuesArgs, instance: &Instance) -> anyhow::Result<ExitCode> {
    let Ok(what) = args.what.parse::<Values>() else { return Ok(ExitCode::SUCCESS) };
    let config = || config_file(None, instance);
    let found: Vec<String> = match what {
        Values::Interfaces => links()?.links().map(|(_, names)| names.name.clone()).collect(),
        Values::Policies => policies(instance),
        Values::Uplinks => groups(&config())?.iter().map(|group| group.name.to_string()).collect(),
        Values::Reasons => Reason::all().map(|reason| reason.name().to_owned()).collect(),
        Values::Units => units::files(Manager::System).into_iter().collect(),
    };
    found.iter().try_for_each(|value| say!("{value}"))?;
    Ok(ExitCode::SUCCESS)
}

fn policies(instance: &Instance) -> Vec<String> {
    let of_daemon = async {
        let daemon = Client::find(&instance.socket).await?;
        daemon.get::<Vec<PolicyDocument>>("/v1/policies").await.ok()
    };
    if let Ok(Some(policies)) = block_on(of_daemon) {
        return policies.into_iter().map(|policy| policy.name).collect();
    }
    let config = instance.store(&config_file(None, instance)).read().unwrap_or_default();
    config.policies.into_iter().map(|policy| policy.name).collect()
}

/// After the completions of clap, which know options and words.
fn bash() -> String {
    let case = |(option, values): (&str, Values)| {
        let short = match option {
            "interface" => "-i|",
            "policy" => "-p|",
            _ => "",
        };
        format!("        {short}--{option}) _steer_values {}; return ;;\n", <&str>::from(values))
    };
    let cases: String = OPTIONS.into_iter().map(case).collect();
    format!(
        r#"
_steer_values() {{
    COMPREPLY=($(compgen -W "$(steer complete-values "$1" 2>/dev/null)" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}

_steer_and_values() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" at
    for ((at = 1; at < COMP_CWORD; at++)); do
        if [[ ${{COMP_WORDS[at]}} == -- ]]; then
            if declare -F _command_offset >/dev/null; then
                _command_offset $((at + 1))
            elif ((at + 1 == COMP_CWORD)); then
                COMPREPLY=($(compgen -c -- "$word"))
            fi
            return
        fi
    done
    case $before in
{cases}        {units}) [[ $word == -* ]] || {{ _steer_values units; return; }} ;;
    esac
    _steer "$@"
}}
complete -F _steer_and_values -o nosort -o bashdefault -o default steer
"#,
        units = OF_UNITS.join("|")
    )
}

fn zsh(text: &str) -> String {
    let line = |line: &str| {
        let values = OPTIONS.iter().find(|(option, _)| line.contains(&format!("--{option}=[")));
        match (values, line.rsplit_once(":_default'")) {
            (Some((_, values)), Some((before, after))) => {
                let ask = format!("$(steer complete-values {} 2>/dev/null)", <&str>::from(values));
                format!("{before}:{{compadd -- ${{(f)\"{ask}\"}}}}'{after}\n")
            }
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

fn fish() -> String {
    let option = |(option, values): (&str, Values)| {
        let short = match option {
            "interface" => " -s i",
            "policy" => " -s p",
            _ => "",
        };
        let values = <&str>::from(values);
        format!(
            "complete -c steer -n 'not __fish_steer_needs_command'{short} -l {option} -x -a '(steer complete-values {values})'\n"
        )
    };
    let commands = OF_UNITS.join(" ");
    let of_units = format!(
        "complete -c steer -n '__fish_seen_subcommand_from {commands}' -f -a '(steer complete-values units)'\n"
    );
    OPTIONS.into_iter().map(option).chain([of_units]).collect()
}

/// The command line without hidden commands.
fn shown() -> Command {
    let whole = Cli::command();
    let commands = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("steer")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .args(whole.get_arguments().cloned())
        .subcommands(commands)
}
