//! Statistics over many rounds.
//!
//! **Invariant:** pairs are compared within their round before they are summed up, so a disturbance of a round affects
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
    /// The spread of at least one number.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let sorted = sorted(numbers);
        Self { min: sorted[0], median: middle(&sorted), max: sorted[sorted.len() - 1] }
    }

    /// The spread of `combine` applied to each round's pair.
    pub(crate) fn of_pairs(a: &[f64], b: &[f64], combine: impl Fn(f64, f64) -> f64) -> Self {
        Self::of(a.iter().zip(b).map(|(a, b)| combine(*a, *b)))
    }
}

/// How long something takes in most cases, and in nearly all.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) median: f64,
    pub(crate) p99: f64,
}

impl Latency {
    /// Of at least one number.
    pub(crate) fn of(samples: Vec<f64>) -> Self {
        let sorted = sorted(samples);
        Self { median: sorted[sorted.len() / 2], p99: sorted[sorted.len() * 99 / 100] }
    }
}

/// A median and its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Median {
    pub(crate) value: f64,
    /// With a confidence of 95 %, the median of infinitely many rounds lies above this...
    pub(crate) low: f64,
    /// ... and below this.
    pub(crate) high: f64,
}

impl Median {
    /// The median of `combine` applied to each round's pair; there must be at least one.
    pub(crate) fn of_pairs(a: &[f64], b: &[f64], combine: impl Fn(f64, f64) -> f64) -> Self {
        let sorted = sorted(a.iter().zip(b).map(|(a, b)| combine(*a, *b)));
        let beyond = ranks_beyond(sorted.len());
        Self { value: middle(&sorted), low: sorted[beyond], high: sorted[sorted.len() - 1 - beyond] }
    }
}

/// The sorted numbers.
pub(crate) fn sorted(numbers: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = numbers.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn middle(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] }
}

/// How many of the smallest, and of the largest, of `count` numbers lie outside the 95 % confidence interval of their
/// median. The number of values below the true median has a binomial distribution, with a standard deviation of half
/// the root of their count; 1.96 times that is slightly less than the root.
fn ranks_beyond(count: usize) -> usize {
    (count / 2).saturating_sub(count.isqrt() + 1)
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
    fn more_rounds_know_the_median_better() {
        let width = |count: u32| {
            let numbers: Vec<f64> = (0..count).map(f64::from).collect();
            let Median { value, low, high } =
                Median::of_pairs(&numbers, &numbers, |number, _| number / f64::from(count));
            assert!(low <= value && value <= high, "{low} {value} {high}");
            high - low
        };
        assert!(width(1) == 0.0 && width(4) > 0.7);
        assert!(width(100) > width(1000) && width(1000) > 0.06);
    }

    #[test]
    fn a_disturbed_round_does_not_move_the_ratio() {
        let ratio = Spread::of_pairs(&[2.0, 200.0, 2.2], &[1.0, 100.0, 1.1], |a, b| a / b);
        assert_eq!(ratio, Spread { min: 2.0, median: 2.0, max: 2.0 });
    }
}
