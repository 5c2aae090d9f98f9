//! What the manual page of a command has besides its options: examples, files, exit status and environment.
//!
//! **Invariant:** each command of the command line has a page here, and each example is a valid command line (`tests/manual.rs`).

/// The sections of the page of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// Its name, as in `policy set`.
    pub(crate) command: &'static str,
    /// Command lines, each with what it does.
    pub(crate) examples: &'static [(&'static str, &'static str)],
    /// Files that it uses, besides those of [`FILES`].
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// Exit statuses that differ from those of [`EXIT`].
    pub(crate) exit: &'static [(&'static str, &'static str)],
    /// Variables besides those of [`ENVIRONMENT`].
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

/// The exit statuses of commands that do not name others.
pub(crate) const EXIT: [(&str, &str); 3] = [
    ("0", "It is done."),
    ("1", "An error. The reason is on standard error."),
    ("2", "The command line or the configuration has a mistake."),
];

/// The files of every command.
pub(crate) const FILES: [(&str, &str); 4] = [
    ("/etc/steer/steer.toml", "The configuration: see steer.toml(5)."),
    ("/etc/steer/policies.d/*.toml", "Policies in files of their own."),
    ("/run/steer/", "The sockets of the daemon, policies until the next boot, and what `steer off` has released."),
    ("/sys/fs/bpf/steer/", "The pins: programs, maps and links in force."),
];

/// The variables of every command.
pub(crate) const ENVIRONMENT: [(&str, &str); 3] = [
    ("STEER_BPFFS", "The pin directory, as --bpffs."),
    ("STEER_SOCKET", "The socket of the daemon's API, as --socket."),
    ("STEER_LOG", "What is logged on standard error: error, warn, info, debug or trace."),
];

const PLAIN: Page = Page { command: "", examples: &[], files: &[], exit: &[], environment: &[] };

const JOURNAL: (&str, &str) =
    ("JOURNAL_STREAM", "Where it names standard error, lines begin with their priority: see sd-daemon(3).");

/// All pages.
pub(crate) const PAGES: &[Page] = &[
    Page {
        command: "",
        examples: &[
            ("steer exec --interface wg0 -- curl https://example.org/", "Runs one command by wg0."),
            ("steer policy set vpn -i wg0 --unit transmission-daemon", "Steers a service from now on."),
            ("steer status", "Shows whether all policies are in force."),
        ],
        exit: &[
            ("0", "It is done."),
            ("1", "An error. The reason is on standard error. Of `steer doctor`: a warning or an error was found."),
            ("2", "The command line or the configuration has a mistake."),
            ("125, 126, 127", "Of `steer exec`: the command did not start."),
        ],
        ..PLAIN
    },
    Page {
        command: "exec",
        examples: &[
            (
                "steer exec --interface wg0 -- curl https://example.org/",
                "Runs curl by wg0. Without wg0, nothing leaves.",
            ),
            (
                "steer exec -i wg0 --dns 10.64.0.1 --user alice -- firefox",
                "The same for a user, with the resolver of the VPN.",
            ),
            ("steer exec --policy vpn -- firefox", "Without root, if the policy vpn allows the user."),
        ],
        files: &[("/run/steer/steer.exec.sock", "Where users without privilege ask the daemon.")],
        exit: &[
            ("125", "steer failed before the command started."),
            ("126", "The command cannot be executed."),
            ("127", "The command was not found."),
            ("2", "The command line of steer has a mistake."),
            ("other", "That of the command."),
        ],
        ..PLAIN
    },
    Page {
        command: "daemon",
        examples: &[
            ("steer daemon --config /etc/steer/steer.toml", "What steer.service runs."),
            (
                "steer daemon --socket-group steer --metrics 127.0.0.1:9464",
                "With readers and metrics, as `[daemon]` can say, too.",
            ),
        ],
        exit: &[
            ("0", "It was ended by SIGTERM, SIGINT or `steer off`."),
            ("1", "It could not start, or failed. systemd starts it again."),
            (
                "2",
                "The configuration has a mistake, does not exist, or has lost all policies. systemd does not start it again.",
            ),
        ],
        environment: &[JOURNAL, ("NOTIFY_SOCKET", "Where it says that it is ready: see sd_notify(3).")],
        ..PLAIN
    },
    Page {
        command: "check",
        examples: &[
            ("steer check", "Checks the files in /etc/steer."),
            ("steer check ./steer.toml --json", "Checks another file, for a program that reads the mistakes."),
        ],
        exit: &[("0", "There are no mistakes."), ("1", "A file cannot be read."), ("2", "There are mistakes.")],
        ..PLAIN
    },
    Page {
        command: "plan",
        examples: &[
            ("steer plan /etc/steer/steer.toml.new", "Shows what this file would change."),
            ("steer plan --json", "Shows what the start of the daemon would do, for a program."),
        ],
        exit: &[
            ("0", "There is a plan, which may be empty."),
            ("1", "There is none, for example because the daemon would refuse the files."),
            ("2", "A file has mistakes."),
        ],
        ..PLAIN
    },
    Page {
        command: "reload",
        examples: &[
            ("steer reload", "Puts the files in force."),
            ("steer reload --dry-run", "Shows what that would change."),
        ],
        exit: &[
            ("0", "The files are in force; with --dry-run, there is a plan."),
            ("1", "No daemon answers, or it refuses the files."),
            ("2", "The command line or a file has a mistake."),
        ],
        ..PLAIN
    },
    Page {
        command: "attach",
        examples: &[
            (
                "steer attach transmission-daemon.service -i wg0 --existing destroy",
                "Steers a running service, and ends its connections.",
            ),
            ("steer attach 4711 --only --policy vpn", "Steers one process and its children."),
        ],
        ..PLAIN
    },
    Page {
        command: "detach",
        examples: &[("steer detach transmission-daemon.service", "Ends what `steer attach` began.")],
        ..PLAIN
    },
    Page {
        command: "unit",
        examples: &[
            ("steer unit transmission-daemon --policy vpn", "Steers the service from its next start on."),
            ("steer unit transmission-daemon --remove", "Removes the drop-in."),
        ],
        files: &[("/etc/systemd/system/UNIT.d/50-steer.conf", "The drop-in.")],
        ..PLAIN
    },
    Page {
        command: "off",
        examples: &[
            ("steer off", "Ends all steering. The next daemon steers again."),
            ("steer off --forget", "The same, without what was attached by hand."),
        ],
        exit: &[
            ("0", "Nothing is steered any more."),
            ("1", "Something is left, which standard error names."),
            EXIT[2],
        ],
        ..PLAIN
    },
    Page {
        command: "status",
        examples: &[
            ("steer status", "Shows the verdict, the policies and what is not steered."),
            ("steer status --json", "The same for a program."),
        ],
        exit: &[
            ("0", "The status was read, whatever it says: `steer doctor` is the check, with status 1 for a warning."),
            EXIT[1],
            EXIT[2],
        ],
        ..PLAIN
    },
    Page {
        command: "policy",
        examples: &[
            ("steer policy list", "Shows all policies."),
            ("steer policy set vpn -i wg0 --unit transmission-daemon", "Makes or changes one."),
        ],
        ..PLAIN
    },
    Page { command: "policy list", examples: &[("steer policy list --json", "For a program.")], ..PLAIN },
    Page { command: "policy show", examples: &[("steer policy show vpn", "Shows the policy vpn.")], ..PLAIN },
    Page {
        command: "policy set",
        examples: &[
            ("steer policy set vpn -i wg0 --unit transmission-daemon", "A service by wg0 only."),
            ("steer policy set vpn --dns 10.64.0.1", "Changes one key. The others stay."),
        ],
        ..PLAIN
    },
    Page { command: "policy remove", examples: &[("steer policy remove vpn", "Ends the policy vpn.")], ..PLAIN },
    Page { command: "interfaces", examples: &[("steer interfaces", "Lists the interfaces.")], ..PLAIN },
    Page { command: "uplinks", examples: &[("steer uplinks --json", "For a program.")], ..PLAIN },
    Page {
        command: "uplink",
        examples: &[
            ("steer uplink down internet wwan0", "Takes wwan0 out of use."),
            ("steer uplink auto internet wwan0", "Lets its health decide again."),
        ],
        ..PLAIN
    },
    Page {
        command: "uplink down",
        examples: &[("steer uplink down internet wwan0", "Ends the connections by wwan0.")],
        ..PLAIN
    },
    Page {
        command: "uplink up",
        examples: &[("steer uplink up internet wwan0", "Uses wwan0 as long as its link is there.")],
        ..PLAIN
    },
    Page {
        command: "uplink auto",
        examples: &[("steer uplink auto internet wwan0", "Lets link, probes and connections decide.")],
        ..PLAIN
    },
    Page {
        command: "events",
        examples: &[
            ("steer events", "Follows what is stopped."),
            ("steer events --once --json", "Shows the events until now, for a program."),
            ("steer events --explain stopped_setsockopt", "Says what a reason means."),
        ],
        exit: &[
            ("0", "After --once, --explain and `steer off`."),
            ("1", "An error; nothing is steered and --once is given; or there is no such reason."),
            EXIT[2],
        ],
        environment: &[("TZ", "The time zone of the times.")],
        ..PLAIN
    },
    Page {
        command: "top",
        examples: &[
            ("steer top", "Shows what steered cgroups send, until q."),
            ("steer top -n 1 --json", "One reading for a program."),
        ],
        ..PLAIN
    },
    Page { command: "completions", examples: &[("steer completions bash", "Prints what bash reads.")], ..PLAIN },
    Page {
        command: "explain",
        examples: &[
            ("steer explain 4711", "Says which policy holds a process, and why."),
            ("steer explain transmission-daemon.service --to 192.168.3.7", "Says what would happen to a packet."),
        ],
        ..PLAIN
    },
    Page {
        command: "doctor",
        examples: &[
            ("steer doctor", "Looks for problems, and prints commands that repair them."),
            ("steer doctor --fix", "Makes the repairs that end no connection."),
        ],
        exit: &[
            ("0", "Nothing was found that is more than `info`."),
            ("1", "A warning or an error was found, or something failed."),
            EXIT[2],
        ],
        ..PLAIN
    },
    Page { command: "hook", examples: &[("steer hook nri", "Steers the containers of containerd or CRI-O.")], ..PLAIN },
    Page {
        command: "hook oci",
        examples: &[("steer hook oci", "A runtime runs it with the state of a container on standard input.")],
        files: &[("/usr/share/containers/oci/hooks.d/steer.json", "Makes Podman and CRI-O run it.")],
        exit: &[
            ("0", "The container may start."),
            ("1", "It must not start. The reason is on standard error."),
            EXIT[2],
        ],
        ..PLAIN
    },
    Page {
        command: "hook wrap",
        examples: &[("steer hook wrap runc create --bundle /b x", "What Docker runs as its runtime.")],
        exit: &[("1", "The container must not start."), ("other", "That of the runtime.")],
        ..PLAIN
    },
    Page {
        command: "hook nri",
        examples: &[("steer hook nri", "What steer-nri.service runs.")],
        environment: &[JOURNAL],
        ..PLAIN
    },
];
