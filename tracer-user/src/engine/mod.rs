//! Wire messages to engine-neutral ones.
//!
//! Enters: whole ZMTP messages. Leaves: [`EngineMessage`]s. One file an engine; nothing outside this room knows an engine's
//! layouts. Refused: a message whose shape is not known is [`EngineMessage::Other`], never a guess.

pub mod ids;
pub mod vllm;

use crate::decode::zmtp::Message;
use crate::output::FinishReason;

/// Knows one engine's messages.
pub trait Engine: std::fmt::Debug {
    fn decode(&self, message: &Message) -> EngineMessage;
}

/// What an engine and its front ends tell each other.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineMessage {
    /// Front end → engine: run this.
    Add(Add),
    /// Front end → engine: forget these.
    Abort(Vec<String>),
    /// Engine → front end: what a step gave.
    Outputs(Outputs),
    /// Engine → front end: it died.
    Dead,
    /// Engine → front end at start-up: who it is.
    Ready {
        version: Option<String>,
    },
    /// Known by its start, and its rest makes no sense.
    Unreadable,
    Other,
}

/// A request for the engine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Add {
    /// The engine's own id, unique while it runs.
    pub id: String,
    /// The id that the front end derives the response's id from.
    pub external_id: Option<String>,
    pub prompt_tokens: Option<u64>,
    /// When the front end took the request up, unix seconds.
    pub arrival: Option<f64>,
    /// `arrival` was stamped before tokenising (vLLM ≥ 0.17); otherwise after, or not known.
    pub arrival_before_tokenizing: bool,
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub seed: Option<i64>,
    /// W3C trace context that the front end passed on.
    pub traceparent: Option<String>,
    /// The message was cut; fields at its end are missing.
    pub cut: bool,
}

/// One message of an engine to one front end, after one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs {
    /// Engine index (data-parallel rank).
    pub engine: u32,
    pub outputs: Vec<RequestOutput>,
    pub stats: Option<SchedulerStats>,
    /// Engine clock (`time.monotonic()`), seconds; `None` when the message was cut before it.
    pub timestamp: Option<f64>,
    /// It answers a utility call and belongs to no step.
    pub utility: bool,
    /// Requests of the step that are not in `outputs`, or only in part, because the message was cut.
    pub missing: u64,
}

/// What a step gave for one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestOutput {
    pub id: String,
    /// Tokens generated.
    pub tokens: u64,
    pub finish: Option<FinishReason>,
    pub events: Vec<LifeEvent>,
    /// Given with the first output.
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
}

/// A scheduler event of a request. `at`: engine clock, seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LifeEvent {
    pub kind: LifeEventKind,
    pub at: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeEventKind {
    Queued,
    Scheduled,
    Preempted,
}

/// The scheduler's state after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SchedulerStats {
    pub running: u64,
    pub waiting: u64,
    /// 0 to 1.
    pub kv_cache_usage: f64,
    /// Tokens looked up in the prefix cache since the previous message.
    pub prefix_queries: u64,
    /// Tokens found there since the previous message.
    pub prefix_hits: u64,
}
