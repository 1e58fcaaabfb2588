//! One engine request, keyed by the engine's id: its state machine.
//!
//! ```text
//! Added ──output──▶ Producing ──finish reason──▶ Over
//!   │                  │
//!   └──── ABORT ───────┴──▶ Aborted ──HTTP end──▶ (stop string, or the client went away)
//! ```

use std::sync::Arc;

use super::beams::Beams;
use super::cuda::Share;
use super::lags::Lagged;
use super::load::Wait;
use super::timeline::{Tick, Timeline};
use crate::clock::Clock;
use crate::engine::{Add, Identity, LifeEventKind, RequestOutput};
use crate::input::EventNanos;
use crate::output::FinishReason;

/// Waits (one more a preemption) that are kept.
const MAX_WAITS: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Sent to the engine; nothing came back.
    Added,
    /// Gave tokens.
    Producing,
    /// The front end cancelled it. What the engine still sends is dropped, as the front end drops it.
    Aborted { at: EventNanos },
    /// The engine said that it is over.
    Over { at: EventNanos, reason: FinishReason },
}

/// Tokens that one step gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokensAt {
    /// The engine's stamp, on the event clock.
    pub at: EventNanos,
    /// When the front end received it (or the engine sent it, where only that was seen).
    pub received: EventNanos,
    pub tokens: u32,
    pub step: StepRef,
}

/// Names the engine step that gave something: the engine's own stamp, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepRef {
    pub engine: u32,
    pub stamp: i64,
}

#[derive(Debug, Clone)]
pub struct Generation {
    pub id: Arc<str>,
    /// What its ids say of the response that it belongs to.
    pub identity: Identity,
    /// The front end's process; 0 when not known.
    pub process: u32,
    pub engine: u32,
    pub phase: Phase,
    /// When its ADD left the front end; `None` when that was before the attach.
    pub added: Option<EventNanos>,
    /// When it was first heard of.
    pub seen: EventNanos,
    /// When the front end took it up, on the event clock.
    pub arrival: Option<EventNanos>,
    pub arrival_before_tokenizing: bool,
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub seed: Option<i64>,
    pub structured_output: bool,
    pub traceparent: Option<String>,
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub queued: Option<EventNanos>,
    /// The first time it was scheduled, as the engine's own formulas take it.
    pub scheduled: Option<EventNanos>,
    pub waits: Vec<Wait>,
    /// In the queue since then, and whether it had run before.
    waiting_since: Option<(EventNanos, bool)>,
    pub preempted: Vec<EventNanos>,
    pub preemptions: u64,
    pub timeline: Timeline,
    pub first: Option<TokensAt>,
    /// When the front end got to its first output, where that was seen: not before it received it.
    pub taken_up: Option<EventNanos>,
    pub last: Option<TokensAt>,
    pub output_tokens: u64,
    /// Steps seen while its prompt was being computed: ends of prefill chunks.
    pub chunks: Vec<EventNanos>,
    /// The encode() call that made its prompt's tokens.
    pub encode: Option<(EventNanos, EventNanos)>,
    /// Records that may have been its were lost.
    pub lost: bool,
    /// The exchange it belongs to.
    pub exchange: Option<u64>,
    /// The process that runs it; 0 when not known.
    pub engine_process: u32,
    /// Of a beam search's first engine request: the others.
    pub beams: Option<Box<Beams>>,
    /// Its share of what its steps did with CUDA.
    pub cuda: Option<Box<Share>>,
    /// How far its front end was behind its engine; known when it leaves.
    pub lagged: Option<Box<Lagged>>,
}

/// What an output changed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Took {
    pub first: bool,
    pub tokens: u64,
    /// Seconds since the previous output.
    pub inter_token: Option<f64>,
    pub preemptions: u64,
    pub over: bool,
}

impl Generation {
    pub fn new(id: Arc<str>, identity: Identity, seen: EventNanos) -> Self {
        Self {
            id,
            identity,
            process: 0,
            engine: 0,
            phase: Phase::Added,
            added: None,
            seen,
            arrival: None,
            arrival_before_tokenizing: false,
            max_tokens: None,
            temperature: None,
            top_p: None,
            seed: None,
            structured_output: false,
            traceparent: None,
            prompt_tokens: None,
            cached_tokens: None,
            queued: None,
            scheduled: None,
            waits: Vec::new(),
            waiting_since: None,
            preempted: Vec::new(),
            preemptions: 0,
            timeline: Timeline::default(),
            first: None,
            taken_up: None,
            last: None,
            output_tokens: 0,
            chunks: Vec::new(),
            encode: None,
            lost: false,
            exchange: None,
            engine_process: 0,
            beams: None,
            cuda: None,
            lagged: None,
        }
    }

    /// A generation from its ADD, sent at `at`.
    pub fn from_add(add: Add, identity: Identity, at: EventNanos, clock: &Clock) -> Self {
        let mut generation = Self::new(Arc::from(add.id), identity, at);
        generation.added = Some(at);
        generation.arrival = add.arrival.map(|unix| clock.event_of_unix((unix * 1e9) as u64));
        generation.arrival_before_tokenizing = add.arrival_before_tokenizing;
        generation.prompt_tokens = add.prompt_tokens;
        generation.max_tokens = add.max_tokens;
        generation.temperature = add.temperature;
        generation.top_p = add.top_p;
        generation.seed = add.seed;
        generation.structured_output = add.structured_output;
        generation.traceparent = add.traceparent;
        generation
    }

    /// Bytes that it takes. What is made of its ids besides is counted as they are, twice.
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>()
            + 2 * (self.id.len() + self.identity.held_bytes())
            + self.traceparent.as_ref().map_or(0, String::capacity)
            + self.waits.capacity() * size_of::<Wait>()
            + (self.preempted.capacity() + self.chunks.capacity()) * size_of::<EventNanos>()
            + self.timeline.held_bytes()
            + self.beams.as_ref().map_or(0, |beams| beams.held_bytes())
            + self.cuda.as_ref().map_or(0, |_| size_of::<Share>())
    }

    /// Whether this output, which is about to be taken, can change what the timeline holds and nothing else: as almost all do.
    pub fn is_plain(&self, output: &RequestOutput) -> bool {
        self.last.is_some() && output.events.is_empty()
    }

    /// Nothing more will come.
    pub fn settled(&self) -> bool {
        matches!(self.phase, Phase::Aborted { .. } | Phase::Over { .. })
    }

    /// The reason the engine gave.
    pub fn finish(&self) -> Option<FinishReason> {
        match self.phase {
            Phase::Over { reason, .. } => Some(reason),
            _ => None,
        }
    }

    pub fn aborted(&self) -> Option<EventNanos> {
        match self.phase {
            Phase::Aborted { at } => Some(at),
            _ => None,
        }
    }

    /// The front end cancelled it.
    pub fn abort(&mut self, at: EventNanos) {
        // After the engine finished it, an ABORT changes nothing: the front end had not read the finish yet.
        if !self.settled() {
            self.phase = Phase::Aborted { at };
        }
    }

    /// An output of the step `step`, stamped at `at`, received at `received`. `None`: dropped, as the front end drops it.
    pub fn take(
        &mut self,
        output: &RequestOutput,
        at: EventNanos,
        received: EventNanos,
        step: StepRef,
        clock: &Clock,
    ) -> Option<Took> {
        if self.settled() {
            return None;
        }
        let mut took = Took { tokens: output.tokens, ..Took::default() };
        for event in &output.events {
            took.preemptions += self.life_event(event.kind, clock.event_of_engine(event.at));
        }
        let now = TokensAt { at, received, tokens: u32::try_from(output.tokens).unwrap_or(u32::MAX), step };
        match self.last {
            None => {
                took.first = true;
                self.first = Some(now);
                self.engine = step.engine;
                self.prompt_tokens = output.prompt_tokens.or(self.prompt_tokens);
                self.cached_tokens = output.cached_tokens.or(self.cached_tokens);
            }
            Some(last) => took.inter_token = Some(at.saturating_sub(last.at) as f64 / 1e9),
        }
        self.last = Some(now);
        self.output_tokens = self.output_tokens.saturating_add(output.tokens);
        let lag = u32::try_from(received.saturating_sub(at)).unwrap_or(u32::MAX);
        self.timeline.push(Tick { at, stamp: step.stamp, tokens: now.tokens, lag });
        self.phase = match output.finish {
            Some(reason) => {
                took.over = true;
                Phase::Over { at: received, reason }
            }
            None => Phase::Producing,
        };
        Some(took)
    }

    /// Takes back the newest outputs beyond `counted` tokens: they were received and dropped.
    pub fn trim(&mut self, counted: u64) {
        while let Some(last) = self.timeline.newest()
            && self.output_tokens >= counted.saturating_add(u64::from(last.tokens.max(1)))
            && self.timeline.pop().is_some()
        {
            self.output_tokens = self.output_tokens.saturating_sub(u64::from(last.tokens));
            self.last = self.timeline.newest().map(|tick| TokensAt {
                at: tick.at,
                received: tick.at.saturating_add(u64::from(tick.lag)),
                tokens: tick.tokens,
                step: StepRef { engine: self.engine, stamp: tick.stamp },
            });
        }
    }

    fn life_event(&mut self, kind: LifeEventKind, at: EventNanos) -> u64 {
        match kind {
            LifeEventKind::Queued => {
                self.queued = Some(at);
                self.waiting_since = Some((at, false));
                0
            }
            LifeEventKind::Scheduled => {
                if let Some((from, by_preemption)) = self.waiting_since.take()
                    && self.waits.len() < MAX_WAITS
                {
                    // Most wait once.
                    self.waits.reserve_exact(1);
                    self.waits.push(Wait { from, to: at, by_preemption, load: None });
                }
                self.scheduled.get_or_insert(at);
                0
            }
            LifeEventKind::Preempted => {
                self.waiting_since = Some((at, true));
                if self.preempted.len() < MAX_WAITS {
                    self.preempted.push(at);
                }
                self.preemptions += 1;
                1
            }
        }
    }

    /// Arrival → the front end gets to the first token, seconds: the engine's time to first token. Where that was not seen, arrival →
    /// first token in the front end.
    pub fn ttft_seconds(&self) -> Option<f64> {
        let received = self.first?.received;
        seconds(self.arrival?, self.taken_up.map_or(received, |at| at.max(received)))
    }

    /// queued → scheduled (first time), seconds: the engine's queue time.
    pub fn queue_seconds(&self) -> Option<f64> {
        seconds(self.queued?, self.scheduled?)
    }

    /// scheduled → first token, seconds: the engine's prefill time.
    pub fn prefill_seconds(&self) -> Option<f64> {
        seconds(self.scheduled?, self.first?.at)
    }

    /// first → last token, seconds: the engine's decode time.
    pub fn decode_seconds(&self) -> Option<f64> {
        seconds(self.first?.at, self.last?.at)
    }

    /// scheduled → last token, seconds: the engine's inference time.
    pub fn inference_seconds(&self) -> Option<f64> {
        seconds(self.scheduled?, self.last?.at)
    }
}

/// `to − from`, seconds; `None` when that is negative (a clock that jumped, a stamp of another host).
pub fn seconds(from: EventNanos, to: EventNanos) -> Option<f64> {
    to.checked_sub(from).map(|ns| ns as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::LifeEvent;

    const STEP: StepRef = StepRef { engine: 0, stamp: 0 };

    fn output(tokens: u64, finish: Option<FinishReason>, events: &[(LifeEventKind, f64)]) -> RequestOutput {
        let events = events.iter().map(|&(kind, at)| LifeEvent { kind, at }).collect();
        RequestOutput { id: "r".into(), tokens, finish, events, ..RequestOutput::default() }
    }

    fn generation() -> Generation {
        Generation::new(Arc::from("r"), Identity::default(), 0)
    }

    #[test]
    fn a_preemption_opens_a_second_wait_and_leaves_vllms_formulas_alone() {
        // s:  1 queued  2 scheduled  3 token  4 preempted  6 scheduled  7 token
        let (clock, mut g) = (Clock::default(), generation());
        let first = output(1, None, &[(LifeEventKind::Queued, 1.0), (LifeEventKind::Scheduled, 2.0)]);
        g.take(&first, 3_000_000_000, 0, STEP, &clock).unwrap();
        let again =
            output(1, Some(FinishReason::Length), &[(LifeEventKind::Preempted, 4.0), (LifeEventKind::Scheduled, 6.0)]);
        let took = g.take(&again, 7_000_000_000, 0, STEP, &clock).unwrap();
        assert_eq!((took.preemptions, took.over, took.inter_token), (1, true, Some(4.0)));
        assert_eq!(
            g.waits,
            [(1_000_000_000, 2_000_000_000, false), (4_000_000_000, 6_000_000_000, true)]
                .map(|(from, to, by_preemption)| Wait { from, to, by_preemption, load: None })
        );
        assert_eq!((g.queue_seconds(), g.prefill_seconds(), g.decode_seconds()), (Some(1.0), Some(1.0), Some(4.0)));
    }

    #[test]
    fn outputs_that_the_front_end_did_not_count_are_taken_back() {
        // tokens at 1, 2, 3; the front end counted two
        let (clock, mut g) = (Clock::default(), generation());
        for at in 1..=3 {
            g.take(&output(1, None, &[]), at, at, STEP, &clock).unwrap();
        }
        g.abort(4);
        g.trim(2);
        assert_eq!((g.output_tokens, g.last.map(|t| t.at), g.timeline.len()), (2, Some(2), 2));
        g.trim(5);
        assert_eq!(g.output_tokens, 2);
    }

    #[test]
    fn what_comes_after_an_abort_is_dropped() {
        let (clock, mut g) = (Clock::default(), generation());
        g.take(&output(1, None, &[]), 1, 1, STEP, &clock).unwrap();
        g.abort(2);
        assert_eq!(g.take(&output(1, Some(FinishReason::Length), &[]), 3, 3, STEP, &clock), None);
        assert_eq!((g.output_tokens, g.finish()), (1, None));
    }
}
