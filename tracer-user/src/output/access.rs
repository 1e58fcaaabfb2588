//! The access log's record, and why a request's record or tree is not whole.

use serde::{Serialize, Serializer};

use super::{FinishReason, Outcome, SpanId, TraceId, UnixNanos};

/// One line of the access log, to the letter of docs/signals.md.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessRecord {
    /// Schema version, 1.
    pub v: u32,
    /// When the request was over.
    pub time: UnixNanos,
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub request_id: Option<String>,
    pub method: Option<String>,
    pub path: Option<String>,
    pub status: Option<u16>,
    pub model: Option<String>,
    pub stream: Option<bool>,
    pub outcome: Outcome,
    pub finish_reasons: Vec<FinishReason>,
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub preemptions: Option<u64>,
    /// Why something is missing.
    pub incomplete: Incomplete,
    /// [`Server::instance`].
    pub server: String,
    pub seconds: RequestSeconds,
    pub generations: Vec<GenerationRecord>,
}

impl AccessRecord {
    /// Seconds a token behind the first, however the request ended: (e2e − ttft) / (output tokens − 1), of the generation that has most of
    /// them. It is what `gen_ai_server_time_per_output_token_seconds` counts of those that succeeded.
    pub fn per_token(&self) -> Option<f64> {
        let most = self.generations.iter().map(|generation| generation.output_tokens).max().or(self.output_tokens)?;
        let behind = (self.seconds.e2e? - self.seconds.ttft?).max(0.0);
        (most > 1).then(|| behind / (most - 1) as f64)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct RequestSeconds {
    pub parse: Option<f64>,
    pub tokenize: Option<f64>,
    pub queue: Option<f64>,
    pub prefill: Option<f64>,
    pub decode: Option<f64>,
    pub detokenize: Option<f64>,
    /// First request byte read → first token's arrival in the front end.
    pub ttft: Option<f64>,
    /// The front end's own arrival stamp → when it takes up the first token: as the engine counts it.
    pub ttft_engine: Option<f64>,
    pub e2e: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationRecord {
    pub engine_request_id: String,
    pub finish_reason: Option<FinishReason>,
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub output_tokens: u64,
    pub preemptions: u64,
    pub seconds: GenerationSeconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct GenerationSeconds {
    pub queue: Option<f64>,
    pub prefill: Option<f64>,
    pub decode: Option<f64>,
}

/// Why a tree is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Missing {
    /// Generations whose HTTP request was not seen.
    HttpSideUnseen,
    /// The request was under way when the tracer attached.
    AttachedLate,
    /// A request that was answered and whose engine request was not seen.
    EngineSideUnseen,
    CancelledBeforeFirstOutput,
    /// The engine did not say when it queued or scheduled it (`--disable-log-stats`), or it was missed.
    EngineEventsUnseen,
    TokenizingUnseen,
    RecordsLost,
    ResponseEndUnseen,
    /// The response's own `usage` contradicts what was counted.
    UsageDiffers,
    /// It was still open when the run ended.
    Unfinished,
}

impl Missing {
    /// Every reason, in the order of the enum.
    pub const ALL: [Self; 10] = [
        Self::HttpSideUnseen,
        Self::AttachedLate,
        Self::EngineSideUnseen,
        Self::CancelledBeforeFirstOutput,
        Self::EngineEventsUnseen,
        Self::TokenizingUnseen,
        Self::RecordsLost,
        Self::ResponseEndUnseen,
        Self::UsageDiffers,
        Self::Unfinished,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::HttpSideUnseen => "http_side_unseen",
            Self::AttachedLate => "attached_late",
            Self::EngineSideUnseen => "engine_side_unseen",
            Self::CancelledBeforeFirstOutput => "cancelled_before_first_output",
            Self::EngineEventsUnseen => "engine_events_unseen",
            Self::TokenizingUnseen => "tokenizing_unseen",
            Self::RecordsLost => "records_lost",
            Self::ResponseEndUnseen => "response_end_unseen",
            Self::UsageDiffers => "usage_differs",
            Self::Unfinished => "unfinished",
        }
    }
}

/// What a tree lacks, each once, in the order of [`Missing`]; shown and serialised as comma-separated words, `null` when it is whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Incomplete(Vec<Missing>);

impl Incomplete {
    pub fn is_whole(&self) -> bool {
        self.0.is_empty()
    }

    pub fn missing(&self) -> &[Missing] {
        &self.0
    }
}

/// In the order of [`Missing`].
impl FromIterator<Missing> for Incomplete {
    fn from_iter<T: IntoIterator<Item = Missing>>(missing: T) -> Self {
        let mut missing: Vec<Missing> = missing.into_iter().collect();
        missing.sort_unstable();
        missing.dedup();
        Self(missing)
    }
}

impl std::fmt::Display for Incomplete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, missing) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{}", missing.name())?;
        }
        Ok(())
    }
}

impl Serialize for Incomplete {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.is_whole() { to.serialize_none() } else { to.collect_str(self) }
    }
}
