//! The handles of one label set: what one engine of one server moves.
//!
//! They are shared with the families that show them, so a series that is renamed there is still the same series here.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::gauge::Gauge;
pub(super) use prometheus_client::metrics::histogram::Histogram;

use super::families::Families;
use super::family::LabelPairs;
use crate::output::{FinishReason, Outcome, SpanId, TraceId};

pub(super) const SERVER: &str = "server";
pub(super) const MODEL: &str = "model";
const ENGINE: &str = "engine";

const OUTCOMES: [Outcome; 6] =
    [Outcome::Stop, Outcome::Length, Outcome::Abort, Outcome::Error, Outcome::Rejected, Outcome::Unknown];
const FINISH_REASONS: [FinishReason; 5] =
    [FinishReason::Stop, FinishReason::Length, FinishReason::Abort, FinishReason::Error, FinishReason::Repetition];

/// The span that an observation was made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exemplar {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
}

impl EncodeLabelSet for Exemplar {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        ("trace_id", self.trace_id.to_string()).encode(encoder.encode_label())?;
        ("span_id", self.span_id.to_string()).encode(encoder.encode_label())
    }
}

pub(super) type Phase = HistogramWithExemplars<Exemplar>;
pub(super) type Ratio = Gauge<f64, AtomicU64>;

/// The handles of one label set.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) server: String,
    pub(super) model: String,
    pub(super) requests: [Counter; OUTCOMES.len()],
    pub(super) generations: [Counter; FINISH_REASONS.len()],
    pub(super) running: Gauge,
    pub(super) waiting: Gauge,
    pub(super) kv_cache_usage: Ratio,
    pub(super) preemptions: Counter,
    pub(super) prompt_tokens: Counter,
    pub(super) prompt_cached_tokens: Counter,
    pub(super) generation_tokens: Counter,
    pub(super) prefix_queries: Counter,
    pub(super) prefix_hits: Counter,
    pub(super) usage_differs: Counter,
    pub(super) parse: Phase,
    pub(super) tokenize: Phase,
    pub(super) queue: Phase,
    pub(super) prefill: Phase,
    pub(super) decode: Phase,
    pub(super) inference: Phase,
    pub(super) detokenize: Phase,
    pub(super) ttft_engine: Phase,
    pub(super) inter_token: Histogram,
    pub(super) engine_step: Histogram,
}

impl Series {
    /// The series of these labels in every family, made where they are not there yet.
    pub(super) fn of(families: &Families, server: String, model: String, engine: &str) -> Self {
        let set =
            || -> LabelPairs { vec![(SERVER, server.clone()), (MODEL, model.clone()), (ENGINE, engine.to_owned())] };
        let with = |key, value: &str| {
            let mut labels = set();
            labels.push((key, value.to_owned()));
            labels
        };
        Self {
            requests: OUTCOMES.map(|outcome| families.requests.series(with("outcome", outcome.name()))),
            generations: FINISH_REASONS.map(|reason| families.generations.series(with("finish_reason", reason.name()))),
            running: families.running.series(set()),
            waiting: families.waiting.series(set()),
            kv_cache_usage: families.kv_cache_usage.series(set()),
            preemptions: families.preemptions.series(set()),
            prompt_tokens: families.prompt_tokens.series(set()),
            prompt_cached_tokens: families.prompt_cached_tokens.series(set()),
            generation_tokens: families.generation_tokens.series(set()),
            prefix_queries: families.prefix_queries.series(set()),
            prefix_hits: families.prefix_hits.series(set()),
            usage_differs: families.usage_differs.series(set()),
            parse: families.parse.series(set()),
            tokenize: families.tokenize.series(set()),
            queue: families.queue.series(set()),
            prefill: families.prefill.series(set()),
            decode: families.decode.series(set()),
            inference: families.inference.series(set()),
            detokenize: families.detokenize.series(set()),
            ttft_engine: families.ttft_engine.series(set()),
            inter_token: families.inter_token.series(set()),
            engine_step: families.engine_step.series(set()),
            server,
            model,
        }
    }
}
