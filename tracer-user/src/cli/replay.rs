//! `inferspan replay`: the same pipeline as `attach`, on a file, unprivileged.
//!
//! Everything is written when the file is read; with `--metrics` the endpoint then stays until a signal.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::engine::ENGINES;
use crate::exit::{Code, Failure};
use crate::export::flags::OutputArgs;
use crate::export::{Pressure, Sinks};
use crate::run::replay::{Opened, ReplayError, Replayed};
use crate::source::syscall_log::LogError;
use crate::telemetry::Telemetry;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A syscall log: JSON lines, plain or gzip
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let opened = Opened::open(&args.file).map_err(|error| failure(&error))?;
    let service = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let telemetry = Arc::new(Telemetry::default());
    let sinks = Sinks::open(&args.output, Arc::clone(&telemetry), Pressure::Wait)?;
    let replayed = opened.run(service.as_deref().unwrap_or(ENGINES[0].name()), args.output.max_spans, sinks, telemetry);
    let code = say(&replayed);
    if let Some(server) = replayed.finished.metrics_server {
        eprintln!("inferspan: metrics stay at http://{}/metrics; Ctrl-C ends", server.address());
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?.forever().next();
    }
    Ok(code)
}

/// Says what was made of the log.
fn say(replayed: &Replayed) -> Code {
    let Replayed { events, lines, bad_lines, uncertainty, broken, finished } = replayed;
    eprintln!("inferspan: replayed {events} calls of {lines} lines");
    if let Some(ns) = uncertainty {
        eprintln!("inferspan: engine clock placed to ±{:.1} ms (a syscall log has no clock anchor)", *ns as f64 / 1e6);
    }
    if let Some(line) = finished.summary.left_out_line() {
        eprintln!("inferspan: {line}");
    }
    let mut code = Code::Ok;
    if *bad_lines > 0 {
        eprintln!("inferspan: {bad_lines} lines did not parse and were skipped");
        code = Code::Finding;
    }
    if let Some(error) = broken {
        eprintln!("inferspan: {error}; what came before is reported");
        code = Code::Finding;
    }
    for failure in &finished.summary.failures {
        eprintln!("inferspan: {failure}");
        code = Code::Finding;
    }
    code
}

fn failure(error: &ReplayError) -> Failure {
    let (code, fix) = match error {
        ReplayError::Log(LogError::Open { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            (Code::NoTarget, "check the path")
        }
        ReplayError::Log(LogError::Open { error, .. }) if error.kind() == io::ErrorKind::PermissionDenied => {
            (Code::Permission, "make the file readable")
        }
        _ => (
            Code::Usage,
            "give a syscall log: one {\"t0\",\"t1\",\"tid\",\"sc\",\"fd\",\"sock\",\"n\",\"hex\"} object a line, plain or gzip",
        ),
    };
    Failure::new(code, error.to_string(), fix)
}
