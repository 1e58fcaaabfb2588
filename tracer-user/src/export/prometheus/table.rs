//! Every metric of the traced servers: one row each, from which its family, its series and its line in docs/signals.md come.
//!
//! A row is a field, what it is, its name and its help. `words` are counters of one series a word; `engine` has the labels of an engine
//! ([`ENGINE_LABELS`]); `named` these and a name that is not known before; `request` those of the OpenTelemetry conventions for a request ([`REQUEST_LABELS`]). Histograms are in seconds.
//! What the tracer says about itself has a table of its own, [`super::own::TABLE`].

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::buckets;
use super::family::{Family, LabelPairs};
use super::register::{Register, Rename};
use super::series::{FINISH_REASONS, OUTCOMES, Phase, Ratio, Seconds};
use crate::input::cuda::{Class, CollectiveKind, CopyKind, MemoryOf};
use crate::output::{FinishReason, Outcome};

pub const SERVER: &str = "server";
pub const MODEL: &str = "model";
pub const ENGINE: &str = "engine";
pub const LIBRARY: &str = "library";
pub const ENGINE_LABELS: [&str; 3] = [SERVER, MODEL, ENGINE];

pub const GEN_AI_OPERATION: &str = "gen_ai_operation_name";
pub const GEN_AI_PROVIDER: &str = "gen_ai_provider_name";
pub const GEN_AI_MODEL: &str = "gen_ai_request_model";
pub const ERROR_TYPE: &str = "error_type";
pub const REQUEST_LABELS: [&str; 4] = [SERVER, GEN_AI_OPERATION, GEN_AI_PROVIDER, GEN_AI_MODEL];

/// A metric as a user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// With its unit, and `_total` or `_info` where the format wants it.
    pub name: String,
    pub kind: Kind,
    /// In the order in which they are shown.
    pub labels: Vec<&'static str>,
    pub help: &'static str,
}

/// As the text format has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Row {
    fn new(name: &str, kind: Kind, labels: &[&'static str], label: Option<&'static str>, help: &'static str) -> Self {
        let suffix = match kind {
            Kind::Counter => "_total",
            Kind::Gauge => "",
            Kind::Histogram => "_seconds",
        };
        let labels = labels.iter().copied().chain(label).collect();
        Self { name: format!("{name}{suffix}"), kind, labels, help }
    }
}

/// What a field of the table may be.
trait Shape: Sized {
    const KIND: Kind;

    fn with(buckets: &'static [f64]) -> Self;
}

impl Shape for Counter {
    const KIND: Kind = Kind::Counter;

    fn with(_: &'static [f64]) -> Self {
        Self::default()
    }
}

impl Shape for Seconds {
    const KIND: Kind = Kind::Counter;

    fn with(_: &'static [f64]) -> Self {
        Self::default()
    }
}

impl Shape for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn with(_: &'static [f64]) -> Self {
        Self::default()
    }
}

impl Shape for Ratio {
    const KIND: Kind = Kind::Gauge;

    fn with(_: &'static [f64]) -> Self {
        Self::default()
    }
}

impl Shape for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn with(buckets: &'static [f64]) -> Self {
        Self::new(buckets.iter().copied())
    }
}

impl Shape for Phase {
    const KIND: Kind = Kind::Histogram;

    fn with(buckets: &'static [f64]) -> Self {
        Self::new(buckets.iter().copied())
    }
}

macro_rules! optional {
    ($default:expr) => {
        $default
    };
    ($default:expr, $value:expr) => {
        $value
    };
}

macro_rules! metrics {
    (
        words { $($by:ident: $label:literal of $word:ident in $words:ident = $by_name:literal, $by_help:literal;)* }
        engine { $($one:ident: $shape:ident $(($buckets:ident))? = $name:literal, $help:literal;)* }
        named { $($of_name:ident: $of_key:ident = $of_title:literal, $of_what:literal;)* }
        request { $($of:ident: $of_buckets:ident $(and $of_label:ident)? = $of_metric:literal, $of_help:literal;)* }
    ) => {
        /// Every family of the table.
        #[derive(Debug)]
        pub(super) struct Registered {
            $($by: Family<Counter>,)*
            $($one: Family<$shape>,)*
            $(pub(super) $of_name: Family<Gauge>,)*
            $(pub(super) $of: Family<Phase>,)*
            /// All of the above, to be renamed.
            pub(super) all: Vec<Box<dyn Rename>>,
        }

        impl Registered {
            /// Makes every family and registers it.
            pub(super) fn new(registry: &mut Registry) -> Self {
                let mut to = Register::new(registry);
                Self {
                    $($by: to.family($by_name, $by_help, Kind::Counter, Counter::default),)*
                    $($one: to.family($name, $help, <$shape as Shape>::KIND, || {
                        <$shape as Shape>::with(optional!(&[] $(, buckets::$buckets)?))
                    }),)*
                    $($of_name: to.family($of_title, $of_what, Kind::Gauge, Gauge::default),)*
                    $($of: to.family($of_metric, $of_help, Kind::Histogram, || Phase::with(buckets::$of_buckets)),)*
                    all: to.all(),
                }
            }
        }

        /// The handles of one label set: what one engine of one server moves. They are shared with the families that show them, so a
        /// series that is renamed there is still the same series here.
        #[derive(Debug)]
        pub(super) struct Series {
            pub(super) server: String,
            pub(super) model: String,
            engine: String,
            $(pub(super) $by: [Counter; $words.len()],)*
            $(pub(super) $one: $shape,)*
        }

        impl Series {
            /// The series of these labels in every family, made where they are not there yet.
            pub(super) fn of(families: &Registered, server: String, model: String, engine: &str) -> Self {
                let set = || -> LabelPairs {
                    ENGINE_LABELS.into_iter().zip([server.clone(), model.clone(), engine.to_owned()]).collect()
                };
                let with = |key, value: &str| {
                    let mut labels = set();
                    labels.push((key, value.to_owned()));
                    labels
                };
                Self {
                    $($by: $words.map(|word: $word| families.$by.series(with($label, word.name()))),)*
                    $($one: families.$one.series(set()),)*
                    server,
                    model,
                    engine: engine.to_owned(),
                }
            }

            /// Its labels, and one more.
            pub(super) fn with(&self, key: &'static str, value: String) -> LabelPairs {
                let its = [self.server.clone(), self.model.clone(), self.engine.clone()];
                ENGINE_LABELS.into_iter().zip(its).chain([(key, value)]).collect()
            }
        }

        /// The rows, in the order in which they are shown.
        pub fn rows() -> Vec<Row> {
            vec![
                $(Row::new($by_name, Kind::Counter, &ENGINE_LABELS, Some($label), $by_help),)*
                $(Row::new($name, <$shape as Shape>::KIND, &ENGINE_LABELS, None, $help),)*
                $(Row::new($of_title, Kind::Gauge, &ENGINE_LABELS, Some($of_key), $of_what),)*
                $(Row::new($of_metric, Kind::Histogram, &REQUEST_LABELS, optional!(None $(, Some($of_label))?), $of_help),)*
            ]
        }
    };
}

const MEMORIES: [MemoryOf; MemoryOf::ALL.len()] = MemoryOf::ALL;
const CLASSES: [Class; Class::ALL.len()] = Class::ALL;
const COPIES: [CopyKind; CopyKind::ALL.len()] = CopyKind::ALL;
const COLLECTIVES: [CollectiveKind; CollectiveKind::ALL.len()] = CollectiveKind::ALL;

metrics! {
    words {
        requests: "outcome" of Outcome in OUTCOMES = "inferspan_requests", "HTTP requests that are over, by outcome";
        generations: "finish_reason" of FinishReason in FINISH_REASONS = "inferspan_generations",
            "Engine requests that are over, by finish reason";
        cuda_launches: "class" of Class in CLASSES = "inferspan_cuda_launches",
            "Kernels launched outside of graphs, by what they do";
        cuda_copies: "kind" of CopyKind in COPIES = "inferspan_cuda_copies", "Copies that were enqueued, by kind";
        cuda_copy_bytes: "kind" of CopyKind in COPIES = "inferspan_cuda_copy_bytes", "Bytes of copies, by kind";
        cuda_allocations: "memory" of MemoryOf in MEMORIES = "inferspan_cuda_allocations",
            "Allocations, of device and host memory";
        nccl_collectives: "kind" of CollectiveKind in COLLECTIVES = "inferspan_nccl_collectives", "Collectives, by kind";
        nccl_bytes: "kind" of CollectiveKind in COLLECTIVES = "inferspan_nccl_bytes",
            "Bytes of collectives: count times element size, by kind";
    }
    engine {
        running: Gauge = "inferspan_requests_running", "Engine requests in the running batch after the last step";
        waiting: Gauge = "inferspan_requests_waiting", "Engine requests queued after the last step";
        kv_cache_usage: Ratio = "inferspan_kv_cache_usage_ratio", "Share of the KV cache in use after the last step, 0 to 1";
        preemptions: Counter = "inferspan_preemptions", "Engine requests put back into the queue for want of KV cache";
        prompt_tokens: Counter = "inferspan_prompt_tokens", "Prompt tokens prefilled, cached ones included";
        prompt_cached_tokens: Counter = "inferspan_prompt_cached_tokens", "Prompt tokens that came from the prefix cache";
        generation_tokens: Counter = "inferspan_generation_tokens", "Tokens that reached the front end";
        prefix_queries: Counter = "inferspan_prefix_cache_queries", "Tokens looked up in the prefix cache";
        prefix_hits: Counter = "inferspan_prefix_cache_hits", "Tokens found in the prefix cache";
        usage_differs: Counter = "inferspan_usage_differs",
            "Responses whose own usage contradicts what was counted";
        cuda_graph_launches: Counter = "inferspan_cuda_graph_launches", "Graphs launched";
        cuda_sync_wait: Seconds = "inferspan_cuda_sync_wait_seconds", "Time in waits for streams, events and devices";
        cuda_launch_gap: Seconds = "inferspan_cuda_launch_gap_seconds",
            "Time of steps with nothing enqueued or waited for";
        cuda_memory: Gauge = "inferspan_cuda_memory_bytes", "Device memory that was allocated since the attach, and not freed";
        cuda_memory_peak: Gauge = "inferspan_cuda_memory_peak_bytes", "The most of it at a time";
        cuda_memory_growing: Gauge = "inferspan_cuda_memory_growing",
            "A library takes device memory and frees none for 30 s (1)";
        cuda_host_memory: Gauge = "inferspan_cuda_host_memory_bytes",
            "Pinned host memory allocated since the attach, and not freed";
        cuda_host_memory_peak: Gauge = "inferspan_cuda_host_memory_peak_bytes", "The most of it at a time";
        cuda_activities: Counter = "inferspan_cuda_activities",
            "Records of a GPU's work (CUPTI); nothing makes them yet";
        parse: Phase(PHASE) = "inferspan_request_parse", "Request complete to tokenisation start";
        tokenize: Phase(PHASE) = "inferspan_request_tokenize", "Time in the tokenizer for the prompt";
        queue: Phase(PHASE) = "inferspan_request_queue", "Queued to first scheduled, an engine request";
        prefill: Phase(PHASE) = "inferspan_request_prefill", "First scheduled to first token, an engine request";
        decode: Phase(PHASE) = "inferspan_request_decode", "First to last token, an engine request";
        inference: Phase(PHASE) = "inferspan_request_inference", "First scheduled to last token, an engine request";
        detokenize: Phase(PHASE) = "inferspan_request_detokenize", "Time from token to text, all tokens of a request";
        ttft_engine: Phase(TIME_TO_FIRST_TOKEN) = "inferspan_request_ttft_engine",
            "Arrival stamp to first token, as engines count it";
        inter_token: Histogram(INTER_TOKEN) = "inferspan_inter_token",
            "Between tokens of a generation as they reach the front end";
        engine_step: Histogram(ENGINE_STEP) = "inferspan_engine_step", "One iteration of the engine";
    }
    named {
        cuda_memory_library: LIBRARY = "inferspan_cuda_memory_library_bytes",
            "Device memory held, by the library that took it";
    }
    request {
        duration: REQUEST_DURATION and ERROR_TYPE = "gen_ai_server_request_duration",
            "First byte of request to last byte of response";
        time_to_first_token: TIME_TO_FIRST_TOKEN = "gen_ai_server_time_to_first_token",
            "First request byte read to first token, successful requests";
        time_per_output_token: TIME_PER_OUTPUT_TOKEN = "gen_ai_server_time_per_output_token",
            "Time per output token after the first, successful requests";
    }
}
