//! The daemon's API, and the commands that use it.

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixStream,
    },
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::{Value, json};
use steer_lab::{Family, Vector, wait_until};
use steer_tests::{Answer, Bed, Daemon, NOBODY, Outcome, PATIENCE, USERS, User, output};

use crate::{Test, events::attempt};

pub(crate) const TESTS: &[Test] = &[
    ("a_policy_is_added_changed_and_removed", a_policy_is_added_changed_and_removed),
    ("policies_outlive_the_daemon", policies_outlive_the_daemon),
    ("by_the_command_with_and_without_a_daemon", by_the_command_with_and_without_a_daemon),
    ("several_commands_at_once_without_a_daemon", several_commands_at_once_without_a_daemon),
    ("a_policy_of_the_file_is_changed_there", a_policy_of_the_file_is_changed_there),
    ("errors_name_the_field", errors_name_the_field),
    ("policies_have_the_defaults_of_the_file", policies_have_the_defaults_of_the_file),
    ("only_root_changes", only_root_changes),
    ("slow_clients_delay_nothing", slow_clients_delay_nothing),
    ("slow_clients_do_not_silence_the_metrics", slow_clients_do_not_silence_the_metrics),
    ("matches_the_openapi_document", matches_the_openapi_document),
    ("health", health),
    ("files_that_cannot_be_read", files_that_cannot_be_read),
    ("metrics", metrics),
    ("events_for_all_listeners", events_for_all_listeners),
    ("a_file_that_appears_is_a_policy", a_file_that_appears_is_a_policy),
];

/// The port is in a bed's own network namespace.
const METRICS: &str = "127.0.0.1:9464";
const EMPTY: &str = "# no policy yet\n";

fn policy(bed: &Bed, interface: &str) -> String {
    json!({"interface": interface, "cgroups": [bed.cgroup.path()]}).to_string()
}

fn put(bed: &Bed, name: &str, body: &str) -> anyhow::Result<Answer> {
    bed.ask(User::Root, "PUT", &format!("/v1/policies/{name}"), Some(body))
}

fn a_policy_is_added_changed_and_removed() -> Outcome {
    let bed = Bed::new("api-life")?;
    let daemon = bed.daemon(EMPTY)?;
    bed.check_unsteered(Some(&bed.cgroup))?;
    let created = put(&bed, "p", &policy(&bed, "a1"))?;
    ensure!(created.status == 201 && created.body["kept"] == "stored", "{created:?}");
    // In force when the answer arrives.
    bed.check_steered(&bed.cgroup, 1)?;
    let changed = put(&bed, "p", &policy(&bed, "a0"))?;
    ensure!(changed.status == 200 && changed.body["interface"] == "a0", "{changed:?}");
    bed.check_steered(&bed.cgroup, 0)?;
    ensure!(bed.get("/v1/policies/p")? == changed.body);
    ensure!(bed.get("/v1/policies")? == json!([changed.body]));
    let attachments = bed.get("/v1/attachments")?;
    ensure!(attachments[0]["policy"] == "p" && attachments[0]["path"] == bed.cgroup.path(), "{attachments}");
    let interfaces = bed.get("/v1/interfaces")?;
    let a0 = interfaces.as_array().and_then(|links| links.iter().find(|link| link["name"] == "a0"));
    ensure!(a0.is_some_and(|a0| a0["policies"] == json!(["p"])), "{interfaces}");
    ensure!(bed.get("/v1/counters")?[0]["counters"]["bound"].as_u64() > Some(0));
    let removed = bed.ask(User::Root, "DELETE", "/v1/policies/p", None)?;
    ensure!(removed.status == 204, "{removed:?}");
    bed.check_unsteered(Some(&bed.cgroup))?;
    for method in ["GET", "DELETE"] {
        let missing = bed.ask(User::Root, method, "/v1/policies/p", None)?;
        ensure!(missing.status == 404 && missing.body["status"] == 404, "{missing:?}");
    }
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    ensure!(!bed.socket().exists(), "the socket is left");
    Ok(())
}

fn policies_outlive_the_daemon() -> Outcome {
    let bed = Bed::new("api-outlive")?;
    let mut daemon = bed.daemon(EMPTY)?;
    let runtime = json!({"interface": "a1", "cgroups": [bed.cgroup.child("r")?.path()], "runtime": true});
    ensure!(
        put(&bed, "stored", &json!({"interface": "a1", "cgroups": [format!("{}/s", bed.cgroup.path())]}).to_string())?
            .status
            == 201
    );
    ensure!(put(&bed, "runtime", &runtime.to_string())?.status == 201);
    for _ in 0..2 {
        let policies = bed.get("/v1/policies")?;
        let kept: Vec<_> = [0, 1].iter().map(|&at| (&policies[at]["name"], &policies[at]["kept"])).collect();
        ensure!(kept == [(&json!("stored"), &json!("stored")), (&json!("runtime"), &json!("runtime"))], "{policies}");
        // A killed daemon leaves its socket, which does not prevent a new start.
        daemon.end(Signal::SIGKILL)?;
        daemon = Daemon::start(&bed)?;
    }
    // `off` ends the daemon, and removes what a boot would remove.
    bed.succeed(&["off"])?;
    ensure!(daemon.wait()? == Some(0) && !bed.socket().exists());
    let kept = bed.succeed(&["policy", "list", "--json", "--config", &bed.config_file().to_string_lossy()])?;
    ensure!(kept.contains("\"stored\"") && !kept.contains("\"runtime\""), "{kept}");
    Ok(())
}

fn by_the_command_with_and_without_a_daemon() -> Outcome {
    let bed = Bed::new("api-command")?;
    let config = bed.config_file().to_string_lossy().into_owned();
    bed.write_config(EMPTY)?;
    let pattern = format!("{}/**", bed.cgroup.path());
    let steer = |arguments: &[&str]| bed.run(&[&["policy", "--config", &config], arguments].concat());
    let near = ["--local", "host,lan", "--except", "198.51.100.0/24=a0,10.0.0.1=main"];
    let set = [&["set", "a b/c", "-i", "a1", "--cgroup", &pattern, "--dns", "203.0.113.53"] as &[&str], &near].concat();
    let set = steer(&set)?;
    ensure!(set.code == 0 && set.stderr.contains("no daemon answers"), "{set:?}");
    let without = [steer(&["list", "--json"])?.stdout, steer(&["list"])?.stdout, steer(&["show", "a b/c"])?.stdout];
    let daemon = Daemon::start(&bed)?;
    let with = [steer(&["list", "--json"])?.stdout, steer(&["list"])?.stdout, steer(&["show", "a b/c"])?.stdout];
    ensure!(without == with && with[1].contains("203.0.113.53"), "{without:#?} {with:#?}");
    ensure!(with[2].contains("198.51.100.0/24=a0") && with[2].contains("lan"), "{with:#?}");
    let links = bed.succeed(&["interfaces", "--json"])?;
    // What is not named stays.
    let set = steer(&["set", "a b/c", "-i", "a0"])?;
    ensure!(set.code == 0 && set.stderr.is_empty(), "{set:?}");
    ensure!(set.stdout.contains("\n  interface: a0 (was a1)\n") && !set.stdout.contains("dns"), "{set:?}");
    ensure!(steer(&["set", "a b/c", "-i", "a0"])?.stdout.contains("policy a b/c is unchanged"));
    ensure!(steer(&["show", "a b/c"])?.stdout.contains("203.0.113.53"));
    let set = steer(&["set", "a b/c", "-i", "none", "--cgroup", bed.cgroup.path()])?;
    ensure!(set.code == 2 && set.stderr.contains("expected no dns"), "{set:?}");
    let none = ["--dns", "none", "--local", "none", "--except", "none"];
    let set = steer(&[&["set", "a b/c", "-i", "none", "--cgroup", bed.cgroup.path()] as &[&str], &none].concat())?;
    ensure!(set.code == 0 && set.stderr.is_empty(), "{set:?}");
    ensure!(bed.policy("a b/c")?["interface"].is_null());
    for (arguments, why) in [(&["-i", "a1"] as &[&str], "it needs --unit"), (&["--unit", "x"], "it needs --interface")]
    {
        let refused = steer(&[&["set", "new"], arguments].concat())?;
        ensure!(refused.code == 1 && refused.stderr.contains(why), "{refused:?}");
    }
    let set = steer(&["add", "units", "-i", "a1", "--unit", "steer-none", "--user", "steer-nobody", "--runtime"])?;
    ensure!(set.stdout.contains("added policy units, kept until the next boot"), "{set:?}");
    for doubt in ["there is no unit steer-none.service", "there is no user steer-nobody"] {
        ensure!(set.stderr.contains(doubt), "{set:?}");
    }
    ensure!(steer(&["set", "units", "--user", "root"])?.stdout.contains("users: root (was steer-nobody)"));
    ensure!(bed.get("/v1/policies/units")?["kept"] == "runtime");
    ensure!(steer(&["rm", "units"])?.stdout.contains("removed policy units"));
    let wrong = steer(&["set", "w", "-i", "a1", "--cgroup", "x"])?;
    ensure!(wrong.code == 2 && wrong.stderr.contains("--cgroup x: it does not start with /"), "{wrong:?}");
    ensure!(steer(&["remove", "a b/c"])?.code == 0);
    ensure!(steer(&["remove", "a b/c"])?.stderr.contains("there is no policy \"a b/c\""));
    daemon.end(Signal::SIGTERM)?;
    let again = bed.succeed(&["interfaces", "--json", "--config", &config])?;
    let names = |text: &str| -> anyhow::Result<Vec<Value>> {
        let links: Vec<Value> = serde_json::from_str(text)?;
        Ok(links.into_iter().map(|link| json!([link["ifindex"], link["name"]])).collect())
    };
    ensure!(names(&links)? == names(&again)?, "{links} {again}");
    Ok(())
}

/// All ask for the same cgroup: one gets it.
fn several_commands_at_once_without_a_daemon() -> Outcome {
    let bed = Bed::new("api-at-once")?;
    bed.write_config(EMPTY)?;
    let config = bed.config_file().to_string_lossy().into_owned();
    for round in 0..5 {
        let name = |number: usize| format!("p{round}-{number}");
        let cgroup = format!("/round-{round}");
        let start = |number| {
            let mut set =
                bed.steer(&["policy", "set", &name(number), "-i", "a1", "--cgroup", &cgroup, "--config", &config]);
            set.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
        };
        let started = (0..8).map(start).collect::<Result<Vec<_>, _>>()?;
        let ended = started.into_iter().map(std::process::Child::wait_with_output).collect::<Result<Vec<_>, _>>()?;
        let successes = ended.iter().filter(|ended| ended.status.success()).count();
        ensure!(successes == 1, "round {round}: {successes} of 8 succeeded");
    }
    let listed: Value = serde_json::from_str(&bed.succeed(&["policy", "list", "--json", "--config", &config])?)?;
    ensure!(listed.as_array().is_some_and(|policies| policies.len() == 5), "{listed}");
    Ok(())
}

fn a_policy_of_the_file_is_changed_there() -> Outcome {
    let bed = Bed::new("api-file")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    let refused = [put(&bed, "p", &policy(&bed, "a0"))?, bed.ask(User::Root, "DELETE", "/v1/policies/p", None)?];
    let file = bed.config_file();
    for refused in refused {
        let detail = refused.body["detail"].as_str().unwrap_or_default();
        ensure!(refused.status == 409 && detail.contains(&*file.to_string_lossy()), "{refused:?}");
    }
    // No other policy may claim its cgroup.
    let clash = put(&bed, "q", &policy(&bed, "a0"))?;
    let error = &clash.body["errors"][0];
    ensure!(clash.status == 422 && error["field"] == "cgroups", "{clash:?}");
    ensure!(error["detail"].as_str().is_some_and(|detail| detail.contains("policy \"p\" of")), "{clash:?}");
    bed.check_steered(&bed.cgroup, 1)
}

fn errors_name_the_field() -> Outcome {
    let bed = Bed::new("api-mistakes")?;
    let _daemon = bed.daemon(EMPTY)?;
    let cases = [
        (json!({"interface": "wg 0", "cgroups": ["/x"]}), "interface"),
        (json!({"interface": "a1", "cgroups": ["x"]}), "cgroups[0]"),
        (json!({"interface": "a1", "cgroups": ["/**"]}), "cgroups[0]"),
        (json!({"interface": "a1", "cgroups": ["/x", 3]}), "cgroups[1]"),
        (json!({"interface": "a1", "cgroups": ["/x"], "enforce": "bind"}), "enforce"),
        (json!({"interface": "a1", "cgroups": ["/x"], "ingress": "some"}), "ingress"),
        (json!({"interface": "a1", "cgroups": ["/x"], "dns": ["127.0.0.53"]}), "dns[0]"),
        (json!({"interface": "a1", "cgroups": ["/x"], "local": ["host", "wan"]}), "local[1]"),
        (json!({"interface": "none", "cgroups": ["/x"], "local": ["host"]}), "local"),
        (json!({"interface": "a1", "cgroups": ["/x"], "except": [{"to": "::/0", "by": "a0"}]}), "except[0].to"),
        (
            json!({"interface": "a1", "cgroups": ["/x"], "except": ["10.0.0.1=a0", {"to": "10.0.0.2", "by": "a/0"}]}),
            "except[1].by",
        ),
        (json!({"interface": "a1", "cgroups": ["/x"], "colour": 1}), "colour"),
        (json!({"cgroups": ["/x"]}), ""),
    ];
    for (body, field) in cases {
        let answer = put(&bed, "p", &body.to_string())?;
        ensure!(answer.status == 422 && answer.body["errors"][0]["field"] == field, "{body}: {answer:?}");
    }
    ensure!(put(&bed, "p", "{")?.status == 422);
    ensure!(put(&bed, &"n".repeat(100), &policy(&bed, "a1"))?.body["errors"][0]["field"] == "name");
    ensure!(put(&bed, "p", &" ".repeat(100 * 1024))?.status == 413);
    ensure!(bed.ask(User::Root, "GET", "/v2/policies", None)?.status == 404);
    ensure!(bed.ask(User::Root, "POST", "/v1/policies", Some("{}"))?.status == 405);
    ensure!(bed.get("/v1/policies")? == json!([]), "something was kept");
    Ok(())
}

/// What is kept is what was written, and a default that changes holds for it.
fn policies_have_the_defaults_of_the_file() -> Outcome {
    let bed = Bed::new("api-defaults")?;
    let daemon = bed.daemon("[defaults]\nenforce = \"steer\"\ndns = [\"203.0.113.53\"]\nlocal = [\"host\"]\n")?;
    let written = json!({"interface": "a1", "cgroups": [bed.cgroup.path()], "local": [],
                         "except": [{"to": "198.51.100.0/24", "by": "a0"}, "203.0.113.0/24=refuse"]});
    let created = put(&bed, "p", &written.to_string())?;
    let except = json!([{"to": "198.51.100.0/24", "by": "a0"}, {"to": "203.0.113.0/24", "by": "refuse"}]);
    ensure!(created.status == 201 && created.body["except"] == except, "{created:?}");
    ensure!(created.body["enforce"] == "steer" && created.body["local"] == json!([]), "{created:?}");
    let in_force = bed.policy("p")?;
    ensure!(in_force["enforce"] == "steer" && in_force["dns"] == json!(["203.0.113.53"]), "{in_force}");
    bed.write_config("[defaults]\nexisting = \"rebind\"\n")?;
    bed.succeed(&["reload"])?;
    let in_force = bed.policy("p")?;
    ensure!(in_force["enforce"] == "strict" && in_force["existing"] == "rebind", "{in_force}");
    ensure!(in_force["dns"] == json!([]), "{in_force}");
    // A default that no policy can have is a mistake of the file, and the previous policies stay.
    bed.write_config("[defaults]\nlocal = [\"wan\"]\n")?;
    let refused = bed.run(&["reload"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("defaults.local"), "{refused:?}");
    ensure!(bed.policy("p")?["existing"] == "rebind");
    daemon.end(Signal::SIGTERM)?;
    Ok(())
}

fn only_root_changes() -> Outcome {
    let bed = Bed::new("api-users")?;
    fs::set_permissions(&bed.directory, fs::Permissions::from_mode(0o755))?;
    bed.write_config(EMPTY)?;
    // Without a group only root has access.
    let daemon = Daemon::start(&bed)?;
    let mode = fs::metadata(bed.socket())?.permissions().mode() & 0o777;
    ensure!(mode == 0o660, "{mode:o}");
    // curl prints 0 if it cannot connect.
    ensure!(bed.ask(User::Nobody, "GET", "/v1/health", None)?.status == 0, "any user may read");
    daemon.end(Signal::SIGTERM)?;
    // Of a group in the file, its members may read; an option goes before the file.
    let table = format!("{EMPTY}\n[daemon]\nsocket_group = \"{}\"\nlog = \"warn\"\n", NOBODY.1);
    bed.write_config(&table)?;
    let daemon = Daemon::start_with(&bed, &["--socket-group", "0"])?;
    ensure!(bed.ask(User::Nobody, "GET", "/v1/health", None)?.status == 0, "the option is not used");
    daemon.end(Signal::SIGTERM)?;
    // Without such a group, it is for root only, and the rest goes on.
    bed.write_config(&table.replace(&NOBODY.1.to_string(), "steer-nobody"))?;
    let daemon = Daemon::start(&bed)?;
    daemon.wait_for_log("for root only: there is no group \"steer-nobody\"")?;
    ensure!(bed.ask(User::Root, "GET", "/v1/health", None)?.status == 200);
    let checked = bed.succeed(&["check", &bed.config_file().to_string_lossy()])?;
    ensure!(checked.contains("warning: socket_group: there is no group steer-nobody"), "{checked}");
    let before = daemon.log();
    daemon.end(Signal::SIGTERM)?;
    bed.write_config(&table.replace("log", "metrics = \"127.0.0.1:9464\"\nlog"))?;
    let daemon = Daemon::start(&bed)?;
    ensure!(!daemon.log()[before.len()..].contains("ready"), "{}", daemon.log());
    let metrics = output(bed.net.client.enter(Command::new("curl").args(["-sf", "http://127.0.0.1:9464/metrics"])))?;
    ensure!(metrics.code == 0 && metrics.stdout.contains("steer_"), "{metrics:?}");
    for user in USERS {
        for path in ["/v1/health", "/v1/status", "/v1/policies", "/v1/interfaces"] {
            ensure!(bed.ask(user, "GET", path, None)?.status == 200, "{path} as {user:?}");
        }
    }
    for (method, path) in [
        ("PUT", "/v1/policies/p"),
        ("DELETE", "/v1/policies/p"),
        ("POST", "/v1/reload"),
        ("PUT", "/v1/uplinks/lines/members/a1"),
    ] {
        let refused = bed.ask(User::Nobody, method, path, Some(&policy(&bed, "a1")))?;
        ensure!(refused.status == 403, "{method} {path}: {refused:?}");
    }
    bed.write_config(&table)?;
    ensure!(bed.ask(User::Root, "POST", "/v1/reload", None)?.status == 204);
    daemon.wait_for_log("[daemon] has changed; restart the daemon to apply it")
}

/// Connections that send nothing or half a request, and others that do not read, delay neither root's requests nor
/// steering.
fn slow_clients_delay_nothing() -> Outcome {
    let bed = Bed::new("api-slow")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    let mut clients = Vec::new();
    for number in 0..20 {
        let mut client = UnixStream::connect(bed.socket())?;
        let said: &[u8] = match number % 4 {
            0 => b"",
            1 => b"GET /v1/sta",
            2 => b"PUT /v1/policies/p HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{\"inter",
            _ => b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        client.write_all(said)?;
        clients.push(client);
    }
    ensure!(bed.get("/v1/health")?["ok"] == true);
    bed.net.remove_uplink(1)?;
    wait_until("the daemon to miss the uplink", PATIENCE, || {
        bed.get("/v1/status").is_ok_and(|status| status["policies"][0]["ifindex"].is_null())
    })?;
    bed.check_closed(&bed.cgroup)?;
    // A connection beyond the limit is closed and takes no place.
    let mut crowd = Vec::new();
    let hung_up = (0..100).any(|_| {
        let Ok(mut client) = UnixStream::connect(bed.socket()) else { return true };
        let _ = client.set_read_timeout(Some(std::time::Duration::from_millis(20)));
        let ended = matches!(client.read(&mut [0]), Ok(0));
        crowd.push(client);
        ended
    });
    ensure!(hung_up, "a hundred connections are kept");
    drop((clients, crowd));
    wait_until("a place", PATIENCE, || bed.get("/v1/health").is_ok())?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    Ok(())
}

/// Clients that say nothing lose their places before the connection of a slow request ends.
fn slow_clients_do_not_silence_the_metrics() -> Outcome {
    let bed = Bed::new("api-silent")?;
    bed.write_config("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    let _daemon = Daemon::start_with(&bed, &["--metrics", METRICS])?;
    let mut request = UnixStream::connect(bed.socket())?;
    request.write_all(b"PUT /v1/policies/p HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{\"inter")?;
    let connect = || bed.net.client.run(|| TcpStream::connect(METRICS));
    let silent = (0..32).map(|_| Ok(connect()??)).collect::<anyhow::Result<Vec<_>>>()?;
    wait_until("the metrics", PATIENCE, || {
        metrics_by_tcp(&bed, "/metrics").is_ok_and(|answer| answer.stdout.contains("steer_sockets_total"))
    })?;
    request.set_nonblocking(true)?;
    let read = request.read(&mut [0]);
    ensure!(read.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "the request ended: {read:?}");
    drop(silent);
    Ok(())
}

fn metrics_by_tcp(bed: &Bed, path: &str) -> anyhow::Result<steer_tests::Output> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", &format!("http://{METRICS}{path}")]);
    output(bed.net.client.enter(&mut curl))
}

/// The response of every readable resource matches the OpenAPI document.
fn matches_the_openapi_document() -> Outcome {
    let bed = Bed::new("api-document")?;
    let _daemon = bed.daemon(
        "[[uplink]]\nname = \"lines\"\nmembers = [\"a1\", \"a0\"]\n\
                    [[policy]]\nname = \"p\"\nuplink = \"lines\"\ncgroups = [\"@\"]\ndns = [\"203.0.113.53\"]\n\
                    local = [\"host\", \"lan\", \"discovery\"]\nexcept = [{ to = \"198.51.100.0/24\", by = \"a0\" }]\n",
    )?;
    bed.succeed(&["attach", bed.cgroup.child("hand")?.path(), "-i", "none"])?;
    let document = bed.get("/v1/openapi.json")?;
    ensure!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    let checked = check_answers(&bed, &document, "p", ("lines", "a1"))?;
    ensure!(checked >= 11, "only {checked} resources");
    Ok(())
}

/// Checks that answers are as a document describes them. Returns how many.
pub(crate) fn check_answers(
    bed: &Bed,
    document: &Value,
    policy: &str,
    (group, member): (&str, &str),
) -> anyhow::Result<usize> {
    let paths = document["paths"].as_object().context("no paths")?;
    let mut checked = 0;
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().context("no operations")? {
            if path == "/v1/events" {
                // It ends only when the client closes the connection: see `events_for_all_listeners`.
                continue;
            }
            let is_hand = path == "/v1/uplinks/{name}/members/{member}";
            let (concrete, wanted) = match (method.as_str(), path.contains("{name}")) {
                ("put", _) if is_hand => (format!("/v1/uplinks/{group}/members/{member}"), "200"),
                ("get", false) => (path.clone(), "200"),
                ("get", true) => (path.replace("{name}", policy), "200"),
                ("put", _) => (path.replace("{name}", "q"), "422"),
                ("delete", _) => (path.replace("{name}", "q"), "404"),
                _ => continue,
            };
            let body = if is_hand { "{\"hand\": \"auto\"}" } else { "{}" };
            let answer = bed.ask(User::Root, &method.to_uppercase(), &concrete, (method == "put").then_some(body))?;
            ensure!(answer.status.to_string() == wanted, "{method} {path}: {answer:?}");
            let content = &operation["responses"][wanted]["content"];
            let Some(schema) = content.get("application/json").map(|json| json["schema"].clone()) else {
                ensure!(path == "/metrics" && !answer.text.is_empty(), "{method} {path} is not described");
                continue;
            };
            let root = json!({"allOf": [schema], "components": document["components"]});
            let validator = jsonschema::validator_for(&root)?;
            let errors: Vec<_> = validator.iter_errors(&answer.body).map(|error| error.to_string()).collect();
            ensure!(errors.is_empty(), "{method} {path}: {errors:?} in {}", answer.body);
            checked += 1;
        }
    }
    Ok(checked)
}

fn health() -> Outcome {
    let bed = Bed::new("api-health")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    ensure!(bed.get("/v1/health")?["ok"] == true);
    bed.write_config("[[policy]]\n")?;
    let ill = bed.ask(User::Root, "GET", "/v1/health", None)?;
    ensure!(
        ill.status == 503 && ill.body["config_error"].as_str().is_some_and(|error| error.contains("missing")),
        "{ill:?}"
    );
    let refused = bed.ask(User::Root, "POST", "/v1/reload", None)?;
    ensure!(refused.status == 422, "{refused:?}");
    let file = bed.config_file().display().to_string();
    ensure!(refused.body["errors"][0]["place"] == json!({"file": file, "line": 1, "column": 1}), "{refused:?}");
    // The commands print what `check` prints, also where the mistake is not in what they were given.
    let checked = bed.run(&["check", &file])?;
    let mistakes = checked.stderr.strip_prefix("steer: ").context("no mistakes")?;
    ensure!(checked.code == 2 && mistakes.starts_with(&format!("{file}:1:1: policy 1: name: missing")), "{checked:?}");
    for arguments in [&["reload"][..], &["policy", "set", "q", "-i", "a1", "--cgroup", "/q"], &["policy", "rm", "q"]] {
        let refused = bed.run(arguments)?;
        ensure!(refused.code == 2 && refused.stderr.contains(mistakes), "{arguments:?}: {refused:?}");
        ensure!(refused.stderr.contains("the files of the configuration have mistakes"), "{arguments:?}: {refused:?}");
    }
    // Nor are the files well while the daemon does not take them.
    bed.write_config("")?;
    let ill = bed.ask(User::Root, "GET", "/v1/health", None)?;
    let why = ill.body["config_error"].as_str().unwrap_or_default();
    ensure!(ill.status == 503 && why.contains("no policy in the files"), "{ill:?}");
    bed.check_steered(&bed.cgroup, 1)
}

/// A file that nobody writes to, and one that no memory holds.
fn files_that_cannot_be_read() -> Outcome {
    let bed = Bed::new("api-unread")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/*\"]\n")?;
    let file = bed.directory.join("policies.d/x.toml");
    let refused = |reason: &str| {
        let refused = bed.ask(User::Root, "POST", "/v1/reload", None)?;
        ensure!(refused.status >= 400 && refused.text.contains(reason), "{refused:?}");
        // The daemon goes on.
        let cgroup = bed.cgroup.child(&format!("of-{}", refused.status))?;
        wait_until("the cgroup to be steered", PATIENCE, || bed.check_steered(&cgroup, 1).is_ok())?;
        cgroup.remove()?;
        fs::remove_file(&file)?;
        anyhow::Ok(())
    };
    mkfifo(&file, Mode::S_IRUSR)?;
    refused("no regular file")?;
    fs::File::create(&file)?.set_len(20 << 30)?;
    refused("larger than 16 MiB")?;
    symlink("/nonexistent", &file)?;
    refused("No such file")?;
    // A directory that is gone, as one that is mounted late, is no removed policy.
    let kept = bed.cgroup.child("kept")?;
    let text = format!("[[policy]]\nname = \"kept\"\ninterface = \"a0\"\ncgroups = [\"{}\"]\n", kept.path());
    fs::write(&file, text)?;
    bed.succeed(&["reload"])?;
    bed.check_steered(&kept, 0)?;
    let directory = bed.directory.join("policies.d");
    fs::rename(&directory, bed.directory.join("elsewhere"))?;
    let reload = bed.run(&["reload"])?;
    ensure!(reload.code != 0 && reload.stderr.contains("make it again, empty"), "{reload:?}");
    symlink("/nonexistent", &directory)?;
    ensure!(bed.run(&["reload"])?.code != 0);
    bed.check_steered(&kept, 0)?;
    fs::remove_file(&directory)?;
    fs::create_dir(&directory)?;
    bed.succeed(&["reload"])?;
    ensure!(bed.policy("kept").is_err());
    daemon.end(Signal::SIGTERM)?;
    Ok(())
}

fn a_file_that_appears_is_a_policy() -> Outcome {
    let bed = Bed::new("api-files")?;
    let daemon = bed.daemon(EMPTY)?;
    let directory = bed.directory.join("policies.d");
    let text = format!("[[policy]]\nname = \"f\"\ninterface = \"a1\"\ncgroups = [\"{}\"]\n", bed.cgroup.path());
    fs::write(directory.join("f.toml.tmp"), "[[")?;
    fs::write(directory.join("f.toml"), text)?;
    daemon.wait_for_log("reloaded")?;
    bed.check_steered(&bed.cgroup, 1)?;
    ensure!(!daemon.log().contains("was not reloaded"), "{}", daemon.log());
    Ok(())
}

fn metrics() -> Outcome {
    let bed = Bed::new("api-metrics")?;
    bed.write_config("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    let _daemon = Daemon::start_with(&bed, &["--metrics", METRICS])?;
    bed.check_steered(&bed.cgroup, 1)?;
    let answer = bed.ask(User::Root, "GET", "/metrics", None)?;
    let bound = bed.sockets("p", "bound")?;
    for line in [
        format!("steer_sockets_total{{origin=\"config\",policy=\"p\",result=\"bound\"}} {bound}"),
        "steer_uplink_present{interface=\"a1\",origin=\"config\",policy=\"p\"} 1".to_owned(),
        "steer_steered_cgroups{origin=\"config\",policy=\"p\"} 1".to_owned(),
        "steer_healthy 1".to_owned(),
    ] {
        ensure!(answer.text.lines().any(|found| found == line), "no {line} in\n{}", answer.text);
    }
    ensure!(metrics_by_tcp(&bed, "/metrics")?.stdout.contains("steer_sockets_total"));
    ensure!(metrics_by_tcp(&bed, "/v1/status")?.stdout.is_empty(), "more than metrics by TCP");
    match check_with_promtool(&answer.text)? {
        Some(checked) => ensure!(checked.code == 0 && checked.stdout.is_empty(), "{checked:?}"),
        None => eprintln!("api::metrics: promtool is not installed, so the format is not checked"),
    }
    Ok(())
}

pub(crate) fn check_with_promtool(metrics: &str) -> anyhow::Result<Option<steer_tests::Output>> {
    let promtool = std::env::var_os("STEER_PROMTOOL").unwrap_or_else(|| "promtool".into());
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    child.stdin.take().context("no pipe")?.write_all(metrics.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = [output.stdout, output.stderr].concat();
    let code = output.status.code().unwrap_or(-1);
    Ok(Some(steer_tests::Output { code, stdout: String::from_utf8_lossy(&text).into_owned(), stderr: String::new() }))
}

/// Two clients follow and both receive the events. A client that has disconnected does not disturb.
fn events_for_all_listeners() -> Outcome {
    let bed = Bed::new("api-events")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--no-buffer", "http://steer/v1/events", "--unix-socket"]).arg(bed.socket());
    let (sender, heard) = std::sync::mpsc::channel();
    let mut children = Vec::new();
    for mut command in [curl, bed.steer(&["events", "--json"])] {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let sender = sender.clone();
        std::thread::spawn(move || drop(sender.send(lines.next())));
        children.push(child);
    }
    // Repeated until both have events: a client that connects later receives only later attempts.
    let mut received = Vec::new();
    wait_until("both clients to receive events", PATIENCE, || {
        let _ = attempt(&bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4);
        received.extend(heard.try_iter());
        received.len() == 2
    })?;
    for line in received {
        let event: Value = serde_json::from_str(&line.context("an end")??)?;
        ensure!(event["policy"] == "p" && event["reason"] == "stopped_setsockopt", "{event}");
    }
    for mut child in children {
        child.kill()?;
        child.wait()?;
    }
    // A command goes on with the next daemon, and ends with `off`.
    let mut command = bed.steer(&["events"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
    let mut said = BufReader::new(child.stderr.take().context("no pipe")?).lines();
    let (sender, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.for_each(|line| drop(sender.send(line))));
    let wait_for_event = |what: &str| {
        wait_until(what, PATIENCE, || {
            let _ = attempt(&bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4);
            heard.try_iter().any(|line| line.is_ok_and(|line| line.contains("stopped_setsockopt")))
        })
    };
    wait_for_event("an event of the first daemon")?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    ensure!(said.next().context("no note")??.contains("the daemon has ended; waiting for the next one"));
    let daemon = Daemon::start(&bed)?;
    wait_for_event("an event of the next daemon")?;
    bed.succeed(&["off"])?;
    drop(daemon);
    ensure!(said.any(|line| line.is_ok_and(|line| line.contains("no more events: steer was switched off"))));
    ensure!(child.wait()?.success());
    Ok(())
}
