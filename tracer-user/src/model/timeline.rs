//! When the tokens of one generation came, in bounded memory however many there are.
//!
//! Enters: one entry a step that gave tokens. Leaves: [`Piece`]s in order that cover every decode step once: the first
//! [`FIRST`] steps, the last [`LAST`] and the slowest outliers alone, the runs between them folded. Invariant: up to
//! [`RECENT`] + [`FIRST`] steps everything is exact; of a longer generation the older half is folded as it goes (16 KiB a
//! generation at most), and the median of such a run is the mean of its parts' medians, weighted by their counts.

use std::collections::VecDeque;

use super::fold::{Folded, Folder, OUTLIER, Piece};
use crate::input::EventNanos;

/// Steps shown at the start.
pub const FIRST: usize = 8;
/// Steps shown at the end.
pub const LAST: usize = 2;
/// Newest steps that are kept one by one; when they are as many, the older half is folded.
const RECENT: usize = 256;
/// Outliers that are kept of the folded steps.
const OLD_OUTLIERS: usize = 60;

/// Tokens that one step gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// The engine's stamp, on the event clock.
    pub at: EventNanos,
    /// The engine's own stamp, ns: names the step.
    pub stamp: i64,
    pub tokens: u32,
    /// How much later the front end received it, ns; at most 4.3 s are told.
    pub lag: u32,
}

/// The token times of one generation.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// The prefill's entry and the first decode steps'.
    first: Vec<Tick>,
    folder: Folder,
    /// The newest entries, behind `first` and what was folded.
    recent: VecDeque<Tick>,
    /// Entries folded.
    folded: u64,
    /// The newest entry that was folded.
    before_recent: Option<Tick>,
}

impl Timeline {
    /// Takes the next step's entry.
    pub fn push(&mut self, tick: Tick) {
        if self.first.len() <= FIRST {
            self.first.push(tick);
            return;
        }
        self.recent.push_back(tick);
        if self.recent.len() == RECENT {
            self.fold_older_half();
        }
    }

    /// Bytes that it takes.
    pub fn held_bytes(&self) -> usize {
        (self.first.capacity() + self.recent.capacity()) * size_of::<Tick>() + self.folder.held_bytes()
    }

    /// Entries taken: the decode steps and the one before them.
    pub fn len(&self) -> u64 {
        self.first.len() as u64 + self.folded + self.recent.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    pub fn newest(&self) -> Option<Tick> {
        self.recent.back().or(self.before_recent.as_ref()).or(self.first.last()).copied()
    }

    /// Takes the newest entry back; never the first one, nor one that was folded.
    pub fn pop(&mut self) -> Option<Tick> {
        match self.recent.pop_back() {
            None if self.folded == 0 && self.first.len() > 1 => self.first.pop(),
            popped => popped,
        }
    }

    fn fold_older_half(&mut self) {
        let mut before = self.before_recent.or(self.first.last().copied()).map_or(0, |tick| tick.at);
        let mut k = self.first.len() as u64 + self.folded;
        let mut steps = Vec::with_capacity(RECENT / 2);
        for tick in self.recent.drain(..RECENT / 2) {
            steps.push(Step { k, from: before, tick });
            (before, k) = (tick.at, k + 1);
            self.before_recent = Some(tick);
        }
        self.folded += steps.len() as u64;
        self.folder.learn_median(steps.iter().map(Step::took));
        let threshold = self.folder.median().saturating_mul(OUTLIER);
        for step in steps {
            self.folder.push(step.piece(), step.took() > threshold);
        }
        self.folder.keep(OLD_OUTLIERS);
        self.folder.compact();
    }

    /// The decode phase in pieces, with at most `outliers` slow steps shown.
    pub fn pieces(&self, outliers: usize) -> Vec<Piece> {
        let steps = self.len().saturating_sub(1);
        let mut folder = Folder::default();
        let head = self.first.windows(2).enumerate().map(|(i, pair)| Step {
            k: i as u64 + 1,
            from: pair[0].at,
            tick: pair[1],
        });
        let mut before = self.before_recent.or(self.first.last().copied()).map_or(0, |tick| tick.at);
        let start = self.first.len() as u64 + self.folded;
        let tail = self.recent.iter().enumerate().map(|(i, &tick)| {
            let from = std::mem::replace(&mut before, tick.at);
            Step { k: start + i as u64, from, tick }
        });
        let tail: Vec<Step> = tail.collect();
        let mut median = self.folder.clone();
        median.learn_median(head.clone().chain(tail.iter().copied()).map(|step| step.took()));
        let threshold = median.median().saturating_mul(OUTLIER);
        for step in head {
            folder.show(step.piece());
        }
        folder.append(&self.folder);
        for step in tail {
            if step.k + LAST as u64 > steps {
                folder.show(step.piece());
            } else {
                folder.push(step.piece(), step.took() > threshold);
            }
        }
        folder.keep(outliers);
        folder.pieces()
    }
}

#[derive(Debug, Clone, Copy)]
struct Step {
    k: u64,
    from: EventNanos,
    tick: Tick,
}

impl Step {
    fn took(&self) -> u64 {
        self.tick.at.saturating_sub(self.from)
    }

    fn piece(self) -> Piece {
        Piece::Step { k: self.k, from: self.from, to: self.tick.at, tokens: self.tick.tokens, stamp: self.tick.stamp }
    }
}

/// For tests and callers that look at runs.
impl Piece {
    /// First and last step that it covers.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Self::Step { k, .. } => (*k, *k),
            Self::Folded(Folded { first, last, .. }) => (*first, *last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(durations: impl IntoIterator<Item = u64>) -> Timeline {
        let mut timeline = Timeline::default();
        let mut at = 1_000;
        timeline.push(Tick { at, stamp: 0, tokens: 1, lag: 0 });
        for duration in durations {
            at += duration;
            timeline.push(Tick { at, stamp: at as i64, tokens: 1, lag: 0 });
        }
        timeline
    }

    fn covers_once(pieces: &[Piece], steps: u64) {
        let mut next = 1;
        for piece in pieces {
            let (first, last) = piece.range();
            assert_eq!(first, next);
            next = last + 1;
        }
        assert_eq!(next, steps + 1);
    }

    #[test]
    fn a_long_decode_shows_its_ends_and_its_outlier_and_folds_the_rest() {
        // steps: 1..8 shown, 9..49 folded, 50 slow, 51..98 folded, 99..100 shown
        let mut durations = vec![10; 100];
        durations[49] = 500;
        durations[20] = 7;
        let pieces = timeline(durations).pieces(40);
        assert_eq!(pieces.len(), 8 + 1 + 1 + 1 + 2);
        let Piece::Folded(run) = &pieces[8] else { panic!("{pieces:?}") };
        assert_eq!((run.first, run.last, run.min, run.p50, run.max), (9, 49, 7, 10, 10));
        assert_eq!(pieces[9].range(), (50, 50));
        assert_eq!(pieces[10].range(), (51, 98));
    }

    #[test]
    fn every_step_is_covered_once_at_any_length() {
        for steps in (0..40).chain([510, 519, 520, 521, 522, 777, 2_000]) {
            let timeline = timeline((0..steps).map(|i| if i % 97 == 50 { 900 } else { 10 }));
            covers_once(&timeline.pieces(3), steps);
            assert_eq!(timeline.len(), steps + 1);
        }
    }

    #[test]
    fn a_hundred_thousand_steps_are_drawn_to_the_end_in_bounded_memory() {
        // one step in 10,000 is slow
        let long = timeline((0..100_000).map(|i| if i % 10_000 == 5_000 { 900_000 } else { 10 + i % 3 }));
        assert!(long.recent.len() < RECENT && long.folder.len() <= 2 * OLD_OUTLIERS + 1);
        let pieces = long.pieces(60);
        covers_once(&pieces, 100_000);
        let slow = pieces.iter().filter(|p| matches!(p, Piece::Step { from, to, .. } if to - from == 900_000)).count();
        assert_eq!(slow, 10);
        let runs = pieces.iter().filter_map(|p| if let Piece::Folded(run) = p { Some(run.p50) } else { None });
        assert!(runs.into_iter().all(|p50| p50 == 11), "the median of 10, 11, 12");
    }

    #[test]
    fn a_storm_of_outliers_stays_bounded() {
        let storm = timeline((0..10_000).map(|i| if i % 3 == 0 { 1_000 + i } else { 10 }));
        assert!(storm.pieces(40).len() <= FIRST + LAST + 2 * 40 + 1);
    }

    #[test]
    fn the_newest_entries_can_be_taken_back() {
        let mut timeline = timeline([5; 3]);
        assert_eq!(timeline.pop().map(|tick| tick.at), Some(1_015));
        assert_eq!(timeline.newest().map(|tick| tick.at), Some(1_010));
        timeline.pop();
        timeline.pop();
        assert_eq!(timeline.pop(), None, "the first token stays");
    }
}
