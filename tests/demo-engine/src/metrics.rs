//! `/metrics` in vLLM's names, by vLLM's formulas (`v1/metrics/stats.py`, `loggers.py`).
//!
//! Every API server writes to a region of its own in memory that all of them share; a page is the sum of the regions, and
//! its gauges are those of the region that heard from the scheduler last. One thread writes a region.

use std::fmt::Write as _;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::sys::Shared;
use crate::wire::Stats;

macro_rules! families {
    ($(#[$meta:meta])* $kind:ident, $table:ident: [$($name:ident = $value:expr),* $(,)?]) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $kind { $($name),* }
        const $table: &[Family] = &[$($value),*];
    };
}

/// Name, one more label, help, and upper bounds when it is a histogram.
type Family = (&'static str, Option<(&'static str, &'static str)>, &'static str, &'static [f64]);

const HITS: &str = "Prefix cache hits, in terms of number of cached tokens.";
const QUERIES: &str = "Prefix cache queries, in terms of number of queried tokens.";
const SUCCESS: &str = "Count of successfully processed requests.";
const SOURCE: &str = "Number of prompt tokens by source.";
/// vLLM drops these as well, and counts them nowhere. A tracer sees when a message arrives, not when the event loop gets to it: they are
/// how far apart the two may be.
const GIVEN_UP: &str = "Tokens that came, or were waiting for the event loop, after their request was given up.";
const GIVEN_UP_PROMPTS: &str =
    "Prompt tokens of requests that were given up before the event loop got to their first output.";
const UNHEARD: &str = "Engine requests whose client left before the engine was told of them.";

families!(
    /// What only grows.
    Counter, COUNTERS: [
        PrefixQueries = ("prefix_cache_queries", None, QUERIES, &[]),
        PrefixHits = ("prefix_cache_hits", None, HITS, &[]),
        Preemptions = ("num_preemptions", None, "Cumulative number of preemption from the engine.", &[]),
        PromptTokens = ("prompt_tokens", None, "Number of prefill tokens processed.", &[]),
        PromptTokensComputed = ("prompt_tokens_by_source", Some(("source", "local_compute")), SOURCE, &[]),
        PromptTokensHit = ("prompt_tokens_by_source", Some(("source", "local_cache_hit")), SOURCE, &[]),
        PromptTokensCached =
            ("prompt_tokens_cached", None, "Number of cached prompt tokens (local + external).", &[]),
        GenerationTokens = ("generation_tokens", None, "Number of generation tokens processed.", &[]),
        GivenUpTokens = ("demo_given_up_tokens", None, GIVEN_UP, &[]),
        GivenUpPromptTokens = ("demo_given_up_prompt_tokens", None, GIVEN_UP_PROMPTS, &[]),
        Unheard = ("demo_unheard_requests", None, UNHEARD, &[]),
        SuccessStop = ("request_success", Some(("finished_reason", "stop")), SUCCESS, &[]),
        SuccessLength = ("request_success", Some(("finished_reason", "length")), SUCCESS, &[]),
        SuccessAbort = ("request_success", Some(("finished_reason", "abort")), SUCCESS, &[]),
        SuccessError = ("request_success", Some(("finished_reason", "error")), SUCCESS, &[]),
        SuccessRepetition = ("request_success", Some(("finished_reason", "repetition")), SUCCESS, &[]),
    ]
);

// vLLM's own boundaries.
const LENGTHS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

families!(
    /// What is spread.
    Histogram, HISTOGRAMS: [
        RequestPromptTokens = ("request_prompt_tokens", None, "Number of prefill tokens processed.", LENGTHS),
        RequestGenerationTokens =
            ("request_generation_tokens", None, "Number of generation tokens processed.", LENGTHS),
        TimeToFirstToken =
            ("time_to_first_token_seconds", None, "Histogram of time to first token in seconds.", TTFT),
        InterToken = ("inter_token_latency_seconds", None, "Histogram of inter-token latency in seconds.", TOKEN),
        TimePerOutputToken = (
            "request_time_per_output_token_seconds",
            None,
            "Histogram of time_per_output_token_seconds per request.",
            TOKEN
        ),
        EndToEnd =
            ("e2e_request_latency_seconds", None, "Histogram of e2e request latency in seconds.", REQUEST),
        Queue = (
            "request_queue_time_seconds",
            None,
            "Histogram of time spent in WAITING phase for request.",
            REQUEST
        ),
        Inference = (
            "request_inference_time_seconds",
            None,
            "Histogram of time spent in RUNNING phase for request.",
            REQUEST
        ),
        Prefill = (
            "request_prefill_time_seconds",
            None,
            "Histogram of time spent in PREFILL phase for request.",
            REQUEST
        ),
        Decode = (
            "request_decode_time_seconds",
            None,
            "Histogram of time spent in DECODE phase for request.",
            REQUEST
        ),
    ]
);

const GAUGES: [(&str, &str); 3] = [
    ("num_requests_running", "Number of requests in model execution batches."),
    ("num_requests_waiting", "Number of requests waiting to be processed."),
    ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage."),
];

fn region_len() -> usize {
    let histograms: usize = HISTOGRAMS.iter().map(|family| family.3.len() + 2).sum();
    // Then the gauges, the scheduler's last word (monotonic seconds), and whether the server is up.
    COUNTERS.len() + histograms + GAUGES.len() + 2
}

/// Counters needed for `servers` API servers.
pub fn shared_len(servers: usize) -> usize {
    region_len() * servers
}

#[derive(Debug)]
pub struct Metrics {
    shared: Shared,
    servers: usize,
    index: usize,
    model: String,
}

impl Metrics {
    /// API server `index` of `servers`, on the memory `fd` names.
    pub fn open(fd: i32, servers: usize, index: usize, model: &str) -> io::Result<Self> {
        Ok(Self { shared: Shared::map(fd, shared_len(servers))?, servers, index, model: model.to_owned() })
    }

    fn get(&self, server: usize, slot: usize) -> f64 {
        f64::from_bits(self.shared.counters()[server * region_len() + slot].load(Relaxed))
    }

    fn set(&self, slot: usize, value: f64) {
        self.shared.counters()[self.index * region_len() + slot].store(value.to_bits(), Relaxed);
    }

    fn grow(&self, slot: usize, by: f64) {
        self.set(slot, self.get(self.index, slot) + by);
    }

    pub fn add(&self, counter: Counter, by: u64) {
        self.grow(counter as usize, by as f64);
    }

    /// Slots of a histogram: one a bucket, the sum, the count.
    fn histogram_slot(index: usize) -> usize {
        COUNTERS.len() + HISTOGRAMS[..index].iter().map(|family| family.3.len() + 2).sum::<usize>()
    }

    pub fn observe(&self, histogram: Histogram, value: f64) {
        let bounds = HISTOGRAMS[histogram as usize].3;
        let first = Self::histogram_slot(histogram as usize);
        if let Some(bucket) = bounds.iter().position(|bound| value <= *bound) {
            self.grow(first + bucket, 1.0);
        }
        self.grow(first + bounds.len(), value);
        self.grow(first + bounds.len() + 1, 1.0);
    }

    /// What the scheduler said at `now` (monotonic seconds).
    pub fn scheduler(&self, stats: &Stats, now: f64) {
        self.add(Counter::PrefixQueries, u64::from(stats.prefix.queries));
        self.add(Counter::PrefixHits, u64::from(stats.prefix.hits));
        let first = region_len() - 2 - GAUGES.len();
        self.set(first, f64::from(stats.running));
        self.set(first + 1, f64::from(stats.waiting));
        self.set(first + 2, stats.kv_cache_usage);
        self.set(first + 3, now);
    }

    /// The engine has answered this API server.
    pub fn set_ready(&self) {
        self.shared.counters()[(self.index + 1) * region_len() - 1].store(1, Release);
    }

    pub fn all_ready(&self) -> bool {
        (1..=self.servers).all(|server| self.shared.counters()[server * region_len() - 1].load(Acquire) == 1)
    }

    fn total(&self, slot: usize) -> f64 {
        (0..self.servers).map(|server| self.get(server, slot)).sum()
    }

    /// The page, in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        let labels = format!("engine=\"0\",model_name=\"{}\"", self.model);
        let head = |out: &mut String, name: &str, help: &str, kind: &str| {
            let _ = write!(out, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n");
        };
        let last = region_len() - 2;
        let latest =
            (0..self.servers).max_by(|a, b| self.get(*a, last).total_cmp(&self.get(*b, last))).unwrap_or(self.index);
        for (slot, (name, help)) in (last - GAUGES.len()..).zip(GAUGES) {
            head(&mut out, name, help, "gauge");
            let _ = writeln!(out, "vllm:{name}{{{labels}}} {:?}", self.get(latest, slot));
        }
        let mut previous = "";
        for (slot, (name, extra, help, _)) in COUNTERS.iter().enumerate() {
            if *name != previous {
                head(&mut out, &format!("{name}_total"), help, "counter");
            }
            previous = name;
            let extra = extra.map_or_else(String::new, |(key, value)| format!(",{key}=\"{value}\""));
            let _ = writeln!(out, "vllm:{name}_total{{{labels}{extra}}} {:?}", self.total(slot));
        }
        for (index, (name, _, help, bounds)) in HISTOGRAMS.iter().enumerate() {
            head(&mut out, name, help, "histogram");
            let first = Self::histogram_slot(index);
            let mut below = 0.0;
            for (slot, bound) in (first..).zip(*bounds) {
                below += self.total(slot);
                let _ = writeln!(out, "vllm:{name}_bucket{{{labels},le=\"{bound:?}\"}} {below:?}");
            }
            let (sum, count) = (self.total(first + bounds.len()), self.total(first + bounds.len() + 1));
            let _ = writeln!(out, "vllm:{name}_bucket{{{labels},le=\"+Inf\"}} {count:?}");
            let _ = writeln!(out, "vllm:{name}_count{{{labels}}} {count:?}\nvllm:{name}_sum{{{labels}}} {sum:?}");
        }
        out
    }
}
