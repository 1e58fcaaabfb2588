//! The servers around Inferspan, started and stopped for the tests and for `cargo xtask`: processes, Jaeger, Perfetto, Prometheus, vLLM,
//! a browser and the demo engine, and small reads from them.
//!
//! Enters: programs by path, folders for what they print. Leaves: running servers and their addresses, which end with their
//! owner. What does not come up is an error with the end of what it printed. Nothing here depends on the product, so that
//! `cargo xtask` builds on a bare machine within seconds.

pub mod attached;
pub mod browser;
pub mod folder;
pub mod http;
pub mod installed;
pub mod jaeger;
pub mod perfetto;
pub mod proc;
pub mod process;
pub mod prometheus;
pub mod server;
pub mod wait;
