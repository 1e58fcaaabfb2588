//! Why a request took as long as it did.
//!
//! Enters: the tree of a request that is over, and the steps of its engine meanwhile. Leaves: a [`Verdict`]: causes with their evidence, by
//! the time that each cost, and what could not be seen. Invariant: nothing is blamed without evidence in what entered; a time is blamed
//! once. Pure.

use std::sync::Arc;

use crate::output::{EngineStep, Trace, TraceId};

/// What is said of a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Verdict {
    /// The time that cost most first.
    pub causes: Vec<Cause>,
    /// What could not be seen, each a sentence without a full stop.
    pub unseen: Vec<String>,
}

/// A reason for a part of its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    pub kind: Kind,
    /// Of the request's time.
    pub seconds: f64,
    /// 0 to 1 of the request's time.
    pub share: f64,
    /// What was seen, in words: `queued 1.2 s behind 14 requests, KV cache 98 % full`. Holds nothing of a target's that is not sanitised.
    pub evidence: String,
    /// It is inferred, not observed.
    pub inferred: bool,
}

/// What may make a request slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Waited to be scheduled.
    Queued,
    /// Lost its place for want of KV cache: the time until it was where it had been.
    Preempted,
    /// Its own prompt took long.
    LongPrefill,
    /// Other requests' prompts were computed inside its decode steps.
    PrefillOfOthers,
    SlowTokenizer,
    /// The client reads slower than the server writes.
    SlowClient,
    /// The front end took outputs up long after the engine sent them.
    FrontEndLate,
    /// The engine's steps took long.
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
            Self::Preempted => "preempted",
            Self::LongPrefill => "long_prefill",
            Self::PrefillOfOthers => "prefill_of_others",
            Self::SlowTokenizer => "slow_tokenizer",
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
    /// The prefills of other requests on its engines that overlap it.
    pub prefills: Vec<Prefill>,
}

/// Another request's prompt while it was computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Prefill {
    /// Whose.
    pub trace: TraceId,
    pub engine: u32,
    pub start_ns: u64,
    pub end_ns: u64,
    /// Of the prompt, without cached ones; `None` where that is not known.
    pub tokens: Option<u64>,
}

/// Judges a request.
pub fn explain(_trace: &Trace, _around: &Around) -> Verdict {
    Verdict::default()
}
