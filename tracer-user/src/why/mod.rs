//! Why a request took as long as it did.
//!
//! Enters: the tree of a request that is over, and what its engines did meanwhile. Leaves: a [`Verdict`]: causes with their evidence, by the
//! time that each cost, and what could not be seen. Invariant: nothing is blamed without evidence in what entered; a time is blamed once, so
//! that the shares sum to 1 at most; what costs less than [`limits`] say is not blamed. Refused: a tree without a root, of which nothing is
//! said. Pure.

use std::sync::Arc;

use serde::Serialize;

use crate::output::{EngineStep, Trace, TraceId};

mod around;
mod case;
mod client;
mod cuda;
mod decoding;
mod ends;
mod front_end;
mod judge;
mod ledger;
pub mod limits;
mod others;
mod prefill;
mod queue;
pub mod slow;
mod steps;
pub mod text;
mod unseen;
mod untold;
mod usual;
pub mod words;

pub use around::{Near, around};
use case::Case;
use judge::Judge;

/// What is said of a request.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Verdict {
    /// An engine's error first, then by time, the longest first.
    pub causes: Vec<Cause>,
    /// What could not be seen, each a sentence without a full stop.
    pub unseen: Vec<String>,
}

/// A reason for a part of its time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cause {
    pub kind: Kind,
    /// Of the request's time.
    pub seconds: f64,
    /// 0 to 1 of the request's time.
    pub share: f64,
    /// What was seen, in words: `queued behind 14 requests, KV cache 98 % full`. Holds nothing of a target's that is not sanitised.
    pub evidence: String,
    /// It is inferred, not observed.
    pub inferred: bool,
}

/// What may make a request slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Waited to be scheduled.
    Queued,
    /// Held back by an engine that had room, while the grammar of its structured output was compiled.
    Grammar,
    /// Lost its place for want of KV cache: the time until it was where it had been.
    Preempted,
    /// Its own prompt took long.
    LongPrefill,
    /// Other requests' prompts were computed in the steps that it was in, or waited for.
    PrefillOfOthers,
    SlowTokenizer,
    /// The request before it on its connection was not answered yet.
    Pipelined,
    /// The request itself came slowly: its client sent it so, or the front end read it so.
    SlowRequest,
    /// The client reads slower than the server writes.
    SlowClient,
    /// The front end took outputs up long after the engine sent them, or the request long after it came.
    FrontEndLate,
    /// The engine's steps took longer than such steps do.
    SlowSteps,
    EngineError,
    /// The GPU waited for launches.
    LaunchBound,
    /// The CPU waited for the GPU, or a copy.
    SyncBound,
    /// Steps ran without the graph that such batches are run with.
    EagerFallback,
    /// One rank came late to the collectives.
    Straggler,
    /// Nothing went wrong: it gave many tokens.
    ManyTokens,
}

impl Kind {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Grammar => "grammar",
            Self::Preempted => "preempted",
            Self::LongPrefill => "long_prefill",
            Self::PrefillOfOthers => "prefill_of_others",
            Self::SlowTokenizer => "slow_tokenizer",
            Self::Pipelined => "pipelined",
            Self::SlowRequest => "slow_request",
            Self::SlowClient => "slow_client",
            Self::FrontEndLate => "front_end_late",
            Self::SlowSteps => "slow_steps",
            Self::EngineError => "engine_error",
            Self::LaunchBound => "launch_bound",
            Self::SyncBound => "sync_bound",
            Self::EagerFallback => "eager_fallback",
            Self::Straggler => "straggler",
            Self::ManyTokens => "many_tokens",
        }
    }
}

/// What else went on while a request was open.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The steps of its engines that are known and overlap it, by their ends.
    pub steps: Vec<Arc<EngineStep>>,
    /// The steps of its engines that were over before it came, the newest of them: what is usual there.
    pub before: Vec<Arc<EngineStep>>,
    /// The steps of its engines that began after it was over, the oldest of them: a prompt that is computed over many ends in one of them.
    pub after: Vec<Arc<EngineStep>>,
    /// The prefills of other requests on its engines that overlap it, or the steps after it.
    pub prefills: Vec<Prefill>,
    /// The times in which prompts of other requests of its server were tokenized, that overlap it, unix ns.
    pub tokenizing: Vec<(u64, u64)>,
}

/// Another request's prompt while it was computed; or what a preempted one had, while that was computed again.
#[derive(Debug, Clone, PartialEq)]
pub struct Prefill {
    /// Whose; of a prompt that no trace tells of, the step in which it ended.
    pub trace: TraceId,
    pub engine: u32,
    pub start_ns: u64,
    pub end_ns: u64,
    /// Of the prompt, without cached ones; `None` where that is not known.
    pub tokens: Option<u64>,
}

/// Judges a request.
pub fn explain(trace: &Trace, around: &Around) -> Verdict {
    let Some(case) = Case::of(trace) else { return Verdict::default() };
    let mut judge = Judge::new(&case, around);
    if !judge.is_below_noise() {
        // What stands first has the first claim on a time that two of them would blame.
        queue::judge(&mut judge);
        front_end::judge_before(&mut judge);
        prefill::judge(&mut judge);
        decoding::judge(&mut judge);
        cuda::judge(&mut judge);
        steps::judge(&mut judge);
        client::judge(&mut judge);
        front_end::judge_after(&mut judge);
    }
    ends::judge(&mut judge);
    let unseen = unseen::of(&case, &judge);
    judge.verdict(unseen)
}

#[cfg(test)]
pub(crate) mod tests;
