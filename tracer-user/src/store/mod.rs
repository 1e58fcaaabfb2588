//! What left the core lately, and what is open now: for whoever looks at a run while it goes on, or at a recording of one.
//!
//! Enters: access records, trees of requests and engine steps, as the core says them, and pictures of what is open. Leaves: the same, by
//! id and by time. Invariant: what is kept takes at most [`Limits::bytes`], by the sizes of [`size`], three quarters of them for requests;
//! what is dropped for it is counted. Time is the wall clock of what came: the newest end that was seen is now. Pure.

use std::sync::Arc;

use self::now::Now;
use self::recently::{Recently, Tokens};
use self::requests::Requests;
use self::steps::Steps;
use crate::output::{AccessRecord, EngineStep, Service, SpanId, Trace, TraceId};

pub mod histogram;
pub mod now;
pub mod recently;
pub mod requests;
pub mod size;
pub mod steps;
#[cfg(test)]
mod tests;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of requests and steps together.
    pub bytes: usize,
    /// How long after its end a request that went well is kept, ns; a step too.
    pub age_ns: u64,
    /// How long one is that did not, or that was slow, ns.
    pub notable_age_ns: u64,
}

impl Default for Limits {
    /// 64 MiB: about 6,000 requests of 100 tokens with their steps. A quarter of an hour, an hour for what is notable.
    fn default() -> Self {
        Self { bytes: 64 << 20, age_ns: 15 * 60 * 1_000_000_000, notable_age_ns: 60 * 60 * 1_000_000_000 }
    }
}

/// A request that is over.
#[derive(Debug, Clone)]
pub struct Request {
    pub trace: Arc<Trace>,
    /// What the access log says of it; `None` where its tree came alone.
    pub record: Option<Arc<AccessRecord>>,
}

/// What was dropped for want of room, or for its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    pub requests: u64,
    pub steps: u64,
}

#[derive(Debug, Default)]
pub struct Store {
    limits: Limits,
    requests: Requests,
    steps: Steps,
    now: Arc<Now>,
    recently: Recently,
    /// The newest end that was seen, unix ns.
    newest_ns: u64,
}

impl Store {
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A request's record; its tree comes behind it.
    pub fn record(&mut self, record: Arc<AccessRecord>) {
        self.recently.record(&record);
        self.requests.record(record);
    }

    /// A tree: of a request. One of an engine step is refused: steps come by [`Self::step`].
    pub fn trace(&mut self, trace: Arc<Trace>) {
        let Some(root) = trace.spans.first().filter(|_| trace.service == Service::Requests) else { return };
        self.newest_ns = self.newest_ns.max(root.end_ns);
        let bytes = self.limits.bytes / 4 * 3;
        self.requests.trace(trace, bytes / 4);
        self.requests.shrink(bytes, self.newest_ns, &self.limits);
    }

    pub fn step(&mut self, step: Arc<EngineStep>) {
        self.newest_ns = self.newest_ns.max(step.end_ns);
        let (end_ns, stats) = (step.end_ns, step.stats);
        let bytes = self.limits.bytes / 4;
        let engine = self.steps.push(step, bytes);
        if let Some(stats) = stats {
            self.recently.queues(end_ns, engine, stats);
        }
        self.steps.shrink(bytes, self.newest_ns.saturating_sub(self.limits.age_ns));
    }

    /// Tokens that were given up to now.
    pub fn tokens(&mut self, tokens: &Tokens) {
        self.recently.tokens(self.newest_ns, tokens);
    }

    /// What is open now; gives what was, which takes a while to be forgotten.
    pub fn look(&mut self, now: Arc<Now>) -> Arc<Now> {
        std::mem::replace(&mut self.now, now)
    }

    pub fn now(&self) -> &Arc<Now> {
        &self.now
    }

    /// The newest end that was seen, unix ns.
    pub fn newest_ns(&self) -> u64 {
        self.newest_ns
    }

    /// The last minutes in numbers.
    pub fn recently(&self) -> &Recently {
        &self.recently
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The models of the requests that are kept.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.requests.models()
    }

    /// Requests that are over, in the order in which they were over.
    pub fn requests(&self) -> impl DoubleEndedIterator<Item = &Request> {
        self.requests.iter()
    }

    pub fn requests_count(&self) -> usize {
        self.requests.count()
    }

    /// The requests of a trace: several may share one that a caller began.
    pub fn of_trace(&self, trace: TraceId) -> impl Iterator<Item = &Request> {
        self.requests.of_trace(trace)
    }

    /// Requests that `id` may mean, newest first: a trace id or its beginning (8 digits or more), the id that the client sees, an engine's id.
    pub fn find(&self, id: &str) -> Vec<&Request> {
        self.requests.find(id)
    }

    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// The step that a link names.
    pub fn step_of(&self, trace: TraceId, span: SpanId) -> Option<&Arc<EngineStep>> {
        self.steps.by_id(trace, span)
    }

    /// Bytes that are kept, as [`size`] counts them.
    pub fn held_bytes(&self) -> usize {
        self.requests.held_bytes() + self.steps.held_bytes()
    }

    pub fn dropped(&self) -> Dropped {
        Dropped { requests: self.requests.dropped(), steps: self.steps.dropped() }
    }
}
