//! What the messages mean: exchanges (HTTP requests), generations (engine requests), steps, and the span trees they give.
//!
//! Enters: decoded messages with event times. Leaves: plain data ([`crate::output`]). Pure: no clock, no I/O, no locks, no
//! hash-map iteration order in what leaves.

pub mod beams;
pub mod blocked;
pub mod cuda;
pub mod exchange;
pub mod fold;
pub mod generation;
pub mod keys;
pub mod lags;
pub mod load;
pub mod record;
mod root;
pub mod step;
pub mod timeline;
mod times;
pub mod trace_ids;
pub mod tree;
