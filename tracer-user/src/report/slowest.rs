//! The slowest requests, and why.
//!
//! Enters: requests, as they come, and what is kept of the others. Leaves: those that waited longest for their first token, and those whose
//! tokens came slowest. A long answer is not slow. Invariant: each is judged while what went on around it is still kept.

use std::sync::Arc;

use serde::Serialize;

use crate::output::{AccessRecord, Span, Trace};
use crate::store::Store;
use crate::why::{self, Verdict};

/// Of each kind.
const MOST: usize = 5;
/// Tokens behind the first without which nothing is said of the time for each.
const TOKENS: u64 = 8;
/// A request is judged when so much more has ended, ns: its neighbours in its steps have ended mostly, and are kept.
const LATER: u64 = 10_000_000_000;

/// By what a request is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    FirstToken,
    PerToken,
}

/// A slow request. Times are seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slow {
    pub by: By,
    pub trace_id: String,
    pub request_id: Option<String>,
    pub model: Option<String>,
    pub outcome: &'static str,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub ttft: Option<f64>,
    pub per_token: Option<f64>,
    pub e2e: Option<f64>,
    /// Where its time went, in the order in which it did: from when, since its beginning, and for how long.
    pub phases: Vec<PhaseSaid>,
    pub why: Why,
}

/// Why a request was slow.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Why {
    /// In sentences, safe to show.
    pub said: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseSaid {
    pub name: &'static str,
    pub start: f64,
    pub seconds: f64,
}

#[derive(Debug, Default)]
pub struct Slowest {
    by_first_token: Vec<Candidate>,
    by_token: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    seconds: f64,
    end_ns: u64,
    trace: Arc<Trace>,
    record: Arc<AccessRecord>,
    why: Option<Why>,
}

impl Slowest {
    pub fn take(&mut self, trace: &Arc<Trace>, record: &Arc<AccessRecord>) {
        if let Some(ttft) = record.seconds.ttft {
            offer(&mut self.by_first_token, ttft, trace, record);
        }
        let is_long = record.generations.iter().any(|of| of.output_tokens > TOKENS);
        if let Some(each) = record.per_token().filter(|_| is_long) {
            offer(&mut self.by_token, each, trace, record);
        }
    }

    /// Judges those that ended long enough ago; all, at the end.
    pub fn judge(&mut self, store: &Store, is_over: bool) {
        let now = store.newest_ns();
        for candidate in self.by_first_token.iter_mut().chain(&mut self.by_token) {
            if candidate.why.is_none() && (is_over || candidate.end_ns.saturating_add(LATER) < now) {
                candidate.why = Some(explain(store, &candidate.trace));
            }
        }
    }

    /// Slowest first, of each kind.
    pub fn said(&self) -> Vec<Slow> {
        let of = |by, list: &[Candidate]| list.iter().map(|candidate| candidate.said(by)).collect::<Vec<_>>();
        let mut all = of(By::FirstToken, &self.by_first_token);
        all.extend(of(By::PerToken, &self.by_token));
        all
    }
}

/// Slowest first; the earlier one of two that are as slow.
fn offer(list: &mut Vec<Candidate>, seconds: f64, trace: &Arc<Trace>, record: &Arc<AccessRecord>) {
    let at = list.partition_point(|other| other.seconds >= seconds);
    if at < MOST {
        let (trace, record, end_ns) = (Arc::clone(trace), Arc::clone(record), record.time.0);
        list.insert(at, Candidate { seconds, end_ns, trace, record, why: None });
        list.truncate(MOST);
    }
}

impl Candidate {
    fn said(&self, by: By) -> Slow {
        let Self { trace, record, why, .. } = self;
        Slow {
            by,
            trace_id: record.trace_id.to_string(),
            request_id: record.request_id.as_deref().map(super::name),
            model: record.model.as_deref().map(super::name),
            outcome: record.outcome.name(),
            prompt_tokens: record.prompt_tokens,
            output_tokens: record.output_tokens,
            ttft: record.seconds.ttft,
            per_token: record.per_token(),
            e2e: record.seconds.e2e,
            phases: phases(trace),
            why: why.clone().unwrap_or_default(),
        }
    }
}

/// What stands below its root, or below one of its generations, in the order of its beginning.
fn phases(trace: &Trace) -> Vec<PhaseSaid> {
    let Some(root) = trace.spans.first() else { return Vec::new() };
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
    let of = |of: &Span| PhaseSaid {
        name: of.name,
        start: seconds(root.start_ns, of.start_ns),
        seconds: seconds(of.start_ns, of.end_ns),
    };
    let own = trace.spans.iter().skip(1).filter(|of| of.parent == Some(root.span_id)).take(MAX_PHASES);
    own.map(of).collect()
}

/// Phases of a request that are drawn: a preempted one has a wait for each time.
const MAX_PHASES: usize = 32;

/// Why it took as long as it did, of what is kept of its neighbours.
fn explain(store: &Store, trace: &Trace) -> Why {
    let verdict = why::explain(trace, &why::around(store, trace));
    let paragraph = why::text::paragraph(trace, &verdict);
    // It begins with the request's id, which stands beside it.
    let said = paragraph.split_once(": ").map_or(paragraph.as_str(), |(_, said)| said).to_owned();
    Why { said, verdict }
}
