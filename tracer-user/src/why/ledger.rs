//! Which time of a request is blamed already.
//!
//! Enters: claims on times. Leaves: how much of each was free. Invariant: a time is given once, and only within the request.

/// Times that are free, apart and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ledger {
    free: Vec<(u64, u64)>,
}

impl Ledger {
    pub(super) fn new(from: u64, to: u64) -> Self {
        Self { free: if from < to { vec![(from, to)] } else { Vec::new() } }
    }

    /// Takes what is free of `from..to`; how much that was, ns.
    pub(super) fn claim(&mut self, from: u64, to: u64) -> u64 {
        self.claim_some(from, to, u64::MAX)
    }

    /// Takes at most `most` ns of what is free of `from..to`, the latest first.
    pub(super) fn claim_some(&mut self, from: u64, to: u64, most: u64) -> u64 {
        let (mut taken, mut left) = (0, most);
        let mut at = self.free.partition_point(|free| free.0 < to);
        while at > 0 && left > 0 {
            at -= 1;
            let (start, end) = self.free[at];
            let (low, high) = (start.max(from), end.min(to));
            if end <= from {
                break;
            }
            if low >= high {
                continue;
            }
            let low = low.max(high.saturating_sub(left));
            taken += high - low;
            left -= high - low;
            let rest = [(start, low), (high, end)].into_iter().filter(|(a, b)| a < b);
            self.free.splice(at..=at, rest);
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
            let first = self.free.partition_point(|free| free.1 <= from);
            let inside = self.free[first..].iter().take_while(|free| free.0 < to);
            inside.map(|&(start, end)| end.min(to).saturating_sub(start.max(from))).sum()
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
        assert_eq!(ledger, Ledger { free: vec![(0, 75)] });
        assert_eq!(ledger.free_in(70, 100), 5);
    }

    #[test]
    fn nothing_is_free_of_a_time_that_ends_before_it_begins() {
        let mut ledger = Ledger::new(50, 10);
        assert_eq!(ledger.claim(0, 100), 0);
        let mut ledger = Ledger::new(0, 100);
        assert_eq!(ledger.claim(60, 40), 0);
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
