//! `inferspan record`: trace a running server into a file: a recording, which `inferspan replay` makes the same outputs of, or one that
//! other programs open.

use std::path::PathBuf;

use super::trace::{TraceArgs, trace};
use crate::exit::{Code, Failure};
use crate::export::flags::Format;
use crate::run::begun::ToRecord;

/// Record a running server into a file, for `inferspan replay` or for other programs.
///
/// The recording holds what was decoded: times, ids, counts and parameters. Of a prompt, an output, a query or a header's value but trace
/// context and request id, nothing is in it, unless --raw asks for the bytes themselves. Outputs may be asked for as with `attach`;
/// their replay is the same, byte for byte. With --format the file is what `--perfetto`, `--chrome` or `--traces-out` write, and no
/// recording is made; `inferspan replay` makes each of them of a recording later.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub trace: TraceArgs,
    /// Where to write it
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub file: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Keep all bytes that go over the server's sockets, prompts, outputs and keys among them: for a bug report
    #[arg(long)]
    pub raw: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let Args { trace: flags, file, format, raw } = args;
    if *format == Format::Recording {
        let writer = super::VERSION.clone();
        return trace(flags, None, Some(ToRecord { file: file.clone(), raw: *raw, writer }));
    }
    if *raw {
        let what = "--raw is for recordings, and another --format was asked for";
        return Err(Failure::new(Code::Usage, what, "leave out --raw or --format").into());
    }
    let mut flags = flags.clone();
    flags.output.write_as(*format, file)?;
    trace(&flags, None, None)
}
