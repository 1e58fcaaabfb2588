//! `inferspan record`: trace a running server into a file that `inferspan replay` makes the same outputs of.

use std::path::PathBuf;

use super::trace::{Plan, TraceArgs, trace};
use crate::exit::Code;

/// Record a running server into a file, for `inferspan replay`.
///
/// The recording holds what was decoded: times, ids, counts and parameters. Of a prompt, an output, a query or a header's value but trace
/// context and request id, nothing is in it, unless --raw asks for the bytes themselves. Outputs may be asked for as with `attach`;
/// their replay is the same, byte for byte.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub trace: TraceArgs,
    /// Where to write it
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub file: PathBuf,
    /// Keep all bytes that go over the server's sockets, prompts, outputs and keys among them: for a bug report
    #[arg(long)]
    pub raw: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    trace(&args.trace, Some(&Plan { file: &args.file, raw: args.raw }))
}
