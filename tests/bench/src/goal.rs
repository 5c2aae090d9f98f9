//! Goals, and whether they were reached.
//!
//! **Invariant:** a goal is judged by the medians that are printed with it. A goal that could not be measured is not
//! met and not missed.

use std::fmt;

use serde::Serialize;

/// A goal and the medians that decide it.
#[derive(Debug, Serialize)]
pub(crate) struct Goal {
    what: String,
    /// Empty if it could not be measured.
    met: Option<bool>,
    measured: Vec<f64>,
}

impl Goal {
    /// Met if all medians satisfy it.
    pub(crate) fn new(what: impl Into<String>, measured: Vec<f64>, is_met: impl Fn(f64) -> bool) -> Self {
        let met = (!measured.is_empty()).then(|| measured.iter().all(|number| is_met(*number)));
        Self { what: what.into(), met, measured }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.met {
            Some(true) => "met",
            Some(false) => "NOT met",
            None => return write!(formatter, "Goal not measured: {}.", self.what),
        };
        let measured: Vec<_> = self.measured.iter().map(|number| format!("{number:.3}")).collect();
        write!(formatter, "Goal {verdict}: {} ({}).", self.what, measured.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_beyond_it_misses_a_goal_and_no_number_meets_none() {
        let says = |measured: &[f64]| Goal::new("small", measured.to_vec(), |number| number < 1.0).to_string();
        assert_eq!(says(&[0.5, 0.25]), "Goal met: small (0.500, 0.250).");
        assert_eq!(says(&[0.5, 1.5]), "Goal NOT met: small (0.500, 1.500).");
        assert_eq!(says(&[]), "Goal not measured: small.");
    }
}
