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
        self.last - self.first + 1
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
    /// Medians of the blocks of steps seen so far, and their counts.
    medians: Vec<(u64, u64)>,
}

impl Folder {
    /// Takes a block of durations into the median by which slow steps are told.
    pub fn learn_median(&mut self, durations: impl Iterator<Item = u64>) {
        let mut block: Vec<u64> = durations.collect();
        if block.is_empty() {
            return;
        }
        let count = block.len() as u64;
        let middle = block.len() / 2;
        let median = *block.select_nth_unstable(middle).1;
        // Beyond so many blocks they are thinned: two become one.
        if self.medians.len() == MAX_MEDIANS {
            self.medians = self.medians.chunks(2).map(|pair| (pair[0].0, pair.iter().map(|m| m.1).sum())).collect();
        }
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
                weight += part.count();
                sum += u128::from(part.p50) * u128::from(part.count());
            }
        }
    }
    if !steps.is_empty() {
        let middle = steps.len() / 2;
        let p50 = *steps.select_nth_unstable(middle).1;
        weight += steps.len() as u64;
        sum += u128::from(p50) * steps.len() as u128;
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
    let half = values.iter().map(|v| v.1).sum::<u64>() / 2;
    let mut seen = 0;
    values
        .iter()
        .find(|(_, count)| {
            seen += count;
            seen > half
        })
        .map_or(0, |v| v.0)
}
