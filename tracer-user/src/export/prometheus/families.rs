//! How a [`Metric`] moves the families of [`super::table`].
//!
//! Enters: metric updates, on the core's thread. Leaves: text at a scrape. Invariants: at most [`MAX_SERIES`] label sets, then
//! everything new is counted under `other`; label values are sanitised; a set's counters and gauges exist from the first time it
//! is seen, at 0; a value that is no finite number ≥ 0 is not observed; what was counted before a model's name was known goes over
//! to that name, in every family.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prometheus_client::registry::Registry;

use super::family::LabelPairs;
use super::series::{Exemplar, Phase};
use super::table::{ERROR_TYPE, GEN_AI_MODEL, LIBRARY, MODEL, REQUEST_LABELS, Registered, SERVER, Series};
use crate::output::{Labels, Metric, Outcome};
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

/// All families of the traced servers.
#[derive(Debug)]
pub struct Families {
    registered: Registered,
    series: BTreeMap<Labels, Arc<Series>>,
    overflow: Option<Arc<Series>>,
    error_types: BTreeSet<String>,
    gen_ai: BTreeSet<LabelPairs>,
}

impl Families {
    /// Makes every family and registers it.
    pub fn register(registry: &mut Registry) -> Self {
        Self {
            registered: Registered::new(registry),
            series: BTreeMap::new(),
            overflow: None,
            error_types: BTreeSet::new(),
            gen_ai: BTreeSet::new(),
        }
    }

    /// Applies one update.
    pub fn apply(&mut self, metric: &Metric) {
        match metric {
            Metric::Request { .. } => self.request(metric),
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
                series.running.set(whole(*running));
                series.waiting.set(whole(*waiting));
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
            Metric::CudaCalls { .. }
            | Metric::CudaLaunches { .. }
            | Metric::CudaGap { .. }
            | Metric::CudaMemory { .. }
            | Metric::CudaLibraryMemory { .. }
            | Metric::CudaMemoryGrowing { .. }
            | Metric::CudaActivity { .. }
            | Metric::Collectives { .. } => self.cuda(metric),
            Metric::ModelKnown { server, model } => self.rename(server, model),
        }
    }

    /// What was done with CUDA.
    fn cuda(&mut self, metric: &Metric) {
        match metric {
            Metric::CudaCalls { labels, of } => {
                let series = self.series(labels);
                series.cuda_graph_launches.inc_by(of.graph_launches);
                for (kind, (count, bytes)) in of.copies.iter().zip(of.copy_bytes).enumerate() {
                    series.cuda_copies[kind].inc_by(*count);
                    series.cuda_copy_bytes[kind].inc_by(bytes);
                }
                series.cuda_sync_wait.inc_by(of.wait_ns as f64 / 1e9);
            }
            Metric::CudaLaunches { labels, class, count } => {
                self.series(labels).cuda_launches[*class as usize].inc_by(*count);
            }
            Metric::CudaGap { labels, seconds } if is_observable(*seconds) => {
                self.series(labels).cuda_launch_gap.inc_by(*seconds);
            }
            Metric::CudaMemory { labels, held: [device, host], allocated } => {
                let series = self.series(labels);
                series.cuda_memory.set(whole(device.live));
                series.cuda_memory_peak.set(whole(device.peak));
                series.cuda_host_memory.set(whole(host.live));
                series.cuda_host_memory_peak.set(whole(host.peak));
                if let Some(of) = allocated {
                    series.cuda_allocations[*of as usize].inc();
                }
            }
            Metric::CudaLibraryMemory { labels, library, live } => {
                let series = self.series(labels);
                let labels = series.with(LIBRARY, clean(library));
                self.registered.cuda_memory_library.series(labels).set(whole(*live));
            }
            Metric::CudaMemoryGrowing { labels, is_growing } => {
                self.series(labels).cuda_memory_growing.set(i64::from(*is_growing));
            }
            Metric::CudaActivity { labels } => {
                self.series(labels).cuda_activities.inc();
            }
            Metric::Collectives { labels, kind, count, bytes } => {
                let series = self.series(labels);
                series.nccl_collectives[*kind as usize].inc_by(*count);
                series.nccl_bytes[*kind as usize].inc_by(*bytes);
            }
            _ => {}
        }
    }

    /// An HTTP request is over.
    fn request(&mut self, metric: &Metric) {
        let Metric::Request {
            labels,
            outcome,
            operation,
            provider,
            error_type,
            trace_id,
            span_id,
            seconds,
            time_per_output_token,
        } = metric
        else {
            return;
        };
        let exemplar = Exemplar { trace_id: *trace_id, span_id: *span_id };
        let series = self.series(labels);
        series.requests[*outcome as usize].inc();
        observe(&series.parse, seconds.parse, exemplar);
        observe(&series.tokenize, seconds.tokenize, exemplar);
        observe(&series.detokenize, seconds.detokenize, exemplar);
        let values = [series.server.clone(), clean(operation), clean(provider), series.model.clone()];
        let gen_ai = self.bounded_gen_ai(REQUEST_LABELS.into_iter().zip(values).collect());
        let mut with_error = gen_ai.clone();
        if let Some(error_type) = error_type {
            with_error.push((ERROR_TYPE, self.bounded_error_type(error_type)));
        }
        observe(&self.registered.duration.series(with_error), seconds.e2e, exemplar);
        // The convention defines the other two for successful responses only.
        if matches!(outcome, Outcome::Stop | Outcome::Length) {
            observe(&self.registered.time_to_first_token.series(gen_ai.clone()), seconds.ttft, exemplar);
            observe(&self.registered.time_per_output_token.series(gen_ai), *time_per_output_token, exemplar);
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
        for family in &self.registered.all {
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
            let series =
                Arc::new(Series::of(&self.registered, clean(&labels.server), model, &labels.engine.to_string()));
            self.series.insert(labels.clone(), Arc::clone(&series));
            return series;
        }
        if let Some(overflow) = &self.overflow {
            return Arc::clone(overflow);
        }
        let series = Arc::new(Series::of(&self.registered, OTHER.to_owned(), OTHER.to_owned(), OTHER));
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

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
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
