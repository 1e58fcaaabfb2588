//! Engine steps: one iteration of an engine, as its output messages tell it.
//!
//! With several front ends one step sends several messages; the scheduler's stats ride on the first. A message with stats is a
//! new step; one without joins the step before it when its stamp is at most [`SAME_STEP`] later. Where no message has stats
//! (`--disable-log-stats`) every message further apart than that is a step.

use std::sync::Arc;

use super::cuda;
use super::generation::StepRef;
use super::keys::{attribute, span};
use super::trace_ids;
use crate::clock::Clock;
use crate::engine::SchedulerStats;
use crate::input::{EventNanos, Server};
use crate::output::{EngineStep, Span, SpanKind, SpanLink, SpanStatus, Value};

/// Stamps of one step's messages are made in one loop (0.02 ms apart in the two-front-end capture).
const SAME_STEP: u64 = 1_000_000;
/// Ends of recent steps that are kept to find prefill chunks.
const RECENT: usize = 512;

/// A step that is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    pub reference: StepRef,
    /// `None`: the engine was idle before, and nothing says when this step began.
    pub start: Option<EventNanos>,
    pub end: EventNanos,
    pub requests: u64,
    pub tokens: u64,
    pub first_tokens: u64,
    pub stats: Option<SchedulerStats>,
}

/// The steps of one engine.
#[derive(Debug, Default)]
pub struct Steps {
    current: Option<Step>,
    /// `current` was given out already; it stays as the predecessor of the next.
    given: bool,
    /// When they ended, and whether requests were left running.
    recent: std::collections::VecDeque<(EventNanos, bool)>,
    has_stats: bool,
}

/// What one message adds to a step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Share {
    pub requests: u64,
    pub tokens: u64,
    pub first_tokens: u64,
    /// When the first of the requests that it starts was scheduled.
    pub first_scheduled: Option<EventNanos>,
    pub stats: Option<SchedulerStats>,
}

impl Steps {
    /// A message stamped `stamp` (engine ns), at `end` on the event clock. Returns the step it belongs to, and the one before
    /// if that is over by this.
    pub fn message(&mut self, engine: u32, stamp: i64, end: EventNanos, share: Share) -> (StepRef, Option<Step>) {
        self.has_stats |= share.stats.is_some();
        if let Some(current) = &mut self.current {
            let near = end.abs_diff(current.end) <= SAME_STEP;
            if near && share.stats.is_none() && (self.has_stats || share.requests > 0) {
                current.requests += share.requests;
                current.tokens += share.tokens;
                current.first_tokens += share.first_tokens;
                return (current.reference, None);
            }
        }
        let busy_before = self.current.filter(|s| s.stats.is_none_or(|stats| stats.running + stats.waiting > 0));
        let all_new = share.requests > 0 && share.first_tokens == share.requests;
        let start = match (busy_before.map(|s| s.end), share.first_scheduled) {
            // All that it served was admitted after the step before had ended: it was idle in between.
            (Some(before), Some(scheduled)) if all_new => Some(before.max(scheduled)),
            (Some(before), _) => Some(before),
            (None, scheduled) => scheduled,
        };
        let reference = StepRef { engine, stamp };
        let step = Step {
            reference,
            start: start.filter(|&start| start <= end),
            end,
            requests: share.requests,
            tokens: share.tokens,
            first_tokens: share.first_tokens,
            stats: share.stats,
        };
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((end, share.stats.is_some_and(|stats| stats.running > 0)));
        let before = self.current.replace(step).filter(|_| !self.given);
        self.given = false;
        (reference, before)
    }

    /// The newest step, once nothing can join it any more at `now`.
    pub fn take_settled(&mut self, now: EventNanos) -> Option<Step> {
        // 50 times the distance within a step: messages of one step reach us through different sockets.
        let settled = self.current.filter(|s| !self.given && now.saturating_sub(s.end) > 50 * SAME_STEP);
        self.given |= settled.is_some();
        settled
    }

    /// Ends of the steps in `from..to`, oldest first.
    pub fn ends_between(&self, from: EventNanos, to: EventNanos) -> impl Iterator<Item = EventNanos> {
        self.recent.iter().map(|(end, _)| *end).filter(move |&end| from < end && end < to)
    }

    /// Whether requests were running at `at`, after the last step that had ended by then.
    pub fn was_busy(&self, at: EventNanos) -> bool {
        self.recent.iter().rev().find(|(end, _)| *end <= at).is_some_and(|(_, is_busy)| *is_busy)
    }
}

impl Step {
    /// The step as it leaves; `None` when its start is not known.
    pub fn leave(&self, server: &Arc<Server>, run: u64, clock: &Clock) -> Option<EngineStep> {
        let trace_id = trace_ids::step_trace(run, self.reference.engine, self.reference.stamp);
        let start_ns = clock.unix(self.start?);
        Some(EngineStep {
            server: Arc::clone(server),
            trace_id,
            span_id: trace_ids::span(trace_id, 0, span::ENGINE_STEP, 0),
            engine: self.reference.engine,
            start_ns,
            end_ns: clock.unix(self.end).max(start_ns),
            requests: self.requests,
            tokens: self.tokens,
            first_tokens: self.first_tokens,
            prefill_tokens: 0,
            decode_tokens: 0,
            batch: Box::default(),
            stats: self.stats,
            cuda: None,
        })
    }
}

impl EngineStep {
    /// Draws the step and, where they are told one by one, its launches; at most `max` spans, the rest is counted.
    pub fn spans(&self, max: usize) -> Vec<Span> {
        let mut step = self.span();
        let Some(of) = &self.cuda else { return vec![step] };
        let (launches, dropped) = cuda::spans(self, of, max.saturating_sub(1));
        if dropped > 0 {
            step.attributes.push((attribute::SPANS_DROPPED, Value::Int(i64::try_from(dropped).unwrap_or(i64::MAX))));
        }
        std::iter::once(step).chain(launches).collect()
    }

    /// Draws the step alone.
    pub fn span(&self) -> Span {
        let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let mut attributes = vec![
            (attribute::PROVENANCE, Value::Str("inferred".into())),
            (attribute::ENGINE_INDEX, int(u64::from(self.engine))),
            (attribute::BATCH_REQUESTS, int(self.requests)),
            (attribute::BATCH_TOKENS, int(self.tokens)),
            (attribute::BATCH_FIRST_TOKENS, int(self.first_tokens)),
            (attribute::BATCH_PREFILL_TOKENS, int(self.prefill_tokens)),
            (attribute::BATCH_DECODE_TOKENS, int(self.decode_tokens)),
        ];
        if let Some(stats) = self.stats {
            attributes.push((attribute::RUNNING, int(stats.running)));
            attributes.push((attribute::WAITING, int(stats.waiting)));
            attributes.push((attribute::KV_USAGE, Value::Float(stats.kv_cache_usage)));
        }
        if let Some(of) = &self.cuda {
            cuda::attributes(of, &mut attributes);
        }
        Span {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent: None,
            parent_is_remote: false,
            trace_state: None,
            name: span::ENGINE_STEP,
            kind: SpanKind::Internal,
            start_ns: self.start_ns,
            end_ns: self.end_ns,
            status: SpanStatus::Unset,
            attributes,
            events: Vec::new(),
            links: self.batch.iter().map(|&(trace_id, span_id)| SpanLink::to(trace_id, span_id)).collect(),
        }
    }
}
