//! Which time of a request is blamed already.
//!
//! Enters: claims on times. Leaves: how much of each was free. Invariant: a time is given once, and only within the request. A claim costs
//! what it takes pieces, whatever else is free: a request may have 100,000 steps.

use std::collections::BTreeMap;

/// Times that are free, apart: their ends by their starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ledger {
    free: BTreeMap<u64, u64>,
}

impl Ledger {
    pub(super) fn new(from: u64, to: u64) -> Self {
        Self { free: (from < to).then_some((from, to)).into_iter().collect() }
    }

    /// Takes what is free of `from..to`; how much that was, ns.
    pub(super) fn claim(&mut self, from: u64, to: u64) -> u64 {
        self.claim_some(from, to, u64::MAX)
    }

    /// Takes at most `most` ns of what is free of `from..to`, the latest first.
    pub(super) fn claim_some(&mut self, from: u64, to: u64, most: u64) -> u64 {
        let (mut taken, mut left, mut before) = (0, most, to);
        while left > 0 {
            let Some((&start, &end)) = self.free.range(..before).next_back() else { break };
            if end <= from {
                break;
            }
            before = start;
            let (low, high) = (start.max(from), end.min(to));
            if low >= high {
                continue;
            }
            let low = low.max(high.saturating_sub(left));
            taken += high - low;
            left -= high - low;
            self.free.remove(&start);
            self.free.extend([(start, low), (high, end)].into_iter().filter(|(a, b)| a < b));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Ledger {
        /// What is free of `from..to`, ns.
        fn free_in(&self, from: u64, to: u64) -> u64 {
            self.free.iter().map(|(&start, &end)| end.min(to).saturating_sub(start.max(from))).sum()
        }
    }

    #[test]
    fn a_time_is_given_once() {
        // 0 ├──────── 100; 20..40 taken, then 30..60 gives the 20 that are left of it
        let mut ledger = Ledger::new(0, 100);
        assert_eq!((ledger.claim(20, 40), ledger.claim(30, 60), ledger.claim(0, 200)), (20, 20, 60));
        assert_eq!(ledger.claim(0, 100), 0);
    }

    #[test]
    fn some_of_a_time_is_its_end() {
        let mut ledger = Ledger::new(0, 100);
        ledger.claim(80, 90);
        assert_eq!(ledger.claim_some(0, 100, 15), 15);
        assert_eq!(ledger, Ledger { free: BTreeMap::from([(0, 75)]) });
        assert_eq!(ledger.free_in(70, 100), 5);
    }

    #[test]
    fn nothing_is_free_of_a_time_that_ends_before_it_begins() {
        let mut ledger = Ledger::new(50, 10);
        assert_eq!(ledger.claim(0, 100), 0);
        let mut ledger = Ledger::new(0, 100);
        assert_eq!(ledger.claim(60, 40), 0);
    }

    #[test]
    fn pieces_of_many_steps_are_taken_one_by_one() {
        // 400,000 steps of 8 ns: the first of each, then one in the midst of what is left
        let steps = || (0_u64..400_000).map(|step| step * 8);
        let mut ledger = Ledger::new(0, 3_200_000);
        let began = std::time::Instant::now();
        assert_eq!(steps().map(|at| ledger.claim(at, at + 1)).sum::<u64>(), 400_000);
        assert_eq!(steps().map(|at| ledger.claim(at + 4, at + 5)).sum::<u64>(), 400_000);
        assert_eq!(ledger.claim(0, 3_200_000), 2_400_000);
        // Where each piece moves those behind it, this takes far longer.
        assert!(began.elapsed().as_secs() < 15, "{:?}", began.elapsed());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_given_is_never_more_than_there_is(
            claims in proptest::collection::vec((0_u64..1000, 0_u64..1000, 0_u64..1000), 0..60)
        ) {
            let mut ledger = Ledger::new(100, 900);
            let mut given = 0;
            for (from, to, most) in claims {
                let free = ledger.free_in(from, to);
                let taken = ledger.claim_some(from, to, most);
                prop_assert!(taken == free.min(most), "{taken} of {free}");
                given += taken;
            }
            prop_assert!(given <= 800);
            prop_assert_eq!(given + ledger.free_in(0, 1000), 800);
        }
    }
}
