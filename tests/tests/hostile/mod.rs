//! Names, trees and links that other users choose, to stop or mislead steer.

mod cgroups;
mod links;
mod names;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("names_cannot_write_to_a_terminal", names::names_cannot_write_to_a_terminal),
    ("deep_cgroups_do_not_stop_the_daemon", cgroups::deep_cgroups_do_not_stop_the_daemon),
    ("without_inotify_watches", cgroups::without_inotify_watches),
    ("names_that_are_not_text", links::names_that_are_not_text),
    ("a_link_with_the_index_of_an_uplink", links::a_link_with_the_index_of_an_uplink),
];
