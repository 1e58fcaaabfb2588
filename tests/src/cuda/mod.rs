//! CUDA without a GPU: fake libraries with the real ones' exports, and programs that use them and count what they do.
//!
//! Enters: the C sources in `fixtures/cuda` (its README lists scripts and folders), and gcc. Leaves: libraries and programs in the
//! cache, running programs, and their own account of what they did. Nothing of NVIDIA's is in it.

mod build;
mod program;
pub mod steps;
pub mod timeline;
pub mod traced;
mod truth;
pub mod vllm;

pub use build::{Driver, Fixture, Runtime};
pub use program::{Patch, Program, Pulse, Running};
pub use truth::{Amount, Bench, Graph, Launches, Step, Tally, ThreadTruth, Truth};
