//! Sums of many rounds.
//!
//! **Invariant:** pairs are compared within their round first and summed up afterwards, so what disturbs a round disturbs
//! both halves of its ratio.

use serde::Serialize;

/// The spread of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one number.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Self { min: sorted[0], median, max: sorted[sorted.len() - 1] }
    }

    /// Of what `combine` makes of each round's pair.
    pub(crate) fn of_pairs(a: &[f64], b: &[f64], combine: impl Fn(f64, f64) -> f64) -> Self {
        Self::of(a.iter().zip(b).map(|(a, b)| combine(*a, *b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_odd_and_of_an_even_number() {
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 9.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]), Spread { min: 1.0, median: 3.0, max: 8.0 });
    }

    #[test]
    fn a_disturbed_round_does_not_move_the_ratio() {
        let ratio = Spread::of_pairs(&[2.0, 200.0, 2.2], &[1.0, 100.0, 1.1], |a, b| a / b);
        assert_eq!(ratio, Spread { min: 2.0, median: 2.0, max: 2.0 });
    }
}
