//! `inferspan attach`: trace a running server until Ctrl-C.

use super::trace::{TraceArgs, trace};
use crate::exit::Code;
use crate::ui::flags::UiArgs;

/// Trace a running server until Ctrl-C.
///
/// Ctrl-C and SIGTERM detach, flush what was seen and exit 0 (130 when attaching was not finished yet); a second Ctrl-C exits
/// at once. SIGHUP opens the files of the access log, traces and kernels anew, so that they can be rotated; without any it ends the run.
/// Exits 3 when the server is not found or is gone before it is traced; a server that ends later ends the trace.
/// Prompts and outputs are neither kept nor exported.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub trace: TraceArgs,
    #[command(flatten)]
    pub ui: UiArgs,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    trace(&args.trace, args.ui.address_or_any(&args.trace.output), None)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::attach::Level;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<TraceArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once("attach").chain(words.iter().copied())).map(|cli| cli.args.trace)
    }

    #[test]
    fn exactly_one_way_to_name_the_target_is_asked_for() {
        assert_eq!(parse(&["-p", "42"]).unwrap().target.pid, Some(42));
        assert_eq!(parse(&["--name", "vllm"]).unwrap().target.name.as_deref(), Some("vllm"));
        assert!(parse(&["--all"]).unwrap().target.all);
        assert!(parse(&[]).is_err());
        assert!(parse(&["-p", "42", "--all"]).is_err());
        assert!(parse(&["-p", "-1"]).is_err());
    }

    #[test]
    fn any_process_may_be_named_for_cuda_alone_and_none_else() {
        assert!(parse(&["-p", "42", "--cuda-only"]).unwrap().cuda_only);
        assert!(parse(&["--all", "--cuda-only"]).is_err());
    }

    #[test]
    fn only_levels_that_exist_are_offered() {
        assert_eq!(parse(&["--all"]).unwrap().level, Level::Steps);
        assert_eq!(parse(&["--all", "--level", "kernels"]).unwrap().level, Level::Kernels);
        assert_eq!(parse(&["--all", "--level", "memory"]).unwrap_err().exit_code(), 2);
    }
}
