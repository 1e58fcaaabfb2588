//! `cargo xtask bench`: what the product costs, and how that grows.
//!
//! Enters: the release build, made-up and recorded loads, the real vLLM. Leaves: numbers on stdout; a failure where one is
//! beyond what the product promises.

mod launch;
mod measured;
mod memory;
mod names;
mod overhead;
mod recorded;
mod records;
mod scale;
mod statistics;
mod viewer;
mod vllm;

use anyhow::Result;

use crate::build;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Socket events and launch records a second on one core; then its CPU time a token with up to 4,096 open requests
    Replay(Replay),
    /// The most memory that `inferspan replay` takes: many open streams, a million requests, generations of 65,000 tokens
    Memory(memory::Arguments),
    /// Time and memory that `inferspan names` takes on one core for a library
    Names(names::Arguments),
    /// What a probe costs a launch of the fake CUDA libraries: untraced, an empty probe, bpftrace, level steps, level kernels
    Launch(launch::Arguments),
    /// What `inferspan attach` costs a real vLLM: CPU time, tokens a second, time between tokens
    Vllm(vllm::Arguments),
}

#[derive(clap::Args)]
struct Replay {
    /// Only the recorded load
    #[arg(long, conflicts_with = "scale")]
    recorded: bool,
    /// Only the made-up loads, with up to 4,096 open requests
    #[arg(long)]
    scale: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        What::Replay(Replay { recorded, scale }) => {
            let inferspan = build::inferspan()?;
            if !scale {
                recorded::run(&inferspan)?;
                records::run()?;
            }
            if !recorded {
                scale::run(&inferspan)?;
            }
            Ok(())
        }
        What::Memory(arguments) => memory::run(arguments),
        What::Names(arguments) => names::run(arguments),
        What::Launch(arguments) => launch::run(arguments),
        What::Vllm(arguments) => vllm::run(arguments),
    }
}
