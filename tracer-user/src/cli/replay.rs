//! `inferspan replay`: the same pipeline as `attach`, on a file, unprivileged.
//!
//! Everything is written when the file is read; with `--metrics` the endpoint then stays until a signal.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::output::OutputArgs;
use crate::core::{Config, Core};
use crate::exit::{Code, Failure};
use crate::export::{Pressure, Sinks};
use crate::input::{Event, EventNanos, Input, LossStage, What};
use crate::order::Order;
use crate::source::preroll::{self, Preroll};
use crate::source::syscall_log::{LogError, SyscallLog};
use crate::telemetry::Telemetry;

/// Lines of a log are in the order of their entries or exits; a blocked call is this much longer at most.
const LAG: EventNanos = 500_000_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A syscall log: JSON lines, plain or gzip
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let mut log = SyscallLog::open(&args.file).map_err(|error| failure(&error))?;
    let mut head = Vec::new();
    let mut preroll = Preroll::default();
    let mut closes_visible = false;
    let mut broken = None;
    let mut bytes_ahead = 0;
    while head.len() < preroll::EVENTS && bytes_ahead < preroll::BYTES {
        match log.next_event() {
            Ok(Some(event)) => {
                preroll.look(&event);
                if let What::Data { bytes, .. } = &event.what {
                    bytes_ahead += bytes.len();
                }
                closes_visible |= matches!(event.what, What::Closed { .. });
                head.push(event);
            }
            Ok(None) => break,
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    if head.is_empty() {
        let what = broken.map_or_else(|| format!("{}: no data syscall in it", args.file.display()), |e| e.to_string());
        return Err(Failure::new(
            Code::Usage,
            what,
            "give a syscall log: one {\"t0\",\"t1\",\"tid\",\"sc\",\"fd\",\"sock\",\"n\",\"hex\"} object a line, plain or gzip",
        )
        .into());
    }
    let service = std::env::var("OTEL_SERVICE_NAME").ok().filter(|s| !s.is_empty());
    let (facts, uncertainty) = preroll.facts(service.as_deref().unwrap_or("vllm"));
    let telemetry = Arc::new(Telemetry::default());
    let mut sinks = Sinks::open(&args.output, Arc::clone(&telemetry), Pressure::Wait)?;
    let config = Config { max_spans: args.output.max_spans, closes_visible };
    let mut run = Run { core: Core::new(config), order: Order::new(LAG), due: Vec::new(), out: Vec::new(), events: 0 };
    for fact in facts {
        run.core.push(Input::Fact(fact), &mut run.out);
    }
    for event in head {
        run.push(event, &mut sinks);
    }
    while broken.is_none() {
        match log.next_event() {
            Ok(Some(event)) => run.push(event, &mut sinks),
            Ok(None) => break,
            Err(error) => broken = Some(error),
        }
    }
    run.finish(&mut sinks);
    telemetry.syscall_events.fetch_add(run.events, Relaxed);
    telemetry.add_lost(LossStage::Decode, log.bad_lines());
    telemetry.spans_dropped_limit.fetch_add(run.core.spans_dropped(), Relaxed);
    let server = sinks.keep_metrics_server();
    let summary = sinks.finish();
    eprintln!("inferspan: replayed {} calls of {} lines", run.events, log.lines());
    if let Some(ns) = uncertainty {
        eprintln!("inferspan: engine clock placed to ±{:.1} ms (a syscall log has no clock anchor)", ns as f64 / 1e6);
    }
    if let Some(line) = summary.left_out_line() {
        eprintln!("inferspan: {line}");
    }
    let mut code = Code::Ok;
    if log.bad_lines() > 0 {
        eprintln!("inferspan: {} lines did not parse and were skipped", log.bad_lines());
        code = Code::Finding;
    }
    if let Some(error) = broken {
        eprintln!("inferspan: {error}; what came before is reported");
        code = Code::Finding;
    }
    for failure in &summary.failures {
        eprintln!("inferspan: {failure}");
        code = Code::Finding;
    }
    if let Some(server) = server {
        eprintln!("inferspan: metrics stay at http://{}/metrics; Ctrl-C ends", server.address());
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?.forever().next();
    }
    Ok(code)
}

struct Run {
    core: Core,
    order: Order,
    due: Vec<Input>,
    out: Vec<crate::output::Output>,
    events: u64,
}

impl Run {
    fn push(&mut self, event: Event, sinks: &mut Sinks) {
        self.events += 1;
        self.order.push(Input::Event(event), &mut self.due);
        self.drain(sinks);
    }

    fn drain(&mut self, sinks: &mut Sinks) {
        for input in self.due.drain(..) {
            self.core.push(input, &mut self.out);
        }
        if !self.out.is_empty() {
            sinks.push(&mut self.out);
        }
    }

    fn finish(&mut self, sinks: &mut Sinks) {
        self.order.finish(&mut self.due);
        self.drain(sinks);
        while self.core.finish_part(&mut self.out) {
            sinks.push(&mut self.out);
        }
        sinks.push(&mut self.out);
    }
}

fn failure(error: &LogError) -> Failure {
    let (code, fix) = match error {
        LogError::Open { error, .. } if error.kind() == io::ErrorKind::NotFound => (Code::NoTarget, "check the path"),
        LogError::Open { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
            (Code::Permission, "make the file readable")
        }
        _ => (Code::Usage, "give a syscall log: JSON lines, plain or gzip"),
    };
    Failure::new(code, error.to_string(), fix)
}
