//! Which decode steps of a generation become spans of their own, and which fold into an aggregate.
//!
//! Enters: steps in order, each marked slow or not. Leaves: pieces in order. Runs of steps that are not shown fold into count,
//! min, p50 and max. A [`Folder`] can be appended to another one, so that the older part of a long generation is folded before
//! its end is known.

use crate::input::EventNanos;

/// A step is a slow outlier when it took more than this many times the median.
pub const OUTLIER: u64 = 3;

/// Blocks whose medians are kept.
const MAX_MEDIANS: usize = 64;

/// A part of the decode phase. Step k leads from token k−1 to token k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    Step {
        k: u64,
        from: EventNanos,
        to: EventNanos,
        tokens: u32,
        /// The engine's own stamp of the step, ns.
        stamp: i64,
    },
    Folded(Folded),
}

/// Steps `first..=last`; durations in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folded {
    pub first: u64,
    pub last: u64,
    pub from: EventNanos,
    pub to: EventNanos,
    pub min: u64,
    pub p50: u64,
    pub max: u64,
}

impl Folded {
    fn count(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }
}

/// How a step is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    Always,
    /// While it is among the slowest.
    Slow,
    Never,
}

/// Folds as steps come.
#[derive(Debug, Clone, Default)]
pub struct Folder {
    pieces: Vec<(Piece, Show)>,
    /// Medians of blocks of steps, and the counts of these; of a long generation, of every so many blocks one.
    medians: Vec<(u64, u64)>,
    /// Blocks that each of them stands for, but 1; and how many were passed over since the last one.
    passed_each: u64,
    passed: u64,
}

impl Folder {
    /// Bytes that it takes.
    pub fn held_bytes(&self) -> usize {
        self.pieces.capacity() * size_of::<(Piece, Show)>() + self.medians.capacity() * size_of::<(u64, u64)>()
    }

    /// Takes a block of durations into the median by which slow steps are told.
    pub fn learn_median(&mut self, durations: impl Iterator<Item = u64>) {
        let mut block: Vec<u64> = durations.collect();
        if block.is_empty() {
            return;
        }
        if self.passed < self.passed_each {
            self.passed += 1;
            return;
        }
        self.passed = 0;
        // Beyond so many blocks every second one is forgotten, and from then on every second one passed over: those that are kept stand
        // for all of the generation alike.
        if self.medians.len() == MAX_MEDIANS {
            self.medians = self.medians.iter().copied().step_by(2).collect();
            self.passed_each = self.passed_each.saturating_mul(2).saturating_add(1);
        }
        let count = block.len() as u64;
        let middle = block.len() / 2;
        let median = *block.select_nth_unstable(middle).1;
        self.medians.push((median, count));
    }

    /// The median of the blocks' medians, weighted by their counts.
    pub fn median(&self) -> u64 {
        weighted_median(self.medians.clone())
    }

    /// Pieces held.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Takes a step that is shown in any case.
    pub fn show(&mut self, step: Piece) {
        self.pieces.push((step, Show::Always));
    }

    /// Takes the next step.
    pub fn push(&mut self, step: Piece, slow: bool) {
        self.pieces.push((step, if slow { Show::Slow } else { Show::Never }));
    }

    /// Takes over all of `other`, which comes behind.
    pub fn append(&mut self, other: &Self) {
        self.pieces.extend_from_slice(&other.pieces);
    }

    /// Leaves at most `outliers` slow steps; the slowest, and among equals the earlier.
    pub fn keep(&mut self, outliers: usize) {
        let mut slow: Vec<(std::cmp::Reverse<u64>, usize)> = self
            .pieces
            .iter()
            .enumerate()
            .filter_map(|(i, (piece, show))| match piece {
                Piece::Step { from, to, .. } if *show == Show::Slow => {
                    Some((std::cmp::Reverse(to.saturating_sub(*from)), i))
                }
                _ => None,
            })
            .collect();
        slow.sort_unstable();
        for (_, i) in slow.into_iter().skip(outliers) {
            self.pieces[i].1 = Show::Never;
        }
    }

    /// Folds what is not shown, to hold less.
    pub fn compact(&mut self) {
        let mut out = Vec::with_capacity(self.pieces.len().min(256));
        let mut run = Vec::new();
        for &(piece, show) in &self.pieces {
            if show == Show::Never {
                run.push(piece);
                continue;
            }
            out.extend(fold(&run).map(|piece| (piece, Show::Never)));
            run.clear();
            out.push((piece, show));
        }
        out.extend(fold(&run).map(|piece| (piece, Show::Never)));
        self.pieces = out;
    }

    /// The pieces, folded.
    pub fn pieces(mut self) -> Vec<Piece> {
        self.compact();
        self.pieces.into_iter().map(|(piece, _)| piece).collect()
    }
}

/// One piece of a run; a step that stands alone stays one.
fn fold(run: &[Piece]) -> Option<Piece> {
    let (first, last) = (run.first()?, run.last()?);
    if run.len() == 1 {
        return Some(*first);
    }
    let (mut min, mut max) = (u64::MAX, 0);
    let mut steps = Vec::new();
    // Medians of the parts that were folded before, by their counts.
    let (mut weight, mut sum) = (0u64, 0u128);
    for piece in run {
        match piece {
            Piece::Step { from, to, .. } => steps.push(to.saturating_sub(*from)),
            Piece::Folded(part) => {
                (min, max) = (min.min(part.min), max.max(part.max));
                weight = weight.saturating_add(part.count());
                sum = sum.saturating_add(u128::from(part.p50) * u128::from(part.count()));
            }
        }
    }
    if !steps.is_empty() {
        let middle = steps.len() / 2;
        let p50 = *steps.select_nth_unstable(middle).1;
        weight = weight.saturating_add(steps.len() as u64);
        sum = sum.saturating_add(u128::from(p50) * steps.len() as u128);
        min = min.min(steps.iter().copied().min().unwrap_or(min));
        max = max.max(steps.iter().copied().max().unwrap_or(max));
    }
    let p50 = u64::try_from(sum / u128::from(weight.max(1))).unwrap_or(u64::MAX);
    let start = |piece: &Piece| match piece {
        Piece::Step { from, .. } | Piece::Folded(Folded { from, .. }) => *from,
    };
    let end = |piece: &Piece| match piece {
        Piece::Step { to, .. } | Piece::Folded(Folded { to, .. }) => *to,
    };
    Some(Piece::Folded(Folded {
        first: first.range().0,
        last: last.range().1,
        from: start(first),
        to: end(last),
        min,
        p50,
        max,
    }))
}

fn weighted_median(mut values: Vec<(u64, u64)>) -> u64 {
    values.sort_unstable();
    let half = values.iter().fold(0_u64, |sum, v| sum.saturating_add(v.1)) / 2;
    let mut seen = 0;
    values
        .iter()
        .find(|(_, count)| {
            seen += count;
            seen > half
        })
        .map_or(0, |v| v.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Step k, which took so long.
    fn step(k: u64, took: u64) -> Piece {
        Piece::Step { k, from: 1_000 * k, to: 1_000 * k + took, tokens: 1, stamp: k as i64 }
    }

    /// First and last step of each piece.
    fn ranges(pieces: &[Piece]) -> Vec<(u64, u64)> {
        pieces.iter().map(Piece::range).collect()
    }

    #[test]
    fn runs_fold_between_what_is_shown_and_a_step_alone_stays_one() {
        // 1 shown · 2, 3, 4 · 5 slow · 6 · 7 shown
        let mut folder = Folder::default();
        folder.show(step(1, 10));
        for (k, took) in [(2, 10), (3, 30), (4, 20)] {
            folder.push(step(k, took), false);
        }
        folder.push(step(5, 900), true);
        folder.push(step(6, 10), false);
        folder.show(step(7, 10));
        let pieces = folder.pieces();
        assert_eq!(ranges(&pieces), [(1, 1), (2, 4), (5, 5), (6, 6), (7, 7)]);
        let expected = Folded { first: 2, last: 4, from: 2_000, to: 4_020, min: 10, p50: 20, max: 30 };
        assert_eq!(pieces[1], Piece::Folded(expected));
        assert!(matches!(pieces[3], Piece::Step { .. }));
    }

    #[test]
    fn only_the_slowest_are_kept_and_among_equals_the_earlier() {
        // slow: 1 (50), 2 (70), 3 (50), 4 (60)
        let mut folder = Folder::default();
        for (k, took) in [(1, 50), (2, 70), (3, 50), (4, 60)] {
            folder.push(step(k, took), true);
        }
        folder.keep(3);
        folder.push(step(5, 1), false);
        let pieces = folder.clone().pieces();
        assert_eq!(ranges(&pieces), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
        folder.keep(1);
        assert_eq!(ranges(&folder.pieces()), [(1, 1), (2, 2), (3, 5)]);
    }

    #[test]
    fn folding_in_parts_covers_the_same_steps_as_folding_at_once() {
        // 1–4 folded before, then 5–8
        let mut older = Folder::default();
        (1..=4).for_each(|k| older.push(step(k, 10 * k), false));
        older.compact();
        assert_eq!(older.len(), 1);
        let mut folder = Folder::default();
        folder.append(&older);
        (5..=8).for_each(|k| folder.push(step(k, 10 * k), false));
        let pieces = folder.pieces();
        // Medians 30 (of 10, 20, 30, 40) and 70, of four steps each.
        let expected = Folded { first: 1, last: 8, from: 1_000, to: 8_080, min: 10, p50: 50, max: 80 };
        assert_eq!(pieces, [Piece::Folded(expected)]);
    }

    #[test]
    fn the_median_of_blocks_weighs_them_by_their_counts_and_stays_bounded() {
        let mut folder = Folder::default();
        folder.learn_median(std::iter::empty());
        assert_eq!(folder.median(), 0);
        folder.learn_median([100].into_iter());
        folder.learn_median([10, 10, 10].into_iter());
        assert_eq!(folder.median(), 10);
    }

    #[test]
    fn the_median_of_a_long_generation_is_of_all_of_it_and_what_is_kept_is_bounded() {
        // 300 blocks of 10, 2,000 of 30, then as many of 70 again
        let mut folder = Folder::default();
        let mut learn = |blocks, took| {
            (0..blocks).for_each(|_| folder.learn_median([took; 3].into_iter()));
            (folder.median(), folder.medians.len() <= MAX_MEDIANS)
        };
        assert_eq!(learn(300, 10), (10, true));
        assert_eq!(learn(2_000, 30), (30, true));
        assert_eq!(learn(4_000, 70), (70, true));
    }

    #[test]
    fn times_at_both_ends_of_the_clock_are_folded() {
        // backwards, and over all of time
        let piece = |k, from, to| Piece::Step { k, from, to, tokens: u32::MAX, stamp: i64::MIN };
        let mut folder = Folder::default();
        for (k, from, to) in [(0, u64::MAX, 0), (1, 0, u64::MAX), (2, 0, u64::MAX), (u64::MAX - 1, 0, 0)] {
            folder.push(piece(k, from, to), k % 2 == 1);
        }
        folder.learn_median([u64::MAX, u64::MAX].into_iter());
        assert_eq!(folder.median(), u64::MAX);
        folder.keep(0);
        folder.compact();
        folder.push(piece(u64::MAX, 0, u64::MAX), false);
        let pieces = folder.pieces();
        let [Piece::Folded(all)] = pieces[..] else { panic!("{pieces:?}") };
        assert_eq!((all.first, all.last, all.min, all.max), (0, u64::MAX, 0, u64::MAX));
    }
}
