//! A small LLM server that needs neither GPU nor Python and speaks what vLLM 0.32 speaks on the wire.
//!
//! One process tree: the API server (HTTP/1.1, tokenises, detokenises) or several of them, an `EngineCore` that schedules,
//! and a `Worker`; joined by Unix sockets with ZMTP 3.1 and msgpack, with the system calls, thread names and message
//! shapes of the real one. The model itself is a hash: tokens are made up, time is slept. Its `/metrics` follows vLLM's
//! formulas, so it is an oracle of its own.
//!
//! Enters: HTTP requests, arguments, and the role of a child in the environment. Leaves: responses, `/metrics`, and an
//! announcement of where it serves. A request that vLLM refuses is refused as vLLM does it; a message between the processes
//! that does not decode is said on stderr and dropped.
//!
//! Tests trust the real server; this one exists for the demo, and for load and cases that the real one is too slow for.

pub mod api;
pub mod blocks;
pub mod cuda;
pub mod engine;
pub mod generation;
pub mod http;
pub mod metrics;
pub mod openai;
pub mod scheduler;
pub mod server;
mod sys;
pub mod tokenizer;
pub mod trouble;
pub mod wire;
pub mod worker;
pub mod zmtp;
