//! `inferspan record`: trace a running server into a file: a recording, which `inferspan replay` makes the same outputs of, or one that
//! other programs open.

use std::path::{Path, PathBuf};

use super::trace::{Plan, TraceArgs, trace};
use crate::exit::{Code, Failure};
use crate::export::flags::OutputArgs;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For `inferspan replay`
    #[default]
    Recording,
    /// A timeline for <https://ui.perfetto.dev>, as with --perfetto
    Perfetto,
    /// A timeline as Chrome trace JSON, as with --chrome
    Chrome,
    /// Traces as OTLP/JSON lines, as with --traces-out
    OtlpJson,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let Args { trace: flags, file, format, raw } = args;
    if *format == Format::Recording {
        return trace(flags, Some(&Plan { file, raw: *raw }));
    }
    if *raw {
        let what = "--raw is for recordings, and another --format was asked for";
        return Err(Failure::new(Code::Usage, what, "leave out --raw or --format").into());
    }
    let mut flags = flags.clone();
    place(&mut flags.output, *format, file)?;
    trace(&flags, None)
}

/// Asks for the output that writes `format`.
fn place(output: &mut OutputArgs, format: Format, file: &Path) -> Result<(), Failure> {
    let (place, flag) = match format {
        Format::Recording => return Ok(()),
        Format::Perfetto => (&mut output.perfetto, "--perfetto"),
        Format::Chrome => (&mut output.chrome, "--chrome"),
        Format::OtlpJson => (&mut output.traces_out, "--traces-out"),
    };
    if place.is_some() {
        let what = format!("{flag} and --format ask for the same output, in two files");
        return Err(Failure::new(Code::Usage, what, format!("leave out {flag}")));
    }
    *place = Some(file.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_the_output_of_that_name_and_asked_for_once() {
        let file = PathBuf::from("x");
        let mut output = OutputArgs::default();
        place(&mut output, Format::Perfetto, &file).unwrap();
        place(&mut output, Format::OtlpJson, &file).unwrap();
        assert_eq!(
            (&output.perfetto, &output.chrome, &output.traces_out),
            (&Some(file.clone()), &None, &Some(file.clone()))
        );
        assert!(place(&mut output, Format::Perfetto, &file).is_err());
    }
}
