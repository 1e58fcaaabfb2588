//! Takes outputs to their destinations. An exporter never slows the core down: each has a bounded queue; what does not fit is
//! dropped and counted (live), or waited for (replay, where nothing is lost by waiting).

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use self::flags::OutputArgs;
use self::lines::{Fate, Lines};
use self::otlp::Otlp;
use self::otlp::spans::Origin;
use self::prometheus::Exposition;
use self::prometheus::families::Families;
use self::prometheus::server::MetricsServer;
use self::terminal::Style;
use self::terminal::summary::Digest;
use crate::exit::{Code, Failure};
use crate::output::{AccessRecord, EngineStep, Merit, Output, Service, Trace};
use crate::sample::{Counts, Sampling, policy};
use crate::telemetry::Telemetry;

pub mod access_log;
pub mod complaint;
pub mod flags;
pub mod lines;
pub mod otlp;
pub mod otlp_file;
pub mod prometheus;
pub mod queue;
pub mod sanitise;
pub mod terminal;

/// What to do when an exporter's queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Live: drop and count.
    Drop,
    /// Replay: wait.
    Wait,
}

/// What a run exported, for the closing summary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub requests: u64,
    pub spans_exported: u64,
    pub spans_dropped: u64,
    /// What was not exported as a trace because nobody asked for it; nothing when traces go nowhere.
    pub left_out: Counts,
    /// What failed, as a user should read it; empty when all went well.
    pub failures: Vec<String>,
}

impl Summary {
    /// One line about what sampling left out; `None` when that is nothing.
    pub fn left_out_line(&self) -> Option<String> {
        (self.left_out != Counts::default()).then(|| format!("not exported as traces: {}", self.left_out))
    }
}

/// Spans that wait for the trace file at most; about 12 MB of traces as they come, shared with the OTLP queue.
const FILE_QUEUE_SPANS: u64 = 16_384;

/// Every destination that the output flags ask for.
#[derive(Debug)]
pub struct Sinks {
    telemetry: Arc<Telemetry>,
    otlp: Option<Otlp>,
    trace_file: Option<Lines<Trace>>,
    /// `None` when traces go nowhere.
    sampling: Option<Sampling>,
    metrics: Option<Metrics>,
    access_log: Option<Lines<AccessRecord>>,
    terminal: Option<Lines<AccessRecord>>,
    digest: Digest,
}

#[derive(Debug)]
struct Metrics {
    families: Families,
    exposition: Exposition,
    server: Option<MetricsServer>,
    file: Option<PathBuf>,
}

impl Sinks {
    /// Opens files, binds the metrics address, prepares the OTLP exporter.
    pub fn open(args: &OutputArgs, telemetry: Arc<Telemetry>, pressure: Pressure) -> anyhow::Result<Self> {
        let OutputArgs { otlp, traces_out, sample, engine_steps, max_spans: _, metrics, metrics_out, access_log } =
            args;
        let origin = Origin::of_this_process(pressure == Pressure::Drop);

        let env = |name: &str| std::env::var(name).ok();
        let endpoint = otlp::endpoint::resolve(otlp.as_deref(), env)?;
        let has_otlp = endpoint.is_some();
        let sampling = (has_otlp || traces_out.is_some())
            .then(|| anyhow::Ok(Sampling::new(policy::resolve(*sample, env)?, *engine_steps)))
            .transpose()?;
        let otlp = endpoint
            .map(|endpoint| {
                let options = otlp::options::resolve(&endpoint, env)?;
                Otlp::start(endpoint, options, origin.clone(), Arc::clone(&telemetry), pressure)
            })
            .transpose()?;
        let trace_file = traces_out
            .as_deref()
            .map(|path| open_trace_file(path, origin, Arc::clone(&telemetry), pressure))
            .transpose()?;

        let has_metrics = metrics.is_some() || metrics_out.is_some();
        let metrics = has_metrics
            .then(|| {
                let (families, exposition) = prometheus::metrics(Arc::clone(&telemetry));
                if let Some(path) = metrics_out {
                    prometheus::check_writable(path)?;
                }
                let server =
                    metrics.as_deref().map(|address| MetricsServer::start(address, exposition.clone())).transpose()?;
                anyhow::Ok(Metrics { families, exposition, server, file: metrics_out.clone() })
            })
            .transpose()?;

        let is_stdout_taken = access_log.as_deref() == Some(Path::new("-"));
        let has_destination = has_otlp || traces_out.is_some() || has_metrics || access_log.is_some();
        let is_terminal_wanted = !is_stdout_taken && (std::io::stdout().is_terminal() || !has_destination);
        let access_log =
            access_log.as_deref().map(|path| open_access_log(path, Arc::clone(&telemetry), pressure)).transpose()?;
        let terminal = is_terminal_wanted.then(|| open_terminal(pressure)).transpose()?;
        Ok(Self { telemetry, otlp, trace_file, sampling, metrics, access_log, terminal, digest: Digest::default() })
    }

    /// Where metrics are served; tells the port when 0 was asked for.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        Some(self.metrics.as_ref()?.server.as_ref()?.address())
    }

    /// The metrics endpoint, to outlive the run: it serves the values as they are at the end.
    pub fn keep_metrics_server(&mut self) -> Option<MetricsServer> {
        self.metrics.as_mut()?.server.take()
    }

    /// Hands outputs over, in order; drains `outputs`.
    pub fn push(&mut self, outputs: &mut Vec<Output>) {
        for output in outputs.drain(..) {
            match output {
                Output::Trace(trace) => self.request(&Arc::new(trace)),
                Output::Access(record) => self.access(&Arc::new(*record)),
                Output::Metric(metric) => {
                    if let Some(metrics) = &mut self.metrics {
                        metrics.families.apply(&metric);
                    }
                }
                Output::Step(step) => {
                    if let Some(step) = self.sampling.as_mut().and_then(|sampling| sampling.step(step)) {
                        self.step(&step);
                    }
                }
                Output::Lost(lost) => self.telemetry.add_lost(lost.stage, lost.count),
                Output::Delivered(delivered) => self.telemetry.add_delivered(delivered),
                Output::Verdict(_) => {}
            }
        }
        if let Some(sampling) = &self.sampling {
            self.telemetry.set_left_out(&sampling.counts());
        }
    }

    fn request(&mut self, trace: &Arc<Trace>) {
        self.digest.trace(trace);
        let Some(sampling) = &mut self.sampling else { return };
        let mut steps = Vec::new();
        let is_exported = sampling.request(trace, &mut steps);
        for step in steps {
            self.step(&step);
        }
        if is_exported {
            self.export(trace);
        }
    }

    fn step(&self, step: &EngineStep) {
        let (server, service) = (Arc::clone(&step.server), Service::Engine);
        self.export(&Arc::new(Trace { server, service, spans: vec![step.span()], merit: Merit::default() }));
    }

    fn export(&self, trace: &Arc<Trace>) {
        if let Some(otlp) = &self.otlp {
            otlp.push(trace);
        }
        if let Some(file) = &self.trace_file {
            file.push(trace, trace.spans.len() as u64);
        }
    }

    fn access(&mut self, record: &Arc<AccessRecord>) {
        self.digest.record(record);
        if let Some(log) = &self.access_log {
            log.push(record, 1);
        }
        if let Some(terminal) = &self.terminal {
            terminal.push(record, 1);
        }
    }

    /// Flushes all, waits for the exporters (bounded), writes the files that are written at the end.
    pub fn finish(self) -> Summary {
        let Self { telemetry, otlp, trace_file, sampling, metrics, access_log, terminal, digest } = self;
        let left_out = sampling.map(Sampling::finish).unwrap_or_default();
        telemetry.set_left_out(&left_out);
        let mut failures: Vec<String> = Vec::new();
        failures.extend(access_log.and_then(Lines::finish));
        let has_terminal = terminal.is_some();
        failures.extend(terminal.and_then(Lines::finish));
        failures.extend(trace_file.and_then(Lines::finish));
        failures.extend(otlp.and_then(Otlp::finish));
        failures.extend(metrics.and_then(|metrics| write_metrics(&metrics)));
        print_summary(&digest, has_terminal);
        let dropped = [&telemetry.spans_dropped_queue, &telemetry.spans_dropped_export, &telemetry.spans_dropped_limit];
        Summary {
            requests: digest.requests(),
            spans_exported: telemetry.spans_exported.load(Relaxed),
            spans_dropped: dropped.iter().map(|counter| counter.load(Relaxed)).sum(),
            left_out,
            failures,
        }
    }
}

fn open_trace_file(
    path: &Path,
    origin: Origin,
    telemetry: Arc<Telemetry>,
    pressure: Pressure,
) -> anyhow::Result<Lines<Trace>> {
    let file = open_file(path, "traces", false)?;
    let scope = otlp::spans::scope();
    let count = move |fate, spans| {
        let counter = match fate {
            Fate::Written => &telemetry.spans_exported,
            Fate::QueueFull => &telemetry.spans_dropped_queue,
            Fate::WriteFailed => &telemetry.spans_dropped_export,
        };
        counter.fetch_add(spans, Relaxed);
    };
    let render = move |trace: &Trace, line: &mut Vec<u8>| Ok(otlp_file::write(trace, &scope, &origin, line)?);
    let about = format!("trace file {}", path.display());
    Ok(Lines::start(about, Box::new(file), FILE_QUEUE_SPANS, pressure, count, render)?)
}

fn open_access_log(path: &Path, telemetry: Arc<Telemetry>, pressure: Pressure) -> anyhow::Result<Lines<AccessRecord>> {
    let out: Box<dyn std::io::Write + Send> = if path == Path::new("-") {
        Box::new(std::io::stdout())
    } else {
        // A live log goes on where the run before ended; a replay's is that replay's.
        Box::new(open_file(path, "the access log", pressure == Pressure::Drop)?)
    };
    let count = move |fate, records| {
        let counter = match fate {
            Fate::Written => return,
            Fate::QueueFull => &telemetry.access_dropped_queue,
            Fate::WriteFailed => &telemetry.access_dropped_write,
        };
        counter.fetch_add(records, Relaxed);
    };
    let about = format!("access log {}", path.display());
    Ok(Lines::start(about, out, access_log::QUEUE_RECORDS, pressure, count, access_log::write)?)
}

fn open_terminal(pressure: Pressure) -> anyhow::Result<Lines<AccessRecord>> {
    let style = Style::of(&std::io::stdout());
    let mut servers = terminal::Servers::default();
    let render = move |record: &AccessRecord, line: &mut Vec<u8>| {
        let shows_server = servers.are_several(&record.server);
        terminal::write_line(record, shows_server, style, line)
    };
    // A line that the terminal had no time for is no loss worth a counter: the summary and the log have the request.
    let out = Box::new(terminal::Stdout::default());
    Ok(Lines::start("terminal".into(), out, terminal::QUEUE_LINES, pressure, |_, _| (), render)?)
}

/// Refuses at once what cannot be written, when the user can still do something.
fn open_file(path: &Path, what: &str, append: bool) -> Result<File, Failure> {
    File::options().create(true).write(true).append(append).truncate(!append).open(path).map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Code::Permission,
            _ => Code::Usage,
        };
        let said = format!("cannot write {what} to {}: {error}", path.display());
        Failure::new(code, said, "name a file in a folder that exists and can be written")
    })
}

fn write_metrics(metrics: &Metrics) -> Option<String> {
    let path = metrics.file.as_deref()?;
    let written = metrics
        .exposition
        .openmetrics()
        .map_err(std::io::Error::other)
        .and_then(|text| prometheus::write_atomically(path, &text));
    written.err().map(|error| format!("metrics file {}: {error}", path.display()))
}

/// To stdout below the request lines; else to a person who watches stderr.
fn print_summary(digest: &Digest, has_terminal: bool) {
    // A closed pipe at the very end is nobody's concern.
    if has_terminal {
        let mut stdout = std::io::stdout();
        let _ = stdout.write_all(digest.render(Style::of(&stdout)).as_bytes()).and_then(|()| stdout.flush());
    } else if std::io::stderr().is_terminal() {
        let mut stderr = std::io::stderr();
        let _ = stderr.write_all(digest.render(Style::of(&stderr)).as_bytes());
    }
}
