//! Engine steps: one iteration of an engine, as its output messages tell it.
//!
//! With several front ends one step sends several messages; the scheduler's stats ride on the first. A message with stats is a
//! new step; one without joins the step before it when its stamp is at most [`SAME_STEP`] later. Where no message has stats
//! (`--disable-log-stats`) every message further apart than that is a step.

use std::sync::Arc;

use super::cuda;
use super::generation::StepRef;
use super::keys::{attribute, span};
use super::load::{Loads, MAX_LOADS};
use super::trace_ids;
use crate::clock::Clock;
use crate::engine::SchedulerStats;
use crate::input::{EventNanos, Server};
use crate::output::{EngineStep, Span, SpanId, SpanKind, SpanLink, SpanStatus, TraceId, Value};

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
    /// What its scheduler said.
    pub load: Loads,
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
        if let Some(stats) = share.stats.filter(|_| engine < MAX_LOADS) {
            self.load.push(end, stats);
        }
        if let Some(current) = &mut self.current {
            let near = end.abs_diff(current.end) <= SAME_STEP;
            if near && share.stats.is_none() && (self.has_stats || share.requests > 0) {
                current.requests = current.requests.saturating_add(share.requests);
                current.tokens = current.tokens.saturating_add(share.tokens);
                current.first_tokens = current.first_tokens.saturating_add(share.first_tokens);
                return (current.reference, None);
            }
        }
        let busy_before = self.current.filter(|s| s.stats.is_none_or(|stats| stats.running > 0 || stats.waiting > 0));
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
    /// Its trace, and its span in that.
    pub fn ids(&self, run: u64) -> (TraceId, SpanId) {
        let trace_id = trace_ids::step_trace(run, self.reference.engine, self.reference.stamp);
        (trace_id, trace_ids::span(trace_id, 0, span::ENGINE_STEP, 0))
    }

    /// The step as it leaves; `None` when its start is not known.
    pub fn leave(&self, server: &Arc<Server>, run: u64, clock: &Clock) -> Option<EngineStep> {
        let (trace_id, span_id) = self.ids(run);
        let start_ns = clock.unix(self.start?);
        Some(EngineStep {
            server: Arc::clone(server),
            trace_id,
            span_id,
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A message for so many requests, a token each; with statistics where it starts a step: so many run on.
    fn share(requests: u64, running: Option<u64>) -> Share {
        let stats = running.map(|running| SchedulerStats { running, ..SchedulerStats::default() });
        Share { requests, tokens: requests, stats, ..Share::default() }
    }

    /// Start and end of a step, and its requests.
    fn seen(step: Option<Step>) -> Option<(Option<u64>, u64, u64)> {
        step.map(|step| (step.start, step.end, step.requests))
    }

    #[test]
    fn two_messages_of_one_step_are_one_step() {
        // step at 10 ms: to one front end (with statistics), 0.02 ms later to the other (without) │ step at 20 ms
        let mut steps = Steps::default();
        let (first, before) = steps.message(0, 10, 10 * MS, share(2, Some(3)));
        assert_eq!(seen(before), None);
        let (second, before) = steps.message(0, 11, 10 * MS + 20_000, share(1, None));
        assert_eq!((second, seen(before)), (first, None));
        let (third, before) = steps.message(0, 20, 20 * MS, share(1, Some(3)));
        assert_eq!((third.stamp, seen(before)), (20, Some((None, 10 * MS, 3))));
    }

    #[test]
    fn a_message_with_statistics_is_a_new_step_however_near() {
        let mut steps = Steps::default();
        steps.message(0, 10, 10 * MS, share(1, Some(1)));
        let (_, before) = steps.message(0, 11, 10 * MS + 1, share(1, Some(1)));
        assert_eq!(seen(before), Some((None, 10 * MS, 1)));
    }

    #[test]
    fn without_statistics_messages_further_apart_than_a_millisecond_are_steps() {
        let mut steps = Steps::default();
        steps.message(0, 10, 10 * MS, share(1, None));
        assert_eq!(seen(steps.message(0, 11, 11 * MS, share(1, None)).1), None);
        assert_eq!(seen(steps.message(0, 12, 11 * MS + 1, share(1, None)).1), Some((None, 10 * MS, 2)));
    }

    #[test]
    fn a_step_begins_when_the_one_before_ended_or_its_first_request_was_scheduled() {
        // step until 10, one runs on │ step until 20 │ nothing runs │ scheduled 35 │ step until 40
        let mut steps = Steps::default();
        steps.message(0, 10, 10 * MS, share(1, Some(1)));
        let (_, _) = steps.message(0, 20, 20 * MS, share(1, Some(0)));
        let scheduled = Share { first_scheduled: Some(35 * MS), first_tokens: 1, ..share(1, Some(1)) };
        assert_eq!(seen(steps.message(0, 40, 40 * MS, scheduled).1), Some((Some(10 * MS), 20 * MS, 1)));
        assert_eq!(seen(steps.take_settled(91 * MS)), Some((Some(35 * MS), 40 * MS, 1)));
    }

    #[test]
    fn a_busy_engine_that_serves_only_new_requests_was_idle_until_they_were_scheduled() {
        // step until 10, one waits │ a new one is scheduled at 15 │ step until 20 gives it alone its first token
        let mut steps = Steps::default();
        let waits = SchedulerStats { waiting: 1, ..SchedulerStats::default() };
        steps.message(0, 10, 10 * MS, Share { stats: Some(waits), ..share(1, None) });
        let new = Share { first_scheduled: Some(15 * MS), first_tokens: 1, ..share(1, Some(1)) };
        steps.message(0, 20, 20 * MS, new);
        assert_eq!(seen(steps.take_settled(u64::MAX)), Some((Some(15 * MS), 20 * MS, 1)));
    }

    #[test]
    fn a_step_settles_once_50_ms_after_its_end_and_stays_the_one_before() {
        // step until 10 ─ 60: not yet ─ then it is given, once │ step until 70 begins where it ended
        let mut steps = Steps::default();
        steps.message(0, 10, 10 * MS, share(1, Some(1)));
        assert_eq!(seen(steps.take_settled(60 * MS)), None);
        assert_eq!(seen(steps.take_settled(60 * MS + 1)), Some((None, 10 * MS, 1)));
        assert_eq!(seen(steps.take_settled(u64::MAX)), None);
        assert_eq!(seen(steps.message(0, 70, 70 * MS, share(1, Some(1))).1), None, "it was given");
        assert_eq!(seen(steps.take_settled(u64::MAX)), Some((Some(10 * MS), 70 * MS, 1)));
    }

    #[test]
    fn ends_between_two_times_are_told_and_whether_it_was_busy() {
        // steps end at 10 (one runs on), 20 (none), 30 (one)
        let mut steps = Steps::default();
        for (end, running) in [(10, 1), (20, 0), (30, 1)] {
            steps.message(0, end as i64, end * MS, share(1, Some(running)));
        }
        assert_eq!(steps.ends_between(10 * MS, 30 * MS).collect::<Vec<_>>(), [20 * MS], "neither edge");
        assert_eq!([5, 10, 25, 30].map(|at| steps.was_busy(at * MS)), [false, true, false, true]);
    }

    #[test]
    fn a_step_without_a_start_does_not_leave_and_a_wall_clock_set_back_gives_no_negative_time() {
        let mut clock = Clock::default();
        clock.anchor(0, 100 * MS);
        clock.anchor(15 * MS, 50 * MS);
        let reference = StepRef { engine: 0, stamp: 20 };
        let step =
            |start| Step { reference, start, end: 20 * MS, requests: 1, tokens: 1, first_tokens: 0, stats: None };
        assert!(step(None).leave(&Arc::default(), 5, &clock).is_none());
        let left = step(Some(10 * MS)).leave(&Arc::default(), 5, &clock).expect("its start is known");
        assert_eq!(
            (left.start_ns, left.end_ns, (left.trace_id, left.span_id)),
            (110 * MS, 110 * MS, step(None).ids(5))
        );
    }

    #[test]
    fn times_and_counts_of_any_size_are_taken() {
        let all = u64::MAX;
        let stats = Some(SchedulerStats { running: all, waiting: all, ..SchedulerStats::default() });
        let mut steps = Steps::default();
        for at in [0, all, all, 0, all] {
            for stats in [stats, None] {
                let first_scheduled = Some(all - at);
                let share = Share { requests: all, tokens: all, first_tokens: all, first_scheduled, stats };
                steps.message(0, i64::MIN, at, share);
                steps.take_settled(at);
                steps.was_busy(at);
            }
        }
        assert!(steps.take_settled(all).is_none_or(|step| step.tokens == all));
    }
}
