//! The flags that say where outputs go; the verbs that have outputs share them.

use std::path::{Path, PathBuf};

use crate::exit::{Code, Failure};
use crate::sample::policy::{EngineSteps, Policy};

/// Most spans of a trace, unless told otherwise.
pub const MAX_SPANS: usize = 2000;

/// Where traces, metrics and the access log go, and which traces. Without any, one line per request goes to the terminal.
#[derive(Debug, Clone, clap::Args)]
pub struct OutputArgs {
    /// Send traces to this OTLP endpoint (gRPC by default; `OTEL_EXPORTER_OTLP_*` variables apply)
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Write traces to FILE as OTLP/JSON, one export request per line
    #[arg(long, value_name = "FILE")]
    pub traces_out: Option<PathBuf>,
    /// Write a timeline to FILE for <https://ui.perfetto.dev>: requests, engine steps, CUDA calls (protobuf, best named .pftrace)
    ///
    /// It is complete: --sample and --engine-steps have no part in it.
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// Write the same timeline to FILE as Chrome trace JSON, for tools that read no protobuf; about 2.6 times as large
    #[arg(long, value_name = "FILE")]
    pub chrome: Option<PathBuf>,
    /// Which requests are exported as traces: all, none, or a share such as 0.1 or 10%
    ///
    /// With a share, requests that failed, were aborted or rejected are exported as well, and with `0.1,slow>2s` those that
    /// took longer than that, with `0.1,slowest=1%` the slowest of the last five minutes. A `traceparent` decides alone when a
    /// request brings one, unless `,ignore-parent` stands at the end. Metrics, access log and terminal are always complete.
    /// Default: `OTEL_TRACES_SAMPLER`, else all.
    ///
    /// A number of 2 or more is another thing: with `--level kernels`, one launch of so many is told by itself (counts stay exact).
    #[arg(long, value_name = "POLICY|N", value_parser = parse_sample, action = clap::ArgAction::Append)]
    pub sample: Vec<Sample>,
    /// Which engine steps are exported as traces of their own
    #[arg(long, value_enum, value_name = "WHICH", default_value_t)]
    pub engine_steps: EngineSteps,
    /// Most spans per trace
    #[arg(long, value_name = "N", default_value_t = MAX_SPANS)]
    pub max_spans: usize,
    /// Serve Prometheus metrics on ADDR (host:port or port; loopback unless a host is given; deploy/prometheus scrapes 9464)
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<String>,
    /// Write the metrics to FILE as OpenMetrics text when the run ends
    #[arg(long, value_name = "FILE")]
    pub metrics_out: Option<PathBuf>,
    /// Write one JSON line per finished request to FILE (`-` is stdout)
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Write one JSON line per process and CUDA kernel to FILE when it is over (`-` is stdout)
    #[arg(long, value_name = "FILE")]
    pub kernels_out: Option<PathBuf>,
}

impl Default for OutputArgs {
    fn default() -> Self {
        Self {
            otlp: None,
            traces_out: None,
            perfetto: None,
            chrome: None,
            sample: Vec::new(),
            engine_steps: EngineSteps::default(),
            max_spans: MAX_SPANS,
            metrics: None,
            metrics_out: None,
            access_log: None,
            kernels_out: None,
        }
    }
}

/// What a run on a server is written as.
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

/// What `--sample` may say.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    Requests(Policy),
    /// One of so many.
    Launches(u32),
}

fn parse_sample(text: &str) -> Result<Sample, String> {
    match text.parse::<u32>() {
        Ok(every) if every > 1 => Ok(Sample::Launches(every)),
        _ => text.parse().map(Sample::Requests),
    }
}

impl OutputArgs {
    /// Which requests are exported as traces, where that is said; the last word counts.
    pub fn policy(&self) -> Option<Policy> {
        self.sample.iter().rev().find_map(|sample| match sample {
            Sample::Requests(policy) => Some(*policy),
            Sample::Launches(_) => None,
        })
    }

    /// Files of lines, which may be renamed.
    pub fn logs(&self) -> impl Iterator<Item = &Path> {
        let is_file = |path: &&PathBuf| path.as_os_str() != "-";
        let lines = self.access_log.iter().chain(&self.kernels_out).filter(is_file);
        self.traces_out.iter().chain(lines).map(PathBuf::as_path)
    }

    /// Files that are opened again while the run goes on, or at its end.
    pub fn opened_later(&self) -> impl Iterator<Item = &Path> {
        self.logs().chain(self.metrics_out.as_deref())
    }

    /// Something is asked for that leaves elsewhere than to the terminal.
    pub fn has_any(&self) -> bool {
        let timelines = self.perfetto.is_some() || self.chrome.is_some();
        let lines = self.access_log.is_some() || self.kernels_out.is_some();
        self.otlp.is_some() || self.traces_out.is_some() || timelines || lines || self.has_metrics()
    }

    /// Somebody will read metrics.
    pub fn has_metrics(&self) -> bool {
        self.metrics.is_some() || self.metrics_out.is_some()
    }

    /// Asks for the output that writes `format`.
    pub fn write_as(&mut self, format: Format, file: &Path) -> Result<(), Failure> {
        let (place, flag) = match format {
            Format::Recording => return Ok(()),
            Format::Perfetto => (&mut self.perfetto, "--perfetto"),
            Format::Chrome => (&mut self.chrome, "--chrome"),
            Format::OtlpJson => (&mut self.traces_out, "--traces-out"),
        };
        if place.is_some() {
            let what = format!("{flag} and --format ask for the same output, in two files");
            return Err(Failure::new(Code::Usage, what, format!("leave out {flag}")));
        }
        *place = Some(file.to_owned());
        Ok(())
    }

    /// One launch of so many is told by itself.
    pub fn launch_sample(&self) -> u32 {
        let said = self.sample.iter().rev().find_map(|sample| match sample {
            Sample::Launches(every) => Some(*every),
            Sample::Requests(_) => None,
        });
        said.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: OutputArgs,
    }

    #[test]
    fn sampling_is_asked_for_by_flags_with_defaults() {
        let parse = |words: &[&str]| Cli::try_parse_from(std::iter::once("x").chain(words.iter().copied()));
        let args = parse(&[]).unwrap().args;
        assert_eq!((args.policy(), args.engine_steps, args.max_spans), (None, EngineSteps::Linked, MAX_SPANS));
        let args = parse(&["--sample", "0.1,slow>2s", "--engine-steps", "all", "--max-spans", "50"]).unwrap().args;
        assert_eq!(args.policy().unwrap().slow, Some(2.0));
        assert_eq!((args.engine_steps, args.max_spans), (EngineSteps::All, 50));
        let error = parse(&["--sample", "most"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("`most` is neither all, none nor a share"), "{error}");
        assert!(parse(&["--engine-steps", "some"]).is_err());
    }

    #[test]
    fn a_format_is_the_output_of_that_name_and_asked_for_once() {
        let file = PathBuf::from("x");
        let mut output = OutputArgs::default();
        output.write_as(Format::Perfetto, &file).unwrap();
        output.write_as(Format::OtlpJson, &file).unwrap();
        assert_eq!(
            (&output.perfetto, &output.chrome, &output.traces_out),
            (&Some(file.clone()), &None, &Some(file.clone()))
        );
        assert!(output.write_as(Format::Perfetto, &file).is_err());
    }
}
