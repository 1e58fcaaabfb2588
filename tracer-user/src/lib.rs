//! The inside of the `inferspan` binary, one module a room; docs/architecture.md draws the doors between them.

pub mod attach;
pub mod cli;
pub mod clock;
pub mod core;
pub mod decode;
pub mod discover;
pub mod doctor;
pub mod elf;
pub mod engine;
pub mod exit;
pub mod export;
pub mod gpu;
pub mod input;
pub mod kernel;
pub mod model;
pub mod names;
pub mod order;
pub mod out_file;
pub mod output;
pub mod proc;
pub mod recording;
pub mod run;
pub mod sample;
pub mod sanitise;
pub mod source;
pub mod telemetry;
