//! Which decode steps of a generation become spans of their own, and which fold into an aggregate.
//!
//! Enters: the times of its steps. Leaves: pieces in order that cover every step once. The first [`FIRST`] steps, the last
//! [`LAST`] and the slowest outliers stand alone; runs between them fold into count, min, p50 and max.

use super::generation::TokensAt;

/// Steps shown at the start.
pub const FIRST: usize = 8;
/// Steps shown at the end.
pub const LAST: usize = 2;
/// A step is a slow outlier when it took more than this many times the median.
pub const OUTLIER: u64 = 3;

/// A part of the decode phase. Step k leads from token k−1 to token k.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Piece {
    Step {
        k: usize,
    },
    /// Steps `first..=last`; durations in ns.
    Folded {
        first: usize,
        last: usize,
        min: u64,
        p50: u64,
        max: u64,
    },
}

/// Cuts the steps between `tokens` (one entry a step, the first being the prefill's) into pieces, with at most `outliers`
/// slow ones shown.
pub fn fold(tokens: &[TokensAt], outliers: usize) -> Vec<Piece> {
    let steps = tokens.len().saturating_sub(1);
    let duration = |k: usize| tokens[k].at.saturating_sub(tokens[k - 1].at);
    let mut sorted: Vec<u64> = (1..=steps).map(duration).collect();
    sorted.sort_unstable();
    let Some(&median) = sorted.get(steps / 2) else { return Vec::new() };
    let mut slow: Vec<usize> = (1..=steps).filter(|&k| duration(k) > OUTLIER * median).collect();
    // The slowest ones are shown; among equals the earlier.
    slow.sort_by_key(|&k| (std::cmp::Reverse(duration(k)), k));
    slow.truncate(outliers);
    slow.sort_unstable();

    let shown = |k: usize| k <= FIRST || k + LAST > steps || slow.binary_search(&k).is_ok();
    let mut pieces = Vec::new();
    let mut k = 1;
    while k <= steps {
        let mut last = k;
        if !shown(k) {
            while last < steps && !shown(last + 1) {
                last += 1;
            }
        }
        if last == k {
            pieces.push(Piece::Step { k });
        } else {
            let mut run: Vec<u64> = (k..=last).map(duration).collect();
            run.sort_unstable();
            pieces.push(Piece::Folded {
                first: k,
                last,
                min: run[0],
                p50: run[run.len() / 2],
                max: run[run.len() - 1],
            });
        }
        k = last + 1;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generation::StepRef;

    fn tokens(durations: &[u64]) -> Vec<TokensAt> {
        let step = StepRef { engine: 0, stamp: 0 };
        let mut at = 0;
        std::iter::once(0)
            .chain(durations.iter().copied())
            .map(|d| {
                at += d;
                TokensAt { at, received: at, tokens: 1, step }
            })
            .collect()
    }

    #[test]
    fn a_long_decode_shows_its_ends_and_its_outlier_and_folds_the_rest() {
        // steps: 1..8 shown, 9..49 folded, 50 slow, 51..98 folded, 99..100 shown
        let mut durations = vec![10; 100];
        durations[49] = 500;
        durations[20] = 7;
        let pieces = fold(&tokens(&durations), 40);
        assert_eq!(pieces.len(), 8 + 1 + 1 + 1 + 2);
        assert_eq!(pieces[8], Piece::Folded { first: 9, last: 49, min: 7, p50: 10, max: 10 });
        assert_eq!(pieces[9], Piece::Step { k: 50 });
        assert_eq!(pieces[10], Piece::Folded { first: 51, last: 98, min: 10, p50: 10, max: 10 });
    }

    #[test]
    fn every_step_is_covered_once() {
        for n in 0..40 {
            let mut next = 1;
            for piece in fold(&tokens(&vec![5; n]), 3) {
                let (first, last) = match piece {
                    Piece::Step { k } => (k, k),
                    Piece::Folded { first, last, .. } => (first, last),
                };
                assert_eq!(first, next);
                next = last + 1;
            }
            assert_eq!(next, n + 1);
        }
    }

    #[test]
    fn a_storm_of_outliers_stays_bounded() {
        let durations: Vec<u64> = (0..1000).map(|i| if i % 3 == 0 { 1000 } else { 10 }).collect();
        assert!(fold(&tokens(&durations), 40).len() <= FIRST + LAST + 2 * 40 + 1);
    }
}
