//! Faults: kills at any system call, errors of the kernel, and storms of events. docs/faults.md is their table.

mod errors;
mod killed;
mod rules;
mod storms;
mod switches;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("killed_while_it_attaches", killed::while_it_attaches),
    ("killed_while_it_attaches_the_first_cgroup", killed::while_it_attaches_the_first_cgroup),
    ("killed_while_it_detaches", killed::while_it_detaches),
    ("killed_while_it_detaches_beside_a_daemon", killed::while_it_detaches_beside_a_daemon),
    ("killed_as_a_hook", killed::as_a_hook),
    ("killed_while_it_starts_a_command", killed::while_it_starts_a_command),
    ("killed_as_a_daemon_that_starts", killed::as_a_daemon_that_starts),
    ("killed_while_it_switches_uplinks", switches::while_it_switches),
    ("killed_while_it_writes_rules", rules::while_it_writes_rules),
    ("killed_while_it_switches_off", killed::while_it_switches_off),
    ("killed_while_it_stores_a_policy", killed::while_it_stores_a_policy),
    ("killed_while_it_writes_a_drop_in", killed::while_it_writes_a_drop_in),
    ("an_error_of_bpf_while_it_attaches", errors::of_bpf_while_it_attaches),
    ("an_error_of_bpf_in_a_hook", errors::of_bpf_in_a_hook),
    ("a_full_disk", errors::full_disk),
    ("no_slot_is_left", errors::no_slot_is_left),
    ("a_bpffs_that_is_unmounted", errors::bpffs_that_is_unmounted),
    ("lost_reports_of_links", storms::lost_reports_of_links),
    ("a_storm_of_link_events", storms::storm_of_link_events),
    ("a_storm_of_cgroups", storms::storm_of_cgroups),
];
