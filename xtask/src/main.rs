//! The project's chores, one file a verb: `cargo xtask <verb>`.
//!
//! Enters: the working tree, the cache folder (`$INFERSPAN_CACHE`). Leaves: built or tested things, progress on stderr.
//! Nothing here is part of the product, and nothing here depends on it: `cargo xtask` compiles in seconds.

mod cache;
mod ebpf;
mod setup;
mod shell;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Inferspan's chores", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the BPF object and put it beside its source (tracer-ebpf/object/inferspan.bpf.o)
    Ebpf(ebpf::Arguments),
}

fn main() -> ExitCode {
    let result = run(Arguments::parse().verb);
    if let Err(error) = &result {
        // Not the error's own report: with RUST_BACKTRACE set that is a page of frames of no use to a user.
        eprintln!("xtask: error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Ebpf(arguments) => ebpf::main(&arguments),
    }
}
