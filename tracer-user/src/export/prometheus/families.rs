//! Every metric by name, and how a [`Metric`] moves it.
//!
//! Enters: metric updates, on the core's thread. Leaves: text at a scrape. Invariants: at most [`MAX_SERIES`] label sets, then
//! everything new is counted under `other`; label values are sanitised; a set's counters and gauges exist from the first time it
//! is seen, at 0; a value that is no finite number ≥ 0 is not observed; what was counted before a model's name was known goes over
//! to that name, in every family.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::buckets;
use super::family::{Family, LabelPairs};
use super::register::{Register, Rename};
use super::series::{Exemplar, Histogram, MODEL, Phase, Ratio, SERVER, Series};
use crate::output::{Labels, Metric, Outcome, RequestSeconds};
use crate::sanitise::sanitise;

/// Label sets (server, model, engine) that get series of their own. A server has one model, a few adapters and one engine per
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

/// The model before its name is known.
const UNKNOWN: &str = "unknown";

const GEN_AI_MODEL: &str = "gen_ai_request_model";

/// All families of the traced servers.
#[derive(Debug)]
pub struct Families {
    pub(super) requests: Family<Counter>,
    pub(super) generations: Family<Counter>,
    pub(super) running: Family<Gauge>,
    pub(super) waiting: Family<Gauge>,
    pub(super) kv_cache_usage: Family<Ratio>,
    pub(super) preemptions: Family<Counter>,
    pub(super) prompt_tokens: Family<Counter>,
    pub(super) prompt_cached_tokens: Family<Counter>,
    pub(super) generation_tokens: Family<Counter>,
    pub(super) prefix_queries: Family<Counter>,
    pub(super) prefix_hits: Family<Counter>,
    pub(super) usage_differs: Family<Counter>,
    pub(super) parse: Family<Phase>,
    pub(super) tokenize: Family<Phase>,
    pub(super) queue: Family<Phase>,
    pub(super) prefill: Family<Phase>,
    pub(super) decode: Family<Phase>,
    pub(super) inference: Family<Phase>,
    pub(super) detokenize: Family<Phase>,
    pub(super) ttft_engine: Family<Phase>,
    pub(super) inter_token: Family<Histogram>,
    pub(super) engine_step: Family<Histogram>,
    duration: Family<Phase>,
    time_to_first_token: Family<Phase>,
    time_per_output_token: Family<Phase>,
    /// All of the above, to be renamed.
    all: Vec<Box<dyn Rename>>,
    series: BTreeMap<Labels, Arc<Series>>,
    overflow: Option<Arc<Series>>,
    error_types: BTreeSet<String>,
    gen_ai: BTreeSet<LabelPairs>,
}

/// A histogram's maker for [`Family`], which takes no closure that holds anything.
macro_rules! buckets {
    ($type:ident, $buckets:ident) => {
        || $type::new(buckets::$buckets.iter().copied())
    };
}

impl Families {
    /// Makes every family and registers it.
    pub fn register(registry: &mut Registry) -> Self {
        let mut to = Register::new(registry);
        Self {
            requests: to.plain("inferspan_requests", "HTTP requests that are over, by outcome", Counter::default),
            generations: to.plain(
                "inferspan_generations",
                "Engine requests that are over, by finish reason",
                Counter::default,
            ),
            running: to.plain(
                "inferspan_requests_running",
                "Engine requests in the running batch after the last step",
                Gauge::default,
            ),
            waiting: to.plain(
                "inferspan_requests_waiting",
                "Engine requests queued after the last step",
                Gauge::default,
            ),
            kv_cache_usage: to.plain(
                "inferspan_kv_cache_usage_ratio",
                "Share of the KV cache in use after the last step, 0 to 1",
                Ratio::default,
            ),
            preemptions: to.plain(
                "inferspan_preemptions",
                "Engine requests put back into the queue for want of KV cache",
                Counter::default,
            ),
            prompt_tokens: to.plain(
                "inferspan_prompt_tokens",
                "Prompt tokens prefilled, cached ones included",
                Counter::default,
            ),
            prompt_cached_tokens: to.plain(
                "inferspan_prompt_cached_tokens",
                "Prompt tokens that came from the prefix cache",
                Counter::default,
            ),
            generation_tokens: to.plain(
                "inferspan_generation_tokens",
                "Tokens that reached the front end",
                Counter::default,
            ),
            prefix_queries: to.plain(
                "inferspan_prefix_cache_queries",
                "Tokens looked up in the prefix cache",
                Counter::default,
            ),
            prefix_hits: to.plain(
                "inferspan_prefix_cache_hits",
                "Tokens found in the prefix cache",
                Counter::default,
            ),
            usage_differs: to.plain(
                "inferspan_usage_differs",
                "Responses whose own usage contradicts the tokens that were counted",
                Counter::default,
            ),
            parse: to.seconds("inferspan_request_parse", "Request complete to tokenisation start", buckets!(Phase, PHASE)),
            tokenize: to.seconds(
                "inferspan_request_tokenize",
                "Time in the tokenizer for the prompt",
                buckets!(Phase, PHASE),
            ),
            queue: to.seconds(
                "inferspan_request_queue",
                "Queued to first scheduled, an engine request",
                buckets!(Phase, PHASE),
            ),
            prefill: to.seconds(
                "inferspan_request_prefill",
                "First scheduled to first token, an engine request",
                buckets!(Phase, PHASE),
            ),
            decode: to.seconds(
                "inferspan_request_decode",
                "First to last token, an engine request",
                buckets!(Phase, PHASE),
            ),
            inference: to.seconds(
                "inferspan_request_inference",
                "First scheduled to last token, an engine request",
                buckets!(Phase, PHASE),
            ),
            detokenize: to.seconds(
                "inferspan_request_detokenize",
                "Time from token to text, all tokens of a request",
                buckets!(Phase, PHASE),
            ),
            ttft_engine: to.seconds(
                "inferspan_request_ttft_engine",
                "The front end's own arrival stamp to when it takes up the first token, every engine request, as vLLM counts it",
                buckets!(Phase, TIME_TO_FIRST_TOKEN),
            ),
            inter_token: to.seconds(
                "inferspan_inter_token",
                "Between tokens of a generation as they reach the front end",
                buckets!(Histogram, INTER_TOKEN),
            ),
            engine_step: to.seconds(
                "inferspan_engine_step",
                "One iteration of the engine",
                buckets!(Histogram, ENGINE_STEP),
            ),
            duration: to.seconds(
                "gen_ai_server_request_duration",
                "First request byte read to last response byte written",
                buckets!(Phase, REQUEST_DURATION),
            ),
            time_to_first_token: to.seconds(
                "gen_ai_server_time_to_first_token",
                "First request byte read to the first token's arrival in the front end, successful requests",
                buckets!(Phase, TIME_TO_FIRST_TOKEN),
            ),
            time_per_output_token: to.seconds(
                "gen_ai_server_time_per_output_token",
                "Time per output token after the first, successful requests",
                buckets!(Phase, TIME_PER_OUTPUT_TOKEN),
            ),
            all: to.all(),
            series: BTreeMap::new(),
            overflow: None,
            error_types: BTreeSet::new(),
            gen_ai: BTreeSet::new(),
        }
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
                    (SERVER, series.server.clone()),
                    ("gen_ai_operation_name", clean(operation)),
                    ("gen_ai_provider_name", clean(provider)),
                    (GEN_AI_MODEL, series.model.clone()),
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
            Metric::FirstToken { labels, ttft_engine, trace_id, span_id } => {
                let exemplar = Exemplar { trace_id: *trace_id, span_id: *span_id };
                observe(&self.series(labels).ttft_engine, Some(*ttft_engine), exemplar);
            }
            Metric::UsageDiffers { labels } => {
                self.series(labels).usage_differs.inc();
            }
            Metric::ModelKnown { server, model } => self.rename(server, model),
        }
    }

    /// Gives what `server` counted before its model's name was known to `model`.
    fn rename(&mut self, server: &str, model: &str) {
        if model.is_empty() || model == UNKNOWN {
            return;
        }
        // The handles lie in the families; who asks for the new name next gets the old series' own.
        self.series.retain(|labels, _| &*labels.server != server || !is_unknown(&labels.model));
        let (server, model) = (clean(server), clean(model));
        let renamed = |labels: &LabelPairs| -> Option<LabelPairs> {
            let is_here = labels.iter().any(|(key, value)| *key == SERVER && *value == server);
            let at = labels.iter().position(|(key, value)| matches!(*key, MODEL | GEN_AI_MODEL) && value == UNKNOWN)?;
            let mut labels = labels.clone();
            labels[at].1.clone_from(&model);
            is_here.then_some(labels)
        };
        for family in &self.all {
            family.rename(&renamed);
        }
        self.gen_ai =
            std::mem::take(&mut self.gen_ai).into_iter().map(|labels| renamed(&labels).unwrap_or(labels)).collect();
    }

    /// The handles of `labels`, or of the overflow when there are too many.
    fn series(&mut self, labels: &Labels) -> Arc<Series> {
        if let Some(series) = self.series.get(labels) {
            return Arc::clone(series);
        }
        if self.series.len() < MAX_SERIES {
            let model = if is_unknown(&labels.model) { UNKNOWN.to_owned() } else { clean(&labels.model) };
            let series = Arc::new(Series::of(self, clean(&labels.server), model, &labels.engine.to_string()));
            self.series.insert(labels.clone(), Arc::clone(&series));
            return series;
        }
        if let Some(overflow) = &self.overflow {
            return Arc::clone(overflow);
        }
        let series = Arc::new(Series::of(self, OTHER.to_owned(), OTHER.to_owned(), OTHER));
        Arc::clone(self.overflow.insert(series))
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

fn is_unknown(model: &str) -> bool {
    model.is_empty() || model == UNKNOWN
}

#[cfg(test)]
#[path = "families_tests.rs"]
mod tests;
