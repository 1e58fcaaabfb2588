//! The engine requests of one beam search, folded: one a beam and token, each of one token.
//!
//! Enters: engine requests that are over, one by one. Leaves: their counts and times. The first engine request of the search (the
//! prompt itself) stands for all; this is what the others add to it. At most [`MAX_BEAMS`] are told apart; the rest is counted.

use super::generation::Generation;
use crate::input::EventNanos;
use crate::output::{FinishReason, GenerationRecord};

/// Engine requests of which a record of their own is kept (the access log's).
pub const MAX_BEAMS: usize = 255;
/// Durations that are kept to draw the folded span; later ones count for its ends only.
const MAX_DURATIONS: usize = 4_096;

/// What the metrics take of one engine request.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    pub engine: u32,
    pub reason: Option<FinishReason>,
    pub queue: Option<f64>,
    pub prefill: Option<f64>,
    pub decode: Option<f64>,
    pub inference: Option<f64>,
    pub ttft: Option<f64>,
}

impl Tally {
    pub fn of(generation: &Generation, reason: Option<FinishReason>) -> Self {
        Self {
            engine: generation.engine,
            reason,
            queue: generation.queue_seconds(),
            prefill: generation.prefill_seconds(),
            decode: generation.decode_seconds(),
            inference: generation.inference_seconds(),
            ttft: generation.ttft_seconds(),
        }
    }
}

/// What the further engine requests of a beam search amount to.
#[derive(Debug, Clone, Default)]
pub struct Beams {
    /// Not over yet.
    pub open: u64,
    pub count: u64,
    pub output_tokens: u64,
    pub preemptions: u64,
    pub records: Vec<GenerationRecord>,
    /// What the counters and histograms take of each, until the search is over.
    pub tallies: Vec<Tally>,
    pub from: Option<EventNanos>,
    pub to: EventNanos,
    /// Sent → last sign, ns.
    durations: Vec<u64>,
    pub min: u64,
    pub max: u64,
}

/// What the texts of a record take, bytes: an id of the engine's is 60 to 80.
const RECORD_TEXT: usize = 80;

impl Beams {
    /// Bytes that it takes.
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>()
            + self.records.capacity() * (size_of::<GenerationRecord>() + RECORD_TEXT)
            + self.tallies.capacity() * size_of::<Tally>()
            + self.durations.capacity() * size_of::<u64>()
    }

    /// Takes one that is over. `record`: its access-log record.
    pub fn take(
        &mut self,
        generation: &Generation,
        reason: Option<FinishReason>,
        record: impl FnOnce() -> GenerationRecord,
    ) {
        let from = generation.added.unwrap_or(generation.seen);
        let to = super::record::last_sign(generation).max(from);
        let took = to - from;
        self.min = if self.count == 0 { took } else { self.min.min(took) };
        self.max = self.max.max(took);
        self.open = self.open.saturating_sub(1);
        self.count += 1;
        self.output_tokens = self.output_tokens.saturating_add(generation.output_tokens);
        self.preemptions = self.preemptions.saturating_add(generation.preemptions);
        self.from = Some(self.from.map_or(from, |at| at.min(from)));
        self.to = self.to.max(to);
        if self.durations.len() < MAX_DURATIONS {
            self.durations.push(took);
        }
        self.tallies.push(Tally::of(generation, reason));
        if self.records.len() < MAX_BEAMS {
            self.records.push(record());
        }
    }

    /// Median of the durations kept, ns.
    pub fn p50(&self) -> u64 {
        let mut durations = self.durations.clone();
        let middle = durations.len() / 2;
        if durations.is_empty() { 0 } else { *durations.select_nth_unstable(middle).1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Identity;
    use crate::model::generation::{Phase, StepRef, TokensAt};
    use crate::model::record::generation_record;

    /// A beam, sent at `from`, whose one token was received at `to`.
    fn beam(from: EventNanos, to: EventNanos) -> Generation {
        let mut generation = Generation::new("a".into(), Identity::default(), from);
        generation.added = Some(from);
        let step = StepRef { engine: 3, stamp: 0 };
        generation.last = Some(TokensAt { at: to, received: to, tokens: 1, step });
        generation.phase = Phase::Over { at: to, reason: FinishReason::Length };
        (generation.output_tokens, generation.preemptions, generation.engine) = (1, 2, 3);
        generation
    }

    fn folded(beams: &[(EventNanos, EventNanos)]) -> Beams {
        let mut folded = Beams { open: beams.len() as u64, ..Beams::default() };
        for &(from, to) in beams {
            let generation = beam(from, to);
            folded.take(&generation, generation.finish(), || generation_record(&generation, None));
        }
        folded
    }

    #[test]
    fn beams_amount_to_their_counts_and_the_time_that_they_span() {
        // 20 ──── 50 · 30 ─ 40 · 25 ────── 60
        let beams = folded(&[(20, 50), (30, 40), (25, 60)]);
        assert_eq!((beams.open, beams.count, beams.output_tokens, beams.preemptions), (0, 3, 3, 6));
        assert_eq!((beams.from, beams.to), (Some(20), 60));
        assert_eq!((beams.min, beams.p50(), beams.max), (10, 30, 35));
        assert!(beams.tallies.iter().all(|tally| (tally.engine, tally.reason) == (3, Some(FinishReason::Length))));
    }

    #[test]
    fn what_is_kept_of_each_is_bounded() {
        let beams = folded(&vec![(1, 2); MAX_DURATIONS + 5]);
        assert_eq!((beams.records.len(), beams.durations.len()), (MAX_BEAMS, MAX_DURATIONS));
        assert_eq!(beams.count, MAX_DURATIONS as u64 + 5);
        assert_eq!(Beams::default().p50(), 0);
    }

    #[test]
    fn times_and_counts_of_any_size_are_taken() {
        // backwards, and over all of time
        let mut beams = folded(&[(u64::MAX, 0), (0, u64::MAX)]);
        assert_eq!((beams.min, beams.max, beams.to), (0, u64::MAX, u64::MAX));
        let mut generation = beam(0, 0);
        (generation.output_tokens, generation.preemptions) = (u64::MAX, u64::MAX);
        beams.take(&generation, None, || generation_record(&generation, None));
        assert_eq!((beams.open, beams.output_tokens, beams.preemptions), (0, u64::MAX, u64::MAX));
    }
}
