//! Who was in an engine's step, until the step leaves.
//!
//! Enters: outputs as they are taken, requests as they leave. Leaves: a step's batch, once. A step may leave after its requests: where
//! those went is remembered for a while. Bounded: of more than [`MAX_STEPS`] steps, or [`MAX_KEYS`]
//! requests in them, the oldest is forgotten, counted, and leaves without
//! its batch.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::input::EventNanos;
use crate::model::generation::StepRef;
use crate::output::{SpanId, TraceId};

/// Steps that have not left; 300 ms of 1,000 a second, of a few engines.
const MAX_STEPS: usize = 4096;
/// Requests in them: 1,024 in each of 500 steps.
const MAX_KEYS: usize = 524_288;
/// How long it is remembered where a request went, ns: longer than a step waits for what its threads called.
const REMEMBERED: EventNanos = 1_000_000_000;
const MAX_REMEMBERED: usize = 16_384;

/// The requests that a step gave something for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Batch {
    /// Their keys, in the order of their outputs.
    pub keys: Vec<u64>,
    /// Tokens of prompts whose computation ended in this step, without the cached ones.
    pub prefill_tokens: u64,
    /// Tokens of requests that had given some before.
    pub decode_tokens: u64,
    /// All tokens that it gave.
    pub tokens: u64,
}

#[derive(Debug, Default)]
pub(super) struct Batches {
    of_step: BTreeMap<StepRef, Batch>,
    keys: usize,
    gone: HashMap<u64, (TraceId, SpanId)>,
    gone_order: VecDeque<(EventNanos, u64)>,
}

impl Batches {
    /// Adds what a message gave. Gives how many steps found no room, and leave without their batch.
    pub(super) fn add(&mut self, step: StepRef, more: Batch) -> u64 {
        if more.keys.is_empty() {
            return 0;
        }
        self.keys += more.keys.len();
        let batch = self.of_step.entry(step).or_default();
        batch.prefill_tokens = batch.prefill_tokens.saturating_add(more.prefill_tokens);
        batch.decode_tokens = batch.decode_tokens.saturating_add(more.decode_tokens);
        batch.tokens = batch.tokens.saturating_add(more.tokens);
        if batch.keys.is_empty() {
            batch.keys = more.keys;
        } else {
            batch.keys.extend(more.keys);
        }
        let mut forgotten = 0;
        while self.of_step.len() > MAX_STEPS || self.keys > MAX_KEYS {
            let Some((_, batch)) = self.of_step.pop_first() else { break };
            self.keys = self.keys.saturating_sub(batch.keys.len());
            forgotten += 1;
        }
        forgotten
    }

    /// Who is in a step, in the order of their outputs.
    pub(super) fn keys_of(&self, step: StepRef) -> &[u64] {
        self.of_step.get(&step).map_or(&[], |batch| &batch.keys)
    }

    pub(super) fn take(&mut self, step: StepRef) -> Batch {
        let batch = self.of_step.remove(&step).unwrap_or_default();
        self.keys = self.keys.saturating_sub(batch.keys.len());
        batch
    }

    /// A request left; `root` is its root span.
    pub(super) fn left(&mut self, key: u64, root: (TraceId, SpanId), now: EventNanos) {
        self.gone.insert(key, root);
        self.gone_order.push_back((now, key));
        let is_over = |at: EventNanos| now.saturating_sub(at) > REMEMBERED;
        while self.gone_order.len() > MAX_REMEMBERED || self.gone_order.front().is_some_and(|(at, _)| is_over(*at)) {
            if let Some((_, key)) = self.gone_order.pop_front() {
                self.gone.remove(&key);
            }
        }
    }

    /// The root span of a request that left.
    pub(super) fn root_of(&self, key: u64) -> Option<(TraceId, SpanId)> {
        self.gone.get(&key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(stamp: i64) -> StepRef {
        StepRef { engine: 0, stamp }
    }

    fn batch(keys: &[u64]) -> Batch {
        Batch { keys: keys.to_vec(), prefill_tokens: 7, decode_tokens: 1, tokens: 2 }
    }

    #[test]
    fn the_messages_of_a_step_are_one_batch_and_it_is_taken_once() {
        // to one front end: 1, 2 · to the other: 3
        let mut batches = Batches::default();
        batches.add(step(5), batch(&[1, 2]));
        batches.add(step(5), batch(&[3]));
        let taken = batches.take(step(5));
        assert_eq!((taken.keys, taken.prefill_tokens, taken.decode_tokens), (vec![1, 2, 3], 14, 2));
        assert_eq!(batches.take(step(5)), Batch::default());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut batches = Batches::default();
        let root = |n: u64| (TraceId(u128::from(n).to_be_bytes()), SpanId(n.to_be_bytes()));
        let mut forgotten = 0;
        for n in 0..20_000 {
            forgotten += batches.add(step(n), batch(&[n as u64]));
            batches.left(n as u64, root(n as u64), 0);
        }
        assert_eq!((batches.of_step.len(), batches.gone.len()), (MAX_STEPS, MAX_REMEMBERED));
        assert_eq!(forgotten, 20_000 - MAX_STEPS as u64);
        assert!(batches.root_of(19_999).is_some());
        batches.left(1, root(1), 2 * REMEMBERED);
        assert_eq!(batches.gone.len(), 1);
        for n in 0..3 {
            batches.add(step(100_000 + n), Batch { keys: vec![0; MAX_KEYS / 2], ..Batch::default() });
        }
        assert_eq!((batches.of_step.len(), batches.keys), (2, MAX_KEYS), "many requests in few steps");
    }
}
