//! Attaching: the programs into the kernel, the processes into their filter, probes onto libraries.
//!
//! Enters: processes to trace, and what they map. Leaves: attached programs, the kernel side's rings and maps. Invariant: dropping
//! [`loader::Probes`] detaches everything; a target is never written to. `family`, `code`, `plan` and `prologue` are pure; `exports` reads what it is given;
//! `btf`, `files`, `handles`, `libraries`, `loader`, `survey` and `table` touch the world.

pub mod btf;
pub mod code;
pub mod counters;
mod error;
pub mod exports;
mod failure;
pub mod family;
pub mod files;
pub mod handles;
pub mod libraries;
pub mod links;
pub mod loader;
mod memory;
pub mod plan;
pub mod prologue;
pub mod rings;
pub mod survey;
pub mod table;
mod uprobes;

use serde::{Deserialize, Serialize};

pub use error::LoadError;

/// A process to trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub tgid: u32,
    /// Look at its sockets. Off for workers: they carry no request, and their gloo threads wake every 10 ms.
    pub capture: bool,
    /// Tell when it maps libraries.
    pub libraries: bool,
}

/// How much is observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Sockets and libraries of the front end
    Requests,
    /// … and what each engine step did with CUDA, summed in the kernel
    Steps,
    /// … and every launch, named
    Kernels,
}

impl Level {
    /// As the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Steps => "steps",
            Self::Kernels => "kernels",
        }
    }
}
