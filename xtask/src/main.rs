//! The project's chores, one file a verb: `cargo xtask <verb>`.
//!
//! Enters: the working tree, the cache folder (`$INFERSPAN_CACHE`). Leaves: built or tested things, progress on stderr.
//! Nothing here is part of the product, and nothing here depends on it: `cargo xtask` compiles in seconds.

mod bench;
mod build;
mod cache;
mod demo;
mod ebpf;
mod fuzz;
mod gpu_check;
mod kernels;
mod lint;
mod sbom;
mod screenshots;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use inferspan_harness::wait::Interrupted;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Inferspan's chores", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing into the cache folder ($INFERSPAN_CACHE, else ~/.cache/inferspan)
    Setup(setup::Arguments),
    /// Build the BPF object and put it beside its source (tracer-ebpf/object/inferspan.bpf.o)
    Ebpf(ebpf::Arguments),
    /// Formatting, clippy with warnings as errors, licences and origins of the dependencies
    Lint,
    /// List what is built into the binary (CycloneDX)
    Sbom,
    /// Run every test, with the real servers that they need
    Test(test::Arguments),
    /// Trace a server under mixed traffic, and show what was found
    Demo(demo::Arguments),
    /// Measure
    Bench(bench::Arguments),
    /// Trace the demo server on other kernels, in a machine of qemu's, and compare with its counts
    Kernels(kernels::Arguments),
    /// The parsers and the pure pipeline under libFuzzer
    Fuzz(fuzz::Arguments),
    /// Make the pictures of the live view in docs/images anew, from a real run
    Screenshots(screenshots::Arguments),
    /// Make a folder that checks Inferspan on a host with a GPU
    GpuCheck(gpu_check::Arguments),
}

fn main() -> ExitCode {
    let result = run(Arguments::parse().verb);
    if let Err(error) = &result {
        // Not the error's own report: with RUST_BACKTRACE set that is a page of frames of no use to a user.
        eprintln!("xtask: error: {error:#}");
        // 128 + SIGINT, as a shell reports an interrupted program.
        return if error.root_cause().is::<Interrupted>() { ExitCode::from(130) } else { ExitCode::FAILURE };
    }
    ExitCode::SUCCESS
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Setup(arguments) => setup::main(&arguments),
        Verb::Lint => lint::main(),
        Verb::Sbom => sbom::main(),
        Verb::Test(arguments) => test::main(&arguments),
        Verb::Demo(arguments) => demo::main(&arguments),
        Verb::Screenshots(arguments) => screenshots::main(&arguments),
        Verb::Bench(arguments) => bench::main(&arguments),
        Verb::Fuzz(arguments) => fuzz::main(&arguments),
        Verb::GpuCheck(arguments) => gpu_check::main(&arguments),
        Verb::Kernels(arguments) => kernels::main(&arguments),
        Verb::Ebpf(arguments) => ebpf::main(&arguments),
    }
}
