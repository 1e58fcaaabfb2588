//! Every metric by name, and how a [`Metric`] moves it.
//!
//! Enters: metric updates, on the core's thread. Leaves: text at a scrape. Invariants: at most [`MAX_SERIES`] label pairs, then
//! everything new is counted under `model="other",engine="other"`; label values are sanitised; a pair's counters and gauges
//! exist from the first time it is seen, at 0; a value that is no finite number ≥ 0 is not observed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::buckets;
use super::family::{Family, LabelPairs};
use crate::export::sanitise::sanitise;
use crate::output::{FinishReason, Labels, Metric, Outcome, RequestSeconds, SpanId, TraceId};

/// Label pairs (model, engine) that get series of their own. A server has one model, a few adapters and one engine per
/// data-parallel rank; a client that invents model names must not grow us.
const MAX_SERIES: usize = 128;

/// Distinct `error_type` values; status codes and a few words.
const MAX_ERROR_TYPES: usize = 64;

/// Distinct label sets of the `gen_ai_*` metrics.
const MAX_GEN_AI: usize = 512;

/// Characters of a label value.
const MAX_LABEL: usize = 128;

/// Where the overflow goes.
const OTHER: &str = "other";

const OUTCOMES: [Outcome; 6] =
    [Outcome::Stop, Outcome::Length, Outcome::Abort, Outcome::Error, Outcome::Rejected, Outcome::Unknown];
const FINISH_REASONS: [FinishReason; 5] =
    [FinishReason::Stop, FinishReason::Length, FinishReason::Abort, FinishReason::Error, FinishReason::Repetition];

/// The span that an observation was made of.
#[derive(Debug, Clone, Copy)]
pub struct Exemplar {
    trace_id: TraceId,
    span_id: SpanId,
}

impl EncodeLabelSet for Exemplar {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        ("trace_id", self.trace_id.to_string()).encode(encoder.encode_label())?;
        ("span_id", self.span_id.to_string()).encode(encoder.encode_label())
    }
}

type Phase = HistogramWithExemplars<Exemplar>;
type Ratio = Gauge<f64, AtomicU64>;

macro_rules! histogram {
    ($type:ident, $buckets:ident) => {
        Family::new(|| $type::new(buckets::$buckets.iter().copied()))
    };
}

/// All families of the traced servers.
#[derive(Debug)]
pub struct Families {
    requests: Family<Counter>,
    generations: Family<Counter>,
    running: Family<Gauge>,
    waiting: Family<Gauge>,
    kv_cache_usage: Family<Ratio>,
    preemptions: Family<Counter>,
    prompt_tokens: Family<Counter>,
    prompt_cached_tokens: Family<Counter>,
    generation_tokens: Family<Counter>,
    prefix_queries: Family<Counter>,
    prefix_hits: Family<Counter>,
    parse: Family<Phase>,
    tokenize: Family<Phase>,
    queue: Family<Phase>,
    prefill: Family<Phase>,
    decode: Family<Phase>,
    inference: Family<Phase>,
    detokenize: Family<Phase>,
    inter_token: Family<Histogram>,
    engine_step: Family<Histogram>,
    duration: Family<Phase>,
    time_to_first_token: Family<Phase>,
    time_per_output_token: Family<Phase>,
    series: BTreeMap<Labels, Arc<Series>>,
    overflow: Option<Arc<Series>>,
    error_types: BTreeSet<String>,
    gen_ai: BTreeSet<LabelPairs>,
}

/// The handles of one label pair.
#[derive(Debug)]
struct Series {
    model: String,
    requests: [Counter; OUTCOMES.len()],
    generations: [Counter; FINISH_REASONS.len()],
    running: Gauge,
    waiting: Gauge,
    kv_cache_usage: Ratio,
    preemptions: Counter,
    prompt_tokens: Counter,
    prompt_cached_tokens: Counter,
    generation_tokens: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    parse: Phase,
    tokenize: Phase,
    queue: Phase,
    prefill: Phase,
    decode: Phase,
    inference: Phase,
    detokenize: Phase,
    inter_token: Histogram,
    engine_step: Histogram,
}

impl Families {
    /// Makes every family and registers it.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self {
            requests: Family::new(Counter::default),
            generations: Family::new(Counter::default),
            running: Family::new(Gauge::default),
            waiting: Family::new(Gauge::default),
            kv_cache_usage: Family::new(Gauge::default),
            preemptions: Family::new(Counter::default),
            prompt_tokens: Family::new(Counter::default),
            prompt_cached_tokens: Family::new(Counter::default),
            generation_tokens: Family::new(Counter::default),
            prefix_queries: Family::new(Counter::default),
            prefix_hits: Family::new(Counter::default),
            parse: histogram!(Phase, PHASE),
            tokenize: histogram!(Phase, PHASE),
            queue: histogram!(Phase, PHASE),
            prefill: histogram!(Phase, PHASE),
            decode: histogram!(Phase, PHASE),
            inference: histogram!(Phase, PHASE),
            detokenize: histogram!(Phase, PHASE),
            inter_token: histogram!(Histogram, INTER_TOKEN),
            engine_step: histogram!(Histogram, ENGINE_STEP),
            duration: histogram!(Phase, REQUEST_DURATION),
            time_to_first_token: histogram!(Phase, TIME_TO_FIRST_TOKEN),
            time_per_output_token: histogram!(Phase, TIME_PER_OUTPUT_TOKEN),
            series: BTreeMap::new(),
            overflow: None,
            error_types: BTreeSet::new(),
            gen_ai: BTreeSet::new(),
        };
        plain(registry, "inferspan_requests", "HTTP requests that are over, by outcome", &this.requests);
        plain(registry, "inferspan_generations", "Engine requests that are over, by finish reason", &this.generations);
        plain(
            registry,
            "inferspan_requests_running",
            "Engine requests in the running batch after the last step",
            &this.running,
        );
        plain(registry, "inferspan_requests_waiting", "Engine requests queued after the last step", &this.waiting);
        plain(
            registry,
            "inferspan_kv_cache_usage_ratio",
            "Share of the KV cache in use after the last step, 0 to 1",
            &this.kv_cache_usage,
        );
        plain(
            registry,
            "inferspan_preemptions",
            "Engine requests put back into the queue for want of KV cache",
            &this.preemptions,
        );
        plain(
            registry,
            "inferspan_prompt_tokens",
            "Prompt tokens prefilled, cached ones included",
            &this.prompt_tokens,
        );
        plain(
            registry,
            "inferspan_prompt_cached_tokens",
            "Prompt tokens that came from the prefix cache",
            &this.prompt_cached_tokens,
        );
        plain(registry, "inferspan_generation_tokens", "Tokens that reached the front end", &this.generation_tokens);
        plain(registry, "inferspan_prefix_cache_queries", "Tokens looked up in the prefix cache", &this.prefix_queries);
        plain(registry, "inferspan_prefix_cache_hits", "Tokens found in the prefix cache", &this.prefix_hits);
        seconds(registry, "inferspan_request_parse", "Request complete to tokenisation start", &this.parse);
        seconds(registry, "inferspan_request_tokenize", "Time in the tokenizer for the prompt", &this.tokenize);
        seconds(registry, "inferspan_request_queue", "Queued to first scheduled, an engine request", &this.queue);
        seconds(
            registry,
            "inferspan_request_prefill",
            "First scheduled to first token, an engine request",
            &this.prefill,
        );
        seconds(registry, "inferspan_request_decode", "First to last token, an engine request", &this.decode);
        seconds(
            registry,
            "inferspan_request_inference",
            "First scheduled to last token, an engine request",
            &this.inference,
        );
        seconds(
            registry,
            "inferspan_request_detokenize",
            "Time from token to text, all tokens of a request",
            &this.detokenize,
        );
        seconds(
            registry,
            "inferspan_inter_token",
            "Between tokens of a generation as they reach the front end",
            &this.inter_token,
        );
        seconds(registry, "inferspan_engine_step", "One iteration of the engine", &this.engine_step);
        seconds(
            registry,
            "gen_ai_server_request_duration",
            "First request byte read to last response byte written",
            &this.duration,
        );
        seconds(
            registry,
            "gen_ai_server_time_to_first_token",
            "Request received to first token out, successful requests",
            &this.time_to_first_token,
        );
        seconds(
            registry,
            "gen_ai_server_time_per_output_token",
            "Time per output token after the first, successful requests",
            &this.time_per_output_token,
        );
        this
    }

    /// Applies one update.
    pub fn apply(&mut self, metric: &Metric) {
        match metric {
            Metric::Request {
                labels,
                outcome,
                operation,
                provider,
                error_type,
                trace_id,
                span_id,
                seconds,
                time_per_output_token,
            } => {
                let exemplar = Exemplar { trace_id: *trace_id, span_id: *span_id };
                let series = self.series(labels);
                series.requests[*outcome as usize].inc();
                let RequestSeconds {
                    parse,
                    tokenize,
                    queue: _,
                    prefill: _,
                    decode: _,
                    detokenize,
                    ttft,
                    ttft_engine: _,
                    e2e,
                } = *seconds;
                observe(&series.parse, parse, exemplar);
                observe(&series.tokenize, tokenize, exemplar);
                observe(&series.detokenize, detokenize, exemplar);
                let gen_ai = vec![
                    ("gen_ai_operation_name", clean(operation)),
                    ("gen_ai_provider_name", clean(provider)),
                    ("gen_ai_request_model", series.model.clone()),
                ];
                let gen_ai = self.bounded_gen_ai(gen_ai);
                let mut with_error = gen_ai.clone();
                if let Some(error_type) = error_type {
                    with_error.push(("error_type", self.bounded_error_type(error_type)));
                }
                observe(&self.duration.series(with_error), e2e, exemplar);
                // The convention defines the other two for successful responses only.
                if matches!(outcome, Outcome::Stop | Outcome::Length) {
                    observe(&self.time_to_first_token.series(gen_ai.clone()), ttft, exemplar);
                    observe(&self.time_per_output_token.series(gen_ai), *time_per_output_token, exemplar);
                }
            }
            Metric::Generation { labels, finish_reason, trace_id, span_id, queue, prefill, decode, inference } => {
                let exemplar = Exemplar { trace_id: *trace_id, span_id: *span_id };
                let series = self.series(labels);
                series.generations[*finish_reason as usize].inc();
                observe(&series.queue, *queue, exemplar);
                observe(&series.prefill, *prefill, exemplar);
                observe(&series.decode, *decode, exemplar);
                observe(&series.inference, *inference, exemplar);
            }
            Metric::Prompt { labels, tokens, cached } => {
                let series = self.series(labels);
                series.prompt_tokens.inc_by(*tokens);
                series.prompt_cached_tokens.inc_by(*cached);
            }
            Metric::Tokens { labels, tokens, inter_token } => {
                let series = self.series(labels);
                series.generation_tokens.inc_by(*tokens);
                if let Some(value) = inter_token.filter(|value| is_observable(*value)) {
                    series.inter_token.observe(value);
                }
            }
            Metric::Preempted { labels, count } => {
                self.series(labels).preemptions.inc_by(*count);
            }
            Metric::Scheduler { labels, running, waiting, kv_cache_usage, prefix_queries, prefix_hits } => {
                let series = self.series(labels);
                series.running.set(i64::try_from(*running).unwrap_or(i64::MAX));
                series.waiting.set(i64::try_from(*waiting).unwrap_or(i64::MAX));
                if is_observable(*kv_cache_usage) {
                    series.kv_cache_usage.set(*kv_cache_usage);
                }
                series.prefix_queries.inc_by(*prefix_queries);
                series.prefix_hits.inc_by(*prefix_hits);
            }
            Metric::Step { labels, seconds } => {
                if is_observable(*seconds) {
                    self.series(labels).engine_step.observe(*seconds);
                }
            }
            Metric::FirstToken { .. } | Metric::UsageDiffers { .. } | Metric::ModelKnown { .. } => {}
        }
    }

    /// The handles of `labels`, or of the overflow when there are too many.
    fn series(&mut self, labels: &Labels) -> Arc<Series> {
        if let Some(series) = self.series.get(labels) {
            return Arc::clone(series);
        }
        if self.series.len() < MAX_SERIES {
            let model = if labels.model.is_empty() { "unknown".to_owned() } else { clean(&labels.model) };
            let series = Arc::new(self.make(model, &labels.engine.to_string()));
            self.series.insert(labels.clone(), Arc::clone(&series));
            return series;
        }
        if let Some(overflow) = &self.overflow {
            return Arc::clone(overflow);
        }
        let series = Arc::new(self.make(OTHER.to_owned(), OTHER));
        Arc::clone(self.overflow.insert(series))
    }

    fn make(&self, model: String, engine: &str) -> Series {
        let pair = || -> LabelPairs { vec![("model", model.clone()), ("engine", engine.to_owned())] };
        let with = |key, value: &str| {
            let mut labels = pair();
            labels.push((key, value.to_owned()));
            labels
        };
        Series {
            requests: OUTCOMES.map(|outcome| self.requests.series(with("outcome", outcome.name()))),
            generations: FINISH_REASONS.map(|reason| self.generations.series(with("finish_reason", reason.name()))),
            running: self.running.series(pair()),
            waiting: self.waiting.series(pair()),
            kv_cache_usage: self.kv_cache_usage.series(pair()),
            preemptions: self.preemptions.series(pair()),
            prompt_tokens: self.prompt_tokens.series(pair()),
            prompt_cached_tokens: self.prompt_cached_tokens.series(pair()),
            generation_tokens: self.generation_tokens.series(pair()),
            prefix_queries: self.prefix_queries.series(pair()),
            prefix_hits: self.prefix_hits.series(pair()),
            parse: self.parse.series(pair()),
            tokenize: self.tokenize.series(pair()),
            queue: self.queue.series(pair()),
            prefill: self.prefill.series(pair()),
            decode: self.decode.series(pair()),
            inference: self.inference.series(pair()),
            detokenize: self.detokenize.series(pair()),
            inter_token: self.inter_token.series(pair()),
            engine_step: self.engine_step.series(pair()),
            model,
        }
    }

    fn bounded_error_type(&mut self, error_type: &str) -> String {
        let error_type = clean(error_type);
        if self.error_types.len() < MAX_ERROR_TYPES {
            self.error_types.insert(error_type.clone());
        }
        if self.error_types.contains(&error_type) { error_type } else { OTHER.to_owned() }
    }

    fn bounded_gen_ai(&mut self, labels: LabelPairs) -> LabelPairs {
        if self.gen_ai.len() < MAX_GEN_AI {
            self.gen_ai.insert(labels.clone());
        }
        if self.gen_ai.contains(&labels) {
            return labels;
        }
        labels.into_iter().map(|(key, _)| (key, OTHER.to_owned())).collect()
    }
}

fn plain<M>(registry: &mut Registry, name: &str, help: &str, family: &Family<M>)
where
    M: Clone + EncodeMetric + TypedMetric + std::fmt::Debug + Send + Sync + 'static,
{
    registry.register(name, help, family.clone());
}

fn seconds<M>(registry: &mut Registry, name: &str, help: &str, family: &Family<M>)
where
    M: Clone + EncodeMetric + TypedMetric + std::fmt::Debug + Send + Sync + 'static,
{
    registry.register_with_unit(name, help, Unit::Seconds, family.clone());
}

fn observe(histogram: &Phase, value: Option<f64>, exemplar: Exemplar) {
    if let Some(value) = value.filter(|value| is_observable(*value)) {
        histogram.observe(value, Some(exemplar), None);
    }
}

/// One NaN makes a histogram's sum NaN for ever.
fn is_observable(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

fn clean(text: &str) -> String {
    sanitise(text, MAX_LABEL).into_owned()
}
