//! The integration tests run the real binary in their own labs, all at once. They need root; without it every test
//! shows as ignored, with the reason.

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use steer_tests::{NotHere, Outcome};

mod account;
mod api;
mod attach;
mod containers;
mod daemon;
mod dns;
mod dns_link;
mod doctor;
mod documents;
mod earlier;
mod escape;
mod events;
mod exec;
mod exec_user;
mod existing;
mod explain;
mod faults;
mod filter;

mod guards;
mod hostile;
mod instance;
mod kernel;
mod lifecycle;
mod limits;
mod lingering;
mod listeners;
mod local;
mod managers;
mod model;
mod moved;
mod nested;
mod observe;
mod other_netns;
mod package;
mod peers;
mod plan;
mod reach;
mod records;
mod refusals;
mod suites;
mod systemd;
mod top;
mod uplink_auto;
mod uplink_groups;
mod uplink_health;
mod uplink_settings;
mod uplinks;
mod verifier;
mod vrf;
mod wireguard;
mod words;

type Test = (&'static str, fn() -> Outcome);

fn report(outcome: Outcome) -> Result<Completion, Failed> {
    match outcome.map_err(anyhow::Error::downcast) {
        Ok(()) => Ok(Completion::Completed),
        Err(Ok(NotHere(why))) => Ok(Completion::ignored_with(why)),
        Err(Err(error)) => Err(format!("{error:#}").into()),
    }
}

/// Whether tests of this module, and not all tests, are requested.
fn is_asked(arguments: &Arguments, module: &str) -> bool {
    arguments.filter.as_ref().is_some_and(|filter| filter.starts_with(module))
}

fn main() {
    let modules: &[(&str, &[Test])] = &[
        ("exec", exec::TESTS),
        ("exec_user", exec_user::TESTS),
        ("moved", moved::TESTS),
        ("filter", filter::TESTS),
        ("attach", attach::TESTS),
        ("daemon", daemon::TESTS),
        ("plan", plan::TESTS),
        ("nested", nested::TESTS),
        ("observe", observe::TESTS),
        ("uplinks", uplinks::TESTS),
        ("vrf", vrf::TESTS),
        ("wireguard", wireguard::TESTS),
        ("words", words::TESTS),
        ("instance", instance::TESTS),
        ("lifecycle", lifecycle::TESTS),
        ("refusals", refusals::TESTS),
        ("limits", limits::TESTS),
        ("lingering", lingering::TESTS),
        ("listeners", listeners::TESTS),
        ("local", local::TESTS),
        ("reach", reach::TESTS),
        ("uplink_auto", uplink_auto::TESTS),
        ("uplink_groups", uplink_groups::TESTS),
        ("uplink_health", uplink_health::TESTS),
        ("uplink_settings", uplink_settings::TESTS),
        ("guards", guards::TESTS),
        ("other_netns", other_netns::TESTS),
        ("hostile", hostile::TESTS),
        ("dns", dns::TESTS),
        ("dns_link", dns_link::TESTS),
        ("account", account::TESTS),
        ("api", api::TESTS),
        ("events", events::TESTS),
        ("top", top::TESTS),
        ("existing", existing::TESTS),
        ("explain", explain::TESTS),
        ("explain::host", explain::host::TESTS),
        ("explain::packet", explain::packet::TESTS),
        ("model", model::TESTS),
        ("records", records::TESTS),
        ("faults", faults::TESTS),
        ("systemd", systemd::TESTS),
        ("package", package::TESTS),
        ("documents", documents::TESTS),
        ("earlier", earlier::TESTS),
        ("doctor", doctor::TESTS),
        ("doctor::cgroups", doctor::cgroups::TESTS),
        ("doctor::namespaces", doctor::namespaces::TESTS),
        ("doctor::pins", doctor::pins::TESTS),
        ("doctor::routes", doctor::routes::TESTS),
        ("doctor::sockets", doctor::sockets::TESTS),
        ("doctor::uplinks", doctor::uplinks::TESTS),
        ("verifier", verifier::TESTS),
    ];
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("the integration tests make network namespaces and load BPF programs, which needs root: ignored");
    }
    let mut arguments = Arguments::from_args();
    // Most tests wait most of the time. Some need an answer in time.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    arguments.test_threads.get_or_insert(processors + 1);
    // The tests of the kernel are also in other modules.
    let kernel = is_asked(&arguments, "kernel").then_some(("kernel", kernel::TESTS));
    let modules = modules.iter().copied().chain(containers::MODULES).chain(kernel);
    let trials = modules.flat_map(|(module, tests)| {
        tests.iter().map(move |&(name, test)| {
            Trial::ignorable_test(format!("{module}::{name}"), move || report(test())).with_ignored_flag(!root)
        })
    });
    let peers = if is_asked(&arguments, "peers") { peers::trials(root) } else { Vec::new() };
    let managers = if is_asked(&arguments, "managers") { managers::trials(root) } else { Vec::new() };
    let suites = if is_asked(&arguments, "suites") { suites::trials(root) } else { Vec::new() };
    let slow = peers.into_iter().chain(managers).chain(suites);
    let mut trials: Vec<_> = trials.chain(escape::trials(root)).chain(slow).collect();
    // Documents also name tests of the suites.
    let suites = suites::trials(root);
    let names: Vec<_> = trials.iter().chain(&suites).map(|trial| trial.name().to_owned()).collect();
    trials.push(Trial::test("documents_name_tests_that_exist", move || documents::check(&names)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    escape::remove_beds();
    if !arguments.list && is_asked(&arguments, "escape") {
        escape::print_table();
    }
    if !arguments.list && is_asked(&arguments, "peers") {
        peers::print_tables();
    }
    if !arguments.list && is_asked(&arguments, "managers") {
        managers::print_tables();
    }
    if !arguments.list && is_asked(&arguments, "suites") {
        suites::print_table();
    }
    conclusion.exit();
}
