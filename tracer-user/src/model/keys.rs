//! Every span name, event name and attribute key that leaves, in one place; docs/signals.md lists the same, and a test keeps
//! them equal.

/// Span names.
pub mod span {
    pub const REQUEST: &str = "inference_request";
    pub const PARSE: &str = "parse_request";
    pub const TOKENIZE: &str = "tokenize";
    pub const GENERATION: &str = "generation";
    pub const GENERATIONS: &str = "generations";
    pub const QUEUE: &str = "queue_wait";
    pub const PREFILL: &str = "prefill";
    pub const DECODE: &str = "decode";
    pub const DECODE_STEP: &str = "decode_step";
    pub const DECODE_STEPS: &str = "decode_steps";
    pub const DETOKENIZE: &str = "detokenize";
    pub const ENGINE_STEP: &str = "engine_step";
    pub const CUDA_LAUNCH: &str = "cuda_launch";

    pub const ALL: [&str; 13] = [
        REQUEST,
        PARSE,
        TOKENIZE,
        GENERATION,
        GENERATIONS,
        QUEUE,
        PREFILL,
        DECODE,
        DECODE_STEP,
        DECODE_STEPS,
        DETOKENIZE,
        ENGINE_STEP,
        CUDA_LAUNCH,
    ];
}

/// Span event names.
pub mod event {
    pub const FIRST_TOKEN: &str = "first_token";
    pub const PREEMPTED: &str = "preempted";
    pub const RESUMED: &str = "resumed";
    pub const CLIENT_DISCONNECTED: &str = "client_disconnected";
    pub const SERVER_CLOSED: &str = "server_closed";
    pub const FIRST_CONTENT: &str = "first_content_written";
    pub const PREFILL_CHUNK: &str = "prefill_chunk";

    pub const ALL: [&str; 7] =
        [FIRST_TOKEN, FIRST_CONTENT, PREEMPTED, RESUMED, CLIENT_DISCONNECTED, SERVER_CLOSED, PREFILL_CHUNK];
}

/// Attribute keys.
pub mod attribute {
    // HTTP semantic conventions (stable).
    pub const HTTP_METHOD: &str = "http.request.method";
    pub const HTTP_STATUS: &str = "http.response.status_code";
    pub const HTTP_ROUTE: &str = "http.route";
    pub const URL_PATH: &str = "url.path";
    pub const URL_SCHEME: &str = "url.scheme";
    pub const ERROR_TYPE: &str = "error.type";
    // GenAI semantic conventions (development).
    pub const OPERATION: &str = "gen_ai.operation.name";
    pub const PROVIDER: &str = "gen_ai.provider.name";
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    pub const REQUEST_STREAM: &str = "gen_ai.request.stream";
    pub const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
    pub const REQUEST_TEMPERATURE: &str = "gen_ai.request.temperature";
    pub const REQUEST_TOP_P: &str = "gen_ai.request.top_p";
    pub const REQUEST_SEED: &str = "gen_ai.request.seed";
    pub const REQUEST_CHOICES: &str = "gen_ai.request.choice.count";
    pub const RESPONSE_ID: &str = "gen_ai.response.id";
    pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
    pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
    pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
    pub const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
    // Keys that engines use themselves, seconds.
    pub const LATENCY_QUEUE: &str = "gen_ai.latency.time_in_queue";
    pub const LATENCY_TTFT: &str = "gen_ai.latency.time_to_first_token";
    pub const LATENCY_E2E: &str = "gen_ai.latency.e2e";
    pub const LATENCY_PREFILL: &str = "gen_ai.latency.time_in_model_prefill";
    pub const LATENCY_DECODE: &str = "gen_ai.latency.time_in_model_decode";
    pub const LATENCY_INFERENCE: &str = "gen_ai.latency.time_in_model_inference";
    // Ours.
    pub const OUTCOME: &str = "inferspan.outcome";
    pub const INCOMPLETE: &str = "inferspan.incomplete";
    pub const PROVENANCE: &str = "inferspan.provenance";
    pub const SPANS_DROPPED: &str = "inferspan.spans_dropped";
    pub const ENGINE_REQUEST_ID: &str = "inferspan.engine.request_id";
    pub const ENGINE_INDEX: &str = "inferspan.engine.index";
    pub const FINISH_REASON: &str = "inferspan.finish_reason";
    pub const PREEMPTIONS: &str = "inferspan.preemptions";
    pub const TOKENS: &str = "inferspan.tokens";
    pub const PROMPT_TOKENS: &str = "inferspan.prompt_tokens";
    pub const CACHED: &str = "inferspan.cached_tokens";
    pub const DETOKENIZE_TOTAL: &str = "inferspan.detokenize.total_seconds";
    pub const STEP: &str = "inferspan.step";
    pub const INDEX: &str = "inferspan.index";
    pub const FIRST_STEP: &str = "inferspan.steps.first";
    pub const LAST_STEP: &str = "inferspan.steps.last";
    pub const STEP_COUNT: &str = "inferspan.steps.count";
    pub const STEP_MIN: &str = "inferspan.steps.min_seconds";
    pub const STEP_P50: &str = "inferspan.steps.p50_seconds";
    pub const STEP_MAX: &str = "inferspan.steps.max_seconds";
    pub const REASON: &str = "inferspan.reason";
    pub const QUEUE_WAITING: &str = "inferspan.queue.waiting";
    pub const QUEUE_RUNNING: &str = "inferspan.queue.running";
    pub const QUEUE_MAX_RUNNING: &str = "inferspan.queue.max_running";
    pub const QUEUE_KV_USAGE: &str = "inferspan.queue.kv_cache_usage";
    pub const FIRST_LAG: &str = "inferspan.front_end.first_lag_seconds";
    pub const MAX_LAG: &str = "inferspan.front_end.max_lag_seconds";
    pub const LAST_LAG: &str = "inferspan.front_end.last_lag_seconds";
    pub const STRUCTURED_OUTPUT: &str = "inferspan.request.structured_output";
    pub const HTTP_WAITED: &str = "inferspan.http.waited_seconds";
    pub const BLOCKED: &str = "inferspan.client.blocked_seconds";
    pub const BLOCKED_AFTER: &str = "inferspan.client.blocked_after_seconds";
    pub const BLOCKED_WRITES: &str = "inferspan.client.blocked_writes";
    pub const BATCH_REQUESTS: &str = "inferspan.batch.requests";
    pub const BATCH_TOKENS: &str = "inferspan.batch.tokens";
    pub const BATCH_FIRST_TOKENS: &str = "inferspan.batch.first_tokens";
    pub const BATCH_PREFILL_TOKENS: &str = "inferspan.batch.prefill_tokens";
    pub const BATCH_DECODE_TOKENS: &str = "inferspan.batch.decode_tokens";
    pub const RUNNING: &str = "inferspan.scheduler.running";
    pub const WAITING: &str = "inferspan.scheduler.waiting";
    pub const KV_USAGE: &str = "inferspan.scheduler.kv_cache_usage";

    pub const CUDA_LAUNCHES: &str = "inferspan.cuda.launches";
    pub const CUDA_GRAPH_LAUNCHES: &str = "inferspan.cuda.graph_launches";
    pub const CUDA_MODE: &str = "inferspan.cuda.mode";
    pub const CUDA_FELL_BACK: &str = "inferspan.cuda.fell_back";
    pub const CUDA_GAP: &str = "inferspan.cuda.launch_gap_seconds";
    pub const CUDA_WAITS: &str = "inferspan.cuda.sync_waits";
    pub const CUDA_WAIT: &str = "inferspan.cuda.sync_wait_seconds";
    pub const CUDA_SETS: &str = "inferspan.cuda.sets";
    pub const CUDA_SET_BYTES: &str = "inferspan.cuda.set_bytes";
    pub const CUDA_PROCESSES: &str = "inferspan.cuda.processes";
    pub const CUDA_SKEW: &str = "inferspan.cuda.skew_seconds";
    pub const CUDA_COLLECTIVES: &str = "inferspan.cuda.collectives";
    pub const CUDA_COLLECTIVE_SKEW: &str = "inferspan.cuda.collective_skew_seconds";
    pub const CUDA_STRAGGLER: &str = "inferspan.cuda.straggler_rank";
    pub const CUDA_ESTIMATED: &str = "inferspan.cuda.estimated";
    pub const CUDA_TOP: &str = "inferspan.cuda.top_kernels";
    pub const CUDA_GRAPHS: &str = "inferspan.cuda.graphs";
    pub const CUDA_BEGINS_WITH_CALL: &str = "inferspan.cuda.begins_with_call";
    pub const CUDA_SHARE_STEPS: &str = "inferspan.cuda.share.steps";
    pub const CUDA_SHARE_LAUNCHES: &str = "inferspan.cuda.share.launches";
    pub const CUDA_SHARE_GRAPH_LAUNCHES: &str = "inferspan.cuda.share.graph_launches";
    pub const CUDA_SHARE_WAIT: &str = "inferspan.cuda.share.sync_wait_seconds";
    pub const CUDA_SHARE_PROVENANCE: &str = "inferspan.cuda.share.provenance";
    pub const CUDA_KERNEL: &str = "inferspan.cuda.kernel";
    pub const CUDA_KERNEL_NAME: &str = "inferspan.cuda.kernel.name";
    pub const CUDA_CLASS: &str = "inferspan.cuda.kernel.class";
    pub const CUDA_NAMED_BY: &str = "inferspan.cuda.kernel.named_by";
    pub const CUDA_GRID: &str = "inferspan.cuda.grid";
    pub const CUDA_BLOCK: &str = "inferspan.cuda.block";
    pub const CUDA_SHARED: &str = "inferspan.cuda.shared_memory";
    pub const CUDA_STREAM: &str = "inferspan.cuda.stream";
    pub const CUDA_COPIES_H2H: &str = "inferspan.cuda.copies.h2h";
    pub const CUDA_COPY_BYTES_H2H: &str = "inferspan.cuda.copy_bytes.h2h";
    pub const CUDA_COPIES_H2D: &str = "inferspan.cuda.copies.h2d";
    pub const CUDA_COPY_BYTES_H2D: &str = "inferspan.cuda.copy_bytes.h2d";
    pub const CUDA_COPIES_D2H: &str = "inferspan.cuda.copies.d2h";
    pub const CUDA_COPY_BYTES_D2H: &str = "inferspan.cuda.copy_bytes.d2h";
    pub const CUDA_COPIES_D2D: &str = "inferspan.cuda.copies.d2d";
    pub const CUDA_COPY_BYTES_D2D: &str = "inferspan.cuda.copy_bytes.d2d";
    pub const CUDA_COPIES_UNKNOWN: &str = "inferspan.cuda.copies.unknown";
    pub const CUDA_COPY_BYTES_UNKNOWN: &str = "inferspan.cuda.copy_bytes.unknown";
    pub const CUDA_COPIES_P2P: &str = "inferspan.cuda.copies.p2p";
    pub const CUDA_COPY_BYTES_P2P: &str = "inferspan.cuda.copy_bytes.p2p";
    /// By the number of a `CopyKind`: how many, and how many bytes.
    pub const CUDA_COPIES: [(&str, &str); 6] = [
        (CUDA_COPIES_H2H, CUDA_COPY_BYTES_H2H),
        (CUDA_COPIES_H2D, CUDA_COPY_BYTES_H2D),
        (CUDA_COPIES_D2H, CUDA_COPY_BYTES_D2H),
        (CUDA_COPIES_D2D, CUDA_COPY_BYTES_D2D),
        (CUDA_COPIES_UNKNOWN, CUDA_COPY_BYTES_UNKNOWN),
        (CUDA_COPIES_P2P, CUDA_COPY_BYTES_P2P),
    ];
    pub const CUDA_SHARE_COPIES_H2H: &str = "inferspan.cuda.share.copies.h2h";
    pub const CUDA_SHARE_COPY_BYTES_H2H: &str = "inferspan.cuda.share.copy_bytes.h2h";
    pub const CUDA_SHARE_COPIES_H2D: &str = "inferspan.cuda.share.copies.h2d";
    pub const CUDA_SHARE_COPY_BYTES_H2D: &str = "inferspan.cuda.share.copy_bytes.h2d";
    pub const CUDA_SHARE_COPIES_D2H: &str = "inferspan.cuda.share.copies.d2h";
    pub const CUDA_SHARE_COPY_BYTES_D2H: &str = "inferspan.cuda.share.copy_bytes.d2h";
    pub const CUDA_SHARE_COPIES_D2D: &str = "inferspan.cuda.share.copies.d2d";
    pub const CUDA_SHARE_COPY_BYTES_D2D: &str = "inferspan.cuda.share.copy_bytes.d2d";
    pub const CUDA_SHARE_COPIES_UNKNOWN: &str = "inferspan.cuda.share.copies.unknown";
    pub const CUDA_SHARE_COPY_BYTES_UNKNOWN: &str = "inferspan.cuda.share.copy_bytes.unknown";
    pub const CUDA_SHARE_COPIES_P2P: &str = "inferspan.cuda.share.copies.p2p";
    pub const CUDA_SHARE_COPY_BYTES_P2P: &str = "inferspan.cuda.share.copy_bytes.p2p";
    /// The same of a request's share.
    pub const CUDA_SHARE_COPIES: [(&str, &str); 6] = [
        (CUDA_SHARE_COPIES_H2H, CUDA_SHARE_COPY_BYTES_H2H),
        (CUDA_SHARE_COPIES_H2D, CUDA_SHARE_COPY_BYTES_H2D),
        (CUDA_SHARE_COPIES_D2H, CUDA_SHARE_COPY_BYTES_D2H),
        (CUDA_SHARE_COPIES_D2D, CUDA_SHARE_COPY_BYTES_D2D),
        (CUDA_SHARE_COPIES_UNKNOWN, CUDA_SHARE_COPY_BYTES_UNKNOWN),
        (CUDA_SHARE_COPIES_P2P, CUDA_SHARE_COPY_BYTES_P2P),
    ];

    pub const ALL: [&str; 123] = [
        HTTP_METHOD,
        HTTP_STATUS,
        HTTP_ROUTE,
        URL_PATH,
        URL_SCHEME,
        ERROR_TYPE,
        OPERATION,
        PROVIDER,
        REQUEST_MODEL,
        REQUEST_STREAM,
        REQUEST_MAX_TOKENS,
        REQUEST_TEMPERATURE,
        REQUEST_TOP_P,
        REQUEST_SEED,
        REQUEST_CHOICES,
        RESPONSE_ID,
        RESPONSE_MODEL,
        FINISH_REASONS,
        INPUT_TOKENS,
        OUTPUT_TOKENS,
        CACHED_TOKENS,
        LATENCY_QUEUE,
        LATENCY_TTFT,
        LATENCY_E2E,
        LATENCY_PREFILL,
        LATENCY_DECODE,
        LATENCY_INFERENCE,
        OUTCOME,
        INCOMPLETE,
        PROVENANCE,
        SPANS_DROPPED,
        ENGINE_REQUEST_ID,
        ENGINE_INDEX,
        FINISH_REASON,
        PREEMPTIONS,
        TOKENS,
        PROMPT_TOKENS,
        CACHED,
        DETOKENIZE_TOTAL,
        STEP,
        INDEX,
        FIRST_STEP,
        LAST_STEP,
        STEP_COUNT,
        STEP_MIN,
        STEP_P50,
        STEP_MAX,
        REASON,
        QUEUE_WAITING,
        QUEUE_RUNNING,
        QUEUE_MAX_RUNNING,
        QUEUE_KV_USAGE,
        FIRST_LAG,
        MAX_LAG,
        LAST_LAG,
        STRUCTURED_OUTPUT,
        HTTP_WAITED,
        BLOCKED,
        BLOCKED_AFTER,
        BLOCKED_WRITES,
        BATCH_REQUESTS,
        BATCH_TOKENS,
        BATCH_FIRST_TOKENS,
        BATCH_PREFILL_TOKENS,
        BATCH_DECODE_TOKENS,
        RUNNING,
        WAITING,
        KV_USAGE,
        CUDA_LAUNCHES,
        CUDA_GRAPH_LAUNCHES,
        CUDA_MODE,
        CUDA_FELL_BACK,
        CUDA_GAP,
        CUDA_WAITS,
        CUDA_WAIT,
        CUDA_SETS,
        CUDA_SET_BYTES,
        CUDA_PROCESSES,
        CUDA_SKEW,
        CUDA_COLLECTIVES,
        CUDA_COLLECTIVE_SKEW,
        CUDA_STRAGGLER,
        CUDA_ESTIMATED,
        CUDA_TOP,
        CUDA_GRAPHS,
        CUDA_BEGINS_WITH_CALL,
        CUDA_SHARE_STEPS,
        CUDA_SHARE_LAUNCHES,
        CUDA_SHARE_GRAPH_LAUNCHES,
        CUDA_SHARE_WAIT,
        CUDA_SHARE_PROVENANCE,
        CUDA_KERNEL,
        CUDA_KERNEL_NAME,
        CUDA_CLASS,
        CUDA_NAMED_BY,
        CUDA_GRID,
        CUDA_BLOCK,
        CUDA_SHARED,
        CUDA_STREAM,
        CUDA_COPIES_H2H,
        CUDA_COPY_BYTES_H2H,
        CUDA_COPIES_H2D,
        CUDA_COPY_BYTES_H2D,
        CUDA_COPIES_D2H,
        CUDA_COPY_BYTES_D2H,
        CUDA_COPIES_D2D,
        CUDA_COPY_BYTES_D2D,
        CUDA_COPIES_UNKNOWN,
        CUDA_COPY_BYTES_UNKNOWN,
        CUDA_COPIES_P2P,
        CUDA_COPY_BYTES_P2P,
        CUDA_SHARE_COPIES_H2H,
        CUDA_SHARE_COPY_BYTES_H2H,
        CUDA_SHARE_COPIES_H2D,
        CUDA_SHARE_COPY_BYTES_H2D,
        CUDA_SHARE_COPIES_D2H,
        CUDA_SHARE_COPY_BYTES_D2H,
        CUDA_SHARE_COPIES_D2D,
        CUDA_SHARE_COPY_BYTES_D2D,
        CUDA_SHARE_COPIES_UNKNOWN,
        CUDA_SHARE_COPY_BYTES_UNKNOWN,
        CUDA_SHARE_COPIES_P2P,
        CUDA_SHARE_COPY_BYTES_P2P,
    ];
}
