//! How metrics move.

use std::sync::Arc;

use super::cuda::MemoryHeld;
use crate::input::cuda::{Class, CollectiveKind, MemoryOf, Sums};

use super::{FinishReason, Outcome, RequestSeconds, SpanId, TraceId};

/// Labels of our own series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels {
    /// [`Server::instance`].
    pub server: Arc<str>,
    /// `unknown` until the name is known; see [`Metric::ModelKnown`].
    pub model: Arc<str>,
    /// Engine index (data-parallel rank).
    pub engine: u32,
}

/// A change of a metric. Histograms take one observation a `Some`.
#[derive(Debug, Clone, PartialEq)]
pub enum Metric {
    /// An HTTP request is over.
    Request {
        labels: Labels,
        outcome: Outcome,
        /// `gen_ai.operation.name`.
        operation: &'static str,
        /// `gen_ai.provider.name`: [`Server::engine`].
        provider: Arc<str>,
        /// `error.type` when the outcome is no success: a status code, or a word.
        error_type: Option<Arc<str>>,
        /// For the exemplars.
        trace_id: TraceId,
        span_id: SpanId,
        seconds: RequestSeconds,
        /// (e2e − ttft) / (output tokens − 1).
        time_per_output_token: Option<f64>,
    },
    /// An engine request is over. The times are those that the engine's own histograms take, and only where they do.
    Generation {
        labels: Labels,
        finish_reason: FinishReason,
        trace_id: TraceId,
        span_id: SpanId,
        queue: Option<f64>,
        prefill: Option<f64>,
        decode: Option<f64>,
        inference: Option<f64>,
    },
    /// A prompt was prefilled: its tokens, and how many of them came from the prefix cache.
    Prompt {
        labels: Labels,
        tokens: u64,
        cached: u64,
    },
    /// Tokens reached the front end; `inter_token`: seconds since the previous ones of that generation.
    Tokens {
        labels: Labels,
        tokens: u64,
        inter_token: Option<f64>,
    },
    Preempted {
        labels: Labels,
        count: u64,
    },
    /// What the scheduler said after a step; queries and hits are deltas, in tokens.
    Scheduler {
        labels: Labels,
        running: u64,
        waiting: u64,
        kv_cache_usage: f64,
        prefix_queries: u64,
        prefix_hits: u64,
    },
    /// An engine step took this long.
    Step {
        labels: Labels,
        seconds: f64,
    },
    /// The first token of a generation reached the front end, this long after the front end's arrival stamp.
    FirstToken {
        labels: Labels,
        ttft_engine: f64,
        trace_id: TraceId,
        span_id: SpanId,
    },
    /// What a thread called of CUDA since this was last said.
    CudaCalls {
        labels: Labels,
        of: Box<Sums>,
    },
    /// Kernels were launched.
    CudaLaunches {
        labels: Labels,
        class: Class,
        count: u64,
    },
    /// A step left the GPU without work for so long.
    CudaGap {
        labels: Labels,
        seconds: f64,
    },
    /// Memory of an engine's processes through CUDA, by [`MemoryOf`]; `allocated`: by an allocation of such.
    CudaMemory {
        labels: Labels,
        held: [MemoryHeld; 2],
        allocated: Option<MemoryOf>,
    },
    /// Device memory that a library of an engine's processes asked for and that was not freed, bytes.
    CudaLibraryMemory {
        labels: Labels,
        library: Arc<str>,
        live: u64,
    },
    /// Whether any library of an engine's processes allocates device memory and frees none.
    CudaMemoryGrowing {
        labels: Labels,
        is_growing: bool,
    },
    /// What the GPU did, as CUPTI records it, was told; nobody draws it yet.
    CudaActivity {
        labels: Labels,
    },
    /// So many collectives of a kind, of so many bytes together.
    Collectives {
        labels: Labels,
        kind: CollectiveKind,
        count: u64,
        bytes: u64,
    },
    /// The response's own `usage` contradicts what was counted.
    UsageDiffers {
        labels: Labels,
    },
    /// What was counted for `server` under the model `unknown` is this model's: its series go over to that name.
    ModelKnown {
        server: Arc<str>,
        model: Arc<str>,
    },
}
