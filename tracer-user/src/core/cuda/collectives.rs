//! Collectives of a step, rank by rank: who comes last to them.
//!
//! Enters: what each rank entered in a step, in order. Leaves: by how much the last rank was behind the first, and which it mostly was.
//! Nothing where the ranks did not enter the same: a call that was not seen would shift all that follow.

use std::collections::BTreeMap;

use crate::input::EventNanos;
use crate::input::cuda::CollectiveKind;

/// A rank entered a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entered {
    pub at: EventNanos,
    pub kind: CollectiveKind,
    pub bytes: u64,
}

impl Entered {
    fn is_like(&self, other: &Self) -> bool {
        (self.kind, self.bytes) == (other.kind, other.bytes)
    }
}

/// How far apart the ranks of a step were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Skew {
    /// The most in one collective, ns.
    pub most: u64,
    /// The rank that came last to most of them, the lower one of two; nobody where none was behind.
    pub straggler: Option<u32>,
}

/// What ranks entered; ranks send and receive by themselves, which does not tell them apart.
pub(super) fn skew(ranks: &BTreeMap<u32, Vec<Entered>>) -> Option<Skew> {
    let both = |entered: &&Entered| !matches!(entered.kind, CollectiveKind::Send | CollectiveKind::Recv);
    let ranks: Vec<(u32, Vec<&Entered>)> =
        ranks.iter().map(|(rank, entered)| (*rank, entered.iter().filter(both).collect())).collect();
    let (_, first) = ranks.first().filter(|(_, entered)| !entered.is_empty())?;
    let is_same =
        |of: &[&Entered]| of.len() == first.len() && of.iter().zip(first).all(|(one, other)| one.is_like(other));
    if ranks.len() < 2 || !ranks.iter().all(|(_, of)| is_same(of)) {
        return None;
    }
    let mut most = 0;
    let mut last: BTreeMap<u32, usize> = BTreeMap::new();
    for index in 0..first.len() {
        let at = || ranks.iter().map(|(rank, of)| (of[index].at, *rank));
        let (Some((from, _)), Some((to, rank))) = (at().min(), at().max()) else { continue };
        if to > from {
            most = most.max(to - from);
            *last.entry(rank).or_default() += 1;
        }
    }
    let straggler =
        last.into_iter().max_by_key(|(rank, times)| (*times, std::cmp::Reverse(*rank))).map(|(rank, _)| rank);
    Some(Skew { most, straggler })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entered(times: &[(EventNanos, u64)]) -> Vec<Entered> {
        let reduce = |&(at, bytes)| Entered { at, kind: CollectiveKind::AllReduce, bytes };
        times.iter().map(reduce).collect()
    }

    #[test]
    fn the_rank_that_others_wait_for_is_named() {
        // rank 0 │ R   R    R │
        // rank 1 │  R    R R  │
        let ranks = [(0, entered(&[(10, 8), (20, 8), (35, 8)])), (1, entered(&[(12, 8), (27, 8), (33, 8)]))];
        assert_eq!(skew(&BTreeMap::from(ranks)), Some(Skew { most: 7, straggler: Some(1) }));
    }

    #[test]
    fn ranks_that_did_not_enter_the_same_say_nothing() {
        // rank 1's second was not seen
        let ranks = [(0, entered(&[(10, 8), (20, 8)])), (1, entered(&[(12, 8)]))];
        assert_eq!(skew(&BTreeMap::from(ranks)), None);
        let ranks = [(0, entered(&[(10, 8)])), (1, entered(&[(12, 16)]))];
        assert_eq!(skew(&BTreeMap::from(ranks)), None);
        assert_eq!(skew(&BTreeMap::from([(0, entered(&[(10, 8)]))])), None, "one rank");
    }
}
