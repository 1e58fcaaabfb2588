//! Histogram boundaries, seconds, and where they come from. "The engine's" are those of the engine of docs/support-matrix.md: metrics of
//! its own and ours can be laid over each other.

/// `gen_ai.server.request.duration`: the semantic convention's, then the tail of the engine's `e2e_request_latency_seconds`.
pub const REQUEST_DURATION: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, // convention
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// `gen_ai.server.time_to_first_token`: the semantic convention's, then the tail of the engine's
/// `time_to_first_token_seconds`.
pub const TIME_TO_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, // convention
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];

/// `gen_ai.server.time_per_output_token`: the semantic convention's, then the tail of the engine's
/// `request_time_per_output_token_seconds`.
pub const TIME_PER_OUTPUT_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, // convention
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

/// Phases of a request: below 300 ms our own, from there the engine's
/// `request_{queue,prefill,decode,inference}_time_seconds`.
pub const PHASE: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, // ours
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// Between tokens: below 10 ms our own, from there the engine's `inter_token_latency_seconds`.
pub const INTER_TOKEN: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, // ours
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

/// One engine step: a decode step of a small model takes a millisecond, a prefill of a long prompt seconds.
pub const ENGINE_STEP: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
