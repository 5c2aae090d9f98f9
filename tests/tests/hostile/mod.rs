//! Names, trees and links that other users choose, to stop or mislead steer.

mod names;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("names_cannot_write_to_a_terminal", names::names_cannot_write_to_a_terminal)];
