//! Traces to an OTLP back end, over gRPC or HTTP, from a thread of its own.
//!
//! Enters: traces, through a bounded queue. Leaves: export requests of at most [`BATCH_SPANS`] spans (a larger trace goes
//! alone) or [`BATCH_WAIT`] old, one resource each, in order. Every span that is not taken by the back end is counted and the
//! reason said on stderr, at most once a minute. Retries and headers are `opentelemetry-otlp`'s own, by the standard variables.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};

use self::endpoint::Endpoint;
use self::options::Options;
use self::spans::Origin;
use self::transport::{Redirects, TransportError, build};
use super::Pressure;
use super::complaint::Complaint;
use super::flags::OutputArgs;
use super::queue::{self, Popped, Reader, Writer};
use super::sink::{Context, Sink};
use crate::exit::{Code, Failure};
use crate::input::Server;
use crate::output::{Service, Trace};
use crate::telemetry::Telemetry;

pub mod endpoint;
pub mod options;
pub mod spans;
pub mod transport;

/// Spans that wait for the back end at most; about 12 MB of traces as they come.
const QUEUE_SPANS: u64 = 16_384;

/// A batch is sent when it has this many spans; some 0.5 MB encoded, well below gRPC's default limit of 4 MiB.
const BATCH_SPANS: usize = 512;

/// … or when its first trace has waited this long.
const BATCH_WAIT: Duration = Duration::from_millis(200);

/// On top of the exporter's own time-out, should that fail us (a resolver that hangs).
const TIMEOUT_SLACK: Duration = Duration::from_secs(2);

/// How long the end of a run waits for what is queued, live and in a replay.
const FLUSH_LIVE: Duration = Duration::from_secs(10);
const FLUSH_REPLAY: Duration = Duration::from_mins(1);

/// A replay gives up after this many failed requests in a row: nothing comes after it that the back end could be back for, and
/// each would cost the exporter's retries.
const REPLAY_FAILURES: u32 = 3;

/// Resources whose exporters are kept; the servers of one host are few.
const MAX_EXPORTERS: usize = 64;

/// What a resource is made of.
type ResourceKey = (Arc<Server>, Service);

/// The running exporter.
#[derive(Debug)]
pub struct Otlp {
    writer: Writer<Arc<Trace>>,
    thread: JoinHandle<()>,
    deadline: Arc<Mutex<Option<Instant>>>,
    complaint: Arc<Complaint>,
    telemetry: Arc<Telemetry>,
    pressure: Pressure,
}

impl Sink for Otlp {
    fn trace(&mut self, trace: &Arc<Trace>) {
        self.push(trace);
    }

    fn takes_traces(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>) -> Option<String> {
        Self::finish(*self)
    }
}

/// Whether a flag or the environment names a back end.
pub fn is_asked_for(flags: &OutputArgs) -> anyhow::Result<bool> {
    Ok(resolve(flags)?.is_some())
}

fn resolve(flags: &OutputArgs) -> anyhow::Result<Option<Endpoint>> {
    Ok(endpoint::resolve(flags.otlp.as_deref(), |name| std::env::var(name).ok())?)
}

pub fn open(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let Some(endpoint) = resolve(context.flags)? else { return Ok(None) };
    let options = options::resolve(&endpoint, |name| std::env::var(name).ok())?;
    let telemetry = Arc::clone(context.telemetry);
    Ok(Some(Box::new(Otlp::start(endpoint, options, context.origin.clone(), telemetry, context.pressure)?)))
}

impl Otlp {
    /// Checks `endpoint` and starts the thread; the back end is first talked to when there is something to send.
    pub fn start(
        endpoint: Endpoint,
        options: Options,
        origin: Origin,
        telemetry: Arc<Telemetry>,
        pressure: Pressure,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1) // drives connections while the exporter's thread waits for traces
            .thread_name("inferspan-otlp-io")
            .enable_all()
            .build()?;
        // A wrong certificate, URL or scheme shows now, not at the first request.
        {
            let _context = runtime.enter();
            build(&endpoint, &options, &Redirects::default()).map_err(|error| {
                Failure::new(
                    Code::Usage,
                    format!("{} {}: {error}", endpoint.source, endpoint.url),
                    "check the URL and the OTEL_EXPORTER_OTLP_* variables",
                )
            })?;
        }
        let (writer, reader) = queue::bounded(QUEUE_SPANS);
        let deadline = Arc::new(Mutex::new(None));
        let complaint = Arc::new(Complaint::new(format!("OTLP export to {}", endpoint.url)));
        let exporter = Exporter {
            reader,
            runtime,
            endpoint,
            origin,
            scope: spans::scope(),
            options,
            redirects: Redirects::default(),
            deadline: Arc::clone(&deadline),
            complaint: Arc::clone(&complaint),
            telemetry: Arc::clone(&telemetry),
            pressure,
            failed_in_a_row: 0,
            exporters: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("inferspan-otlp".into()).spawn(move || exporter.run())?;
        Ok(Self { writer, thread, deadline, complaint, telemetry, pressure })
    }

    /// Queues `trace`.
    pub fn push(&self, trace: &Arc<Trace>) {
        let spans = trace.spans.len() as u64;
        if self.writer.push(Arc::clone(trace), spans, self.pressure).is_err() {
            self.telemetry.spans_dropped_queue.fetch_add(spans, Relaxed);
        }
    }

    /// Sends what is queued, within a bounded time; the last failure, if any.
    pub fn finish(self) -> Option<String> {
        let flush = match self.pressure {
            Pressure::Drop => FLUSH_LIVE,
            Pressure::Wait => FLUSH_REPLAY,
        };
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + flush);
        drop(self.writer);
        if self.thread.join().is_err() {
            return Some("OTLP export: the exporter's thread panicked".to_owned());
        }
        self.complaint.last()
    }
}

/// The thread's side.
struct Exporter {
    reader: Reader<Arc<Trace>>,
    runtime: tokio::runtime::Runtime,
    endpoint: Endpoint,
    origin: Origin,
    scope: InstrumentationScope,
    options: Options,
    redirects: Redirects,
    deadline: Arc<Mutex<Option<Instant>>>,
    complaint: Arc<Complaint>,
    telemetry: Arc<Telemetry>,
    pressure: Pressure,
    failed_in_a_row: u32,
    /// Oldest first.
    exporters: Vec<(ResourceKey, SpanExporter)>,
}

impl Exporter {
    fn run(mut self) {
        while let Some(first) = self.reader.pop() {
            let due = Instant::now() + BATCH_WAIT;
            let mut spans = first.spans.len();
            let mut batch = vec![first];
            while spans < BATCH_SPANS {
                let Popped::Item(trace) = self.reader.pop_until(due) else { break };
                spans += trace.spans.len();
                batch.push(trace);
            }
            self.send(&batch);
        }
        // A name that does not resolve may hold a thread of the runtime's for longer than we want to.
        self.runtime.shutdown_timeout(Duration::from_millis(100));
    }

    /// Sends one batch, a request for each resource in it and [`BATCH_SPANS`].
    fn send(&mut self, batch: &[Arc<Trace>]) {
        let mut groups: Vec<(ResourceKey, Vec<SpanData>)> = Vec::new();
        for trace in batch {
            let spans = spans::spans(trace, &self.scope);
            let open = groups.iter().rposition(|((server, service), group)| {
                *service == trace.service
                    && (Arc::ptr_eq(server, &trace.server) || *server == trace.server)
                    && group.len() + spans.len() <= BATCH_SPANS
            });
            match open {
                Some(at) => groups[at].1.extend(spans),
                None => groups.push(((Arc::clone(&trace.server), trace.service), spans)),
            }
        }
        for (key, spans) in groups {
            let count = spans.len() as u64;
            match self.export(&key, spans) {
                Ok(()) => {
                    self.failed_in_a_row = 0;
                    self.telemetry.spans_exported.fetch_add(count, Relaxed);
                }
                Err(what) => {
                    self.failed_in_a_row += 1;
                    self.telemetry.spans_dropped_export.fetch_add(count, Relaxed);
                    match what {
                        Some(what) => self.complaint.raise(&what, count, "spans"),
                        None => self.complaint.add(count),
                    }
                }
            }
        }
    }

    /// Sends one request; `Err(None)` when it was not even tried, for the reason last given.
    fn export(&mut self, key: &ResourceKey, spans: Vec<SpanData>) -> Result<(), Option<String>> {
        if self.pressure == Pressure::Wait && self.failed_in_a_row >= REPLAY_FAILURES {
            return Err(None);
        }
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = self.options.timeout + TIMEOUT_SLACK;
        let left = deadline.map_or(longest, |at| at.saturating_duration_since(Instant::now()).min(longest));
        if left.is_zero() {
            return Err(Some("the run ended before the back end took everything".to_owned()));
        }
        let at = self.exporter_at(key).map_err(|error| Some(error.to_string()))?;
        let exporter = &self.exporters[at].1;
        match self.runtime.block_on(async { tokio::time::timeout(left, exporter.export(spans)).await }) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Some(match self.redirects.take() {
                Some(to) => format!(
                    "it redirects to {to}, which is not followed: headers and traces would go along; give that URL if it is meant ({error})"
                ),
                None => error.to_string(),
            })),
            Err(_) => Err(Some(format!("no answer within {} s", left.as_secs_f64().round()))),
        }
    }

    /// The exporter of this resource; an exporter holds one resource, so each has its own.
    fn exporter_at(&mut self, key: &ResourceKey) -> Result<usize, TransportError> {
        if let Some(at) = self.exporters.iter().position(|(known, _)| known == key) {
            return Ok(at);
        }
        let _context = self.runtime.enter();
        let mut exporter = build(&self.endpoint, &self.options, &self.redirects)?;
        let attributes = spans::resource(&key.0, key.1, &self.origin);
        exporter.set_resource(&Resource::builder_empty().with_attributes(attributes).build());
        if self.exporters.len() == MAX_EXPORTERS {
            self.exporters.remove(0);
        }
        self.exporters.push((key.clone(), exporter));
        Ok(self.exporters.len() - 1)
    }
}
