//! What the engines' steps amount to.
//!
//! Enters: steps. Leaves: how long they took by what was in them and by how many requests they served, the most that was seen of the KV
//! cache and of the queue, and what they did with CUDA. Invariant: at most [`MAX_ENGINES`] engines and [`MAX_KERNELS`] kernels are told apart;
//! that there were more is said.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::histogram::Histogram;
use super::words::count;
use crate::output::EngineStep;
use crate::output::cuda::StepCuda;

/// Engines that are told apart: a file may name any number of servers.
const MAX_ENGINES: usize = 4_096;
/// Kernels that are counted by name; names are a library's, and it may have any number.
const MAX_KERNELS: usize = 4_096;
/// Kernels that are named.
const TOP: usize = 10;

#[derive(Debug, Default)]
pub struct StepDigest {
    all: Histogram,
    with_prefill: Histogram,
    decode_alone: Histogram,
    /// By the power of two that the batch reaches.
    by_batch: BTreeMap<u32, Histogram>,
    engines: BTreeSet<(String, u32)>,
    has_more_engines: bool,
    kv_max: Option<f64>,
    running_max: Option<u64>,
    waiting_max: Option<u64>,
    prefill_tokens: u64,
    decode_tokens: u64,
    cuda: Option<CudaDigest>,
}

#[derive(Debug, Default)]
struct CudaDigest {
    steps: u64,
    /// Of those steps, seconds.
    seconds: f64,
    launches: u64,
    graph_launches: u64,
    gap_ns: u64,
    waits: u64,
    wait_ns: u64,
    fell_back: u64,
    modes: BTreeMap<&'static str, u64>,
    kernels: BTreeMap<String, u64>,
    unnamed: u64,
}

/// Times are seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepsSaid {
    pub count: u64,
    pub engines: u64,
    /// There were more of them than are told apart.
    pub has_more_engines: bool,
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    /// 0 to 1; null where the scheduler said nothing.
    pub kv_cache_usage_max: Option<f64>,
    pub running_max: Option<u64>,
    pub waiting_max: Option<u64>,
    pub kinds: Vec<Durations>,
    pub by_batch: Vec<Durations>,
    pub cuda: Option<CudaSaid>,
}

/// How long steps of a kind took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Durations {
    pub what: String,
    pub count: u64,
    /// All of them together.
    pub seconds: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CudaSaid {
    /// Steps in which CUDA was called, and their time.
    pub steps: u64,
    pub seconds: f64,
    pub launches: u64,
    pub graph_launches: u64,
    /// Time with nothing enqueued or waited for.
    pub gap_seconds: f64,
    pub waits: u64,
    /// In waits, of all threads.
    pub wait_seconds: f64,
    /// Steps without the graph that such batches were run with.
    pub fell_back: u64,
    pub modes: Vec<(String, u64)>,
    /// Most frequent first; empty where launches are not told one by one.
    pub top_kernels: Vec<(String, u64)>,
    /// Of kernels over those that are counted by name.
    pub unnamed_launches: u64,
}

impl StepsSaid {
    /// How many engines there were, as a person reads it.
    pub fn engines_said(&self) -> String {
        match (self.engines, self.has_more_engines) {
            (n, true) => format!("more than {} engines", count(n)),
            (1, _) => "1 engine".to_owned(),
            (n, _) => format!("{} engines", count(n)),
        }
    }

    /// How long steps took, of what: by what was in them, then by how many requests they served.
    pub fn rows(&self) -> impl Iterator<Item = (String, &Durations)> {
        let unit = |batch: &Durations| if batch.what == "1" { "request" } else { "requests" };
        let batches = self.by_batch.iter().map(move |batch| (format!("{} {}", batch.what, unit(batch)), batch));
        self.kinds.iter().map(|kind| (kind.what.clone(), kind)).chain(batches)
    }
}

impl CudaSaid {
    /// Of the steps' time, 0 to 1.
    pub fn gap_share(&self) -> f64 {
        if self.seconds > 0.0 { self.gap_seconds / self.seconds } else { 0.0 }
    }
}

impl StepDigest {
    pub fn take(&mut self, step: &EngineStep) {
        let seconds = step.end_ns.saturating_sub(step.start_ns) as f64 / 1e9;
        self.all.add(seconds, 1);
        if step.prefill_tokens > 0 || step.first_tokens > 0 { &mut self.with_prefill } else { &mut self.decode_alone }
            .add(seconds, 1);
        self.by_batch.entry(step.requests.max(1).ilog2()).or_default().add(seconds, 1);
        let engine = (step.server.instance(), step.engine);
        if self.engines.len() < MAX_ENGINES || self.engines.contains(&engine) {
            self.engines.insert(engine);
        } else {
            self.has_more_engines = true;
        }
        self.prefill_tokens = self.prefill_tokens.saturating_add(step.prefill_tokens);
        self.decode_tokens = self.decode_tokens.saturating_add(step.decode_tokens);
        if let Some(stats) = step.stats {
            let usage = Some(stats.kv_cache_usage).filter(|usage| usage.is_finite());
            self.kv_max = [self.kv_max, usage].into_iter().flatten().reduce(f64::max);
            self.running_max = self.running_max.max(Some(stats.running));
            self.waiting_max = self.waiting_max.max(Some(stats.waiting));
        }
        if let Some(cuda) = &step.cuda {
            self.cuda.get_or_insert_default().take(cuda, seconds);
        }
    }

    /// `None` where there was no step.
    pub fn said(&self) -> Option<StepsSaid> {
        let kinds = [("all", &self.all), ("with prefill", &self.with_prefill), ("decode alone", &self.decode_alone)];
        let kinds: Vec<Durations> = kinds.into_iter().filter_map(|(what, of)| durations(what.to_owned(), of)).collect();
        (self.all.count() > 0).then(|| StepsSaid {
            count: self.all.count(),
            engines: self.engines.len() as u64,
            has_more_engines: self.has_more_engines,
            prefill_tokens: self.prefill_tokens,
            decode_tokens: self.decode_tokens,
            kv_cache_usage_max: self.kv_max,
            running_max: self.running_max,
            waiting_max: self.waiting_max,
            kinds,
            by_batch: self.by_batch.iter().filter_map(|(power, of)| durations(batch(*power), of)).collect(),
            cuda: self.cuda.as_ref().map(CudaDigest::said),
        })
    }
}

/// `1`, `2–3`, `4–7` requests.
fn batch(power: u32) -> String {
    let from = 1_u64 << power;
    if from == 1 { "1".to_owned() } else { format!("{from}–{}", from.saturating_mul(2) - 1) }
}

fn durations(what: String, of: &Histogram) -> Option<Durations> {
    let q = |q| of.quantile(q);
    let (count, seconds) = (of.count(), of.sum());
    Some(Durations { what, count, seconds, p50: q(0.5)?, p95: q(0.95)?, p99: q(0.99)?, max: q(1.0)? })
}

impl CudaDigest {
    fn take(&mut self, of: &StepCuda, seconds: f64) {
        self.steps += 1;
        self.seconds += seconds;
        for (sum, more) in [
            (&mut self.launches, of.launches),
            (&mut self.graph_launches, of.graph_launches),
            (&mut self.gap_ns, of.gap_ns),
            (&mut self.waits, of.waits),
            (&mut self.wait_ns, of.wait_ns),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.fell_back += u64::from(of.fell_back);
        if let Some(mode) = of.mode() {
            *self.modes.entry(mode.name()).or_default() += 1;
        }
        for (name, count) in &of.top {
            if let Some(known) = self.kernels.get_mut(&name.short) {
                *known = known.saturating_add(*count);
            } else if self.kernels.len() < MAX_KERNELS {
                self.kernels.insert(name.short.clone(), *count);
            } else {
                self.unnamed = self.unnamed.saturating_add(*count);
            }
        }
    }

    fn said(&self) -> CudaSaid {
        let mut top: Vec<(String, u64)> =
            self.kernels.iter().map(|(name, count)| (super::name(name), *count)).collect();
        top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        top.truncate(TOP);
        CudaSaid {
            steps: self.steps,
            seconds: self.seconds,
            launches: self.launches,
            graph_launches: self.graph_launches,
            gap_seconds: self.gap_ns as f64 / 1e9,
            waits: self.waits,
            wait_seconds: self.wait_ns as f64 / 1e9,
            fell_back: self.fell_back,
            modes: self.modes.iter().map(|(mode, count)| ((*mode).to_owned(), *count)).collect(),
            top_kernels: top,
            unnamed_launches: self.unnamed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::input::Server;
    use crate::output::{SpanId, TraceId};

    fn step(engine: u32, start_ns: u64, end_ns: u64) -> EngineStep {
        EngineStep {
            server: Arc::new(Server::default()),
            trace_id: TraceId([1; 16]),
            span_id: SpanId([1; 8]),
            engine,
            start_ns,
            end_ns,
            requests: 1,
            tokens: 1,
            first_tokens: 0,
            prefill_tokens: 0,
            decode_tokens: 1,
            batch: Box::default(),
            stats: None,
            cuda: None,
        }
    }

    #[test]
    fn engines_of_a_file_that_names_any_number_of_them_are_bounded() {
        let mut digest = StepDigest::default();
        (0..MAX_ENGINES as u32).for_each(|engine| digest.take(&step(engine, 0, 1_000)));
        digest.take(&step(0, 0, 1_000));
        assert_eq!(digest.said().unwrap().engines_said(), "4,096 engines");
        (0..10_000).for_each(|more| digest.take(&step(MAX_ENGINES as u32 + more, 0, 1_000)));
        let said = digest.said().unwrap();
        assert_eq!((said.engines_said().as_str(), digest.engines.len()), ("more than 4,096 engines", MAX_ENGINES));
        assert_eq!(said.count, MAX_ENGINES as u64 + 1 + 10_000, "their steps are all counted");
    }
}
