//! The rounds: in each round, every variant takes one short turn.
//!
//! **Invariant:** the order of turns differs in each round, because the next turn pays for what a turn leaves to be
//! freed later.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::interrupt;

/// The number of turns of each variant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds(pub(crate) u32);

impl Rounds {
    /// Splits these rounds into this number of parts, or fewer, of nearly the same length.
    pub(crate) fn parts(self, count: u32) -> impl Iterator<Item = Self> {
        let of_part = move |part| Self(self.0 * (part + 1) / count - self.0 * part / count);
        (0..count).map(of_part).filter(|part| part.0 > 0)
    }

    /// Returns one number from each turn of each round. It runs one additional round: the first round has cold caches
    /// and does not count.
    pub(crate) fn take_turns<T: Copy + Ord>(
        self,
        turns: &mut [T],
        mut take: impl FnMut(&T) -> Result<f64>,
    ) -> Result<BTreeMap<T, Vec<f64>>> {
        let mut order = Order(0x9e37_79b9_7f4a_7c15);
        let mut samples = BTreeMap::<T, Vec<f64>>::new();
        for round in 0..=self.0 {
            interrupt::check()?;
            order.shuffle(turns);
            for turn in &*turns {
                let sample = take(turn)?;
                if round > 0 {
                    samples.entry(*turn).or_default().push(sample);
                }
            }
        }
        Ok(samples)
    }
}

/// Orders that look random and are the same in every run (xorshift).
struct Order(u64);

impl Order {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The high half is more random, and fits any `usize`.
        usize::try_from(self.0 >> 33).map_or(0, |number| number % bound)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_turn_is_taken_in_every_round_and_the_first_round_dropped() {
        let mut taken = 0.0;
        let mut turns = ['a', 'b', 'c'];
        let samples = Rounds(4).take_turns(&mut turns, |_| {
            taken += 1.0;
            Ok(taken)
        });
        let samples = samples.expect("no turn fails");
        assert_eq!(samples.keys().collect::<String>(), "abc");
        let mut all: Vec<f64> = samples.into_values().flatten().collect();
        all.sort_by(f64::total_cmp);
        assert_eq!(all, (4..=15).map(f64::from).collect::<Vec<_>>());
    }

    #[test]
    fn parts_make_up_the_whole() {
        for (rounds, expected) in [(25, vec![2, 3, 2, 3, 2, 3, 2, 3, 2, 3]), (2, vec![1, 1])] {
            assert_eq!(Rounds(rounds).parts(10).map(|part| part.0).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn each_turn_stands_in_each_place() {
        let mut order = Order(1);
        let mut places = [[0; 3]; 3];
        let mut turns = [0, 1, 2];
        for _ in 0..300 {
            order.shuffle(&mut turns);
            for (place, turn) in turns.into_iter().enumerate() {
                places[turn][place] += 1;
            }
        }
        assert!(places.iter().flatten().all(|count| *count > 60), "{places:?}");
    }
}
