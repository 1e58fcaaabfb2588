//! Takes outputs to their destinations. An exporter never slows the core down: each has a bounded queue; what does not fit is
//! dropped and counted (live), or waited for (replay, where nothing is lost by waiting).

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use self::flags::OutputArgs;
use self::kept::Kept;
use self::log_file::Reopen;
use self::otlp::spans::Origin;
use self::prometheus::server::MetricsServer;
use self::sink::{Context, Open, Sink};
use self::terminal::Style;
use self::terminal::slow::Told;
use self::terminal::summary::Digest;
use crate::output::cuda::Growing;
use crate::output::{AccessRecord, EngineStep, Merit, Output, Service, Trace};
use crate::sample::{Counts, Sampling, policy};
use crate::sanitise::sanitise;
use crate::store::Limits;
use crate::store::now::Now;
use crate::telemetry::Telemetry;
use crate::why;

pub mod access_log;
pub mod complaint;
pub mod flags;
pub mod kept;
pub mod kernels;
pub mod lines;
pub mod log_file;
pub mod meter;
pub mod otlp;
pub mod otlp_file;
pub mod prometheus;
pub mod queue;
pub mod sink;
pub mod stdout;
pub mod terminal;
pub mod timeline;
pub mod usage;

/// Every kind of sink, in the order in which they are flushed.
const SINKS: [Open; 8] = [
    access_log::open,
    kernels::open,
    terminal::open,
    otlp_file::open,
    timeline::open_perfetto,
    timeline::open_chrome,
    otlp::open,
    prometheus::open,
];

/// Sentences that wait to be said; more are in the count alone.
const MAX_UNSAID: usize = 16;
/// Characters of a library's name.
const LONGEST_LIBRARY: usize = 80;

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
    /// How often device memory grew and nothing of it was freed.
    pub grown: u64,
    /// What failed, as a user should read it; empty when all went well.
    pub failures: Vec<String>,
}

impl Summary {
    /// One line about what sampling left out; `None` when that is nothing.
    pub fn left_out_line(&self) -> Option<String> {
        (self.left_out != Counts::default()).then(|| format!("not exported as traces: {}", self.left_out))
    }

    /// One line about device memory that grew; `None` when none did.
    pub fn grown_line(&self) -> Option<String> {
        (self.grown > 0).then(|| format!("device memory grew and nothing of it was freed, {} times", self.grown))
    }
}

/// Every destination that the output flags ask for.
#[derive(Debug)]
pub struct Sinks {
    telemetry: Arc<Telemetry>,
    list: Vec<Box<dyn Sink>>,
    /// `None` when traces go nowhere.
    sampling: Option<Sampling>,
    digest: Digest,
    /// What the summary is explained by.
    kept: Option<Kept>,
    /// Most spans of a step's trace.
    max_spans: usize,
    reopen: Reopen,
    grown: u64,
    unsaid: Vec<String>,
    /// A person is shown what it amounted to at the end.
    shows_summary: bool,
}

impl Sinks {
    /// None at all, whatever the environment asks for: what is [added](Self::add) is all.
    pub fn none(telemetry: Arc<Telemetry>) -> Self {
        Self {
            telemetry,
            list: Vec::new(),
            sampling: None,
            digest: Digest::default(),
            kept: None,
            max_spans: 1,
            reopen: Reopen::default(),
            grown: 0,
            unsaid: Vec::new(),
            shows_summary: false,
        }
    }

    /// Opens files, binds the metrics address, prepares the OTLP exporter.
    pub fn open(flags: &OutputArgs, telemetry: Arc<Telemetry>, pressure: Pressure) -> anyhow::Result<Self> {
        Self::open_as(flags, telemetry, pressure, Origin::of_this_process(pressure == Pressure::Drop))
    }

    /// As [`Self::open`], for outputs of another host or time.
    pub fn open_as(
        flags: &OutputArgs,
        telemetry: Arc<Telemetry>,
        pressure: Pressure,
        origin: Origin,
    ) -> anyhow::Result<Self> {
        let reopen = Reopen::default();
        let context = Context { flags, telemetry: &telemetry, pressure, origin, reopen: &reopen };
        let mut list = Vec::new();
        for open in SINKS {
            list.extend(open(&context)?);
        }
        let env = |name: &str| std::env::var(name).ok();
        let sampling = list
            .iter()
            .any(|sink| sink.takes_traces())
            .then(|| anyhow::Ok(Sampling::new(policy::resolve(flags.policy(), env)?, flags.engine_steps)))
            .transpose()?;
        let (max_spans, shows_summary) = (flags.max_spans, true);
        Ok(Self { list, sampling, max_spans, reopen, shows_summary, ..Self::none(telemetry) })
    }

    /// Keeps what leaves the core lately, for whoever looks at the run; of a file as much as there is room for.
    pub fn keep(&mut self, pressure: Pressure) -> std::io::Result<Kept> {
        let kept = Kept::new(match pressure {
            Pressure::Drop => Limits::default(),
            Pressure::Wait => Limits { age_ns: u64::MAX, notable_age_ns: u64::MAX, ..Limits::default() },
        });
        self.add(kept.sink(pressure)?);
        self.kept = Some(kept.clone());
        Ok(kept)
    }

    /// Somebody reads the summary at the end.
    pub fn tells_a_person(&self) -> bool {
        self.shows_summary && (std::io::stderr().is_terminal() || self.list.iter().any(|sink| sink.is_terminal()))
    }

    /// One more, that no flag asks for.
    pub fn add(&mut self, sink: Box<dyn Sink>) {
        self.list.push(sink);
    }

    /// Whether somebody wants to hear what is open now.
    pub fn wants_now(&self) -> bool {
        // Each is asked: it forgets that it was by saying so.
        let wanting = self.list.iter().filter(|sink| sink.wants_now()).count();
        wanting > 0
    }

    /// What is open now.
    pub fn now(&mut self, now: &Arc<Now>) {
        self.list.iter_mut().for_each(|sink| sink.now(now));
    }

    /// The metrics endpoint, to outlive the run: it serves the values as they are at the end.
    pub fn keep_metrics_server(&mut self) -> Option<MetricsServer> {
        self.list.iter_mut().find_map(|sink| sink.keep_serving())
    }

    /// Opens the files of lines anew: the next line of each goes to the file that then has its name.
    pub fn reopen(&self) {
        self.reopen.ask();
    }

    /// All that is exported went to a reader who is gone (`| head`).
    pub fn is_unread(&self) -> bool {
        let mut read = self.list.iter().filter(|sink| !sink.is_beside()).peekable();
        read.peek().is_some() && read.all(|sink| sink.is_unread())
    }

    /// Hands outputs over, in order; drains `outputs`.
    pub fn push(&mut self, outputs: &mut Vec<Output>) {
        for output in outputs.drain(..) {
            match output {
                Output::Trace(trace) => self.request(&Arc::new(trace)),
                Output::Access(record) => self.access(&Arc::new(*record)),
                Output::Metric(metric) => {
                    self.digest.metric(&metric);
                    self.list.iter_mut().for_each(|sink| sink.metric(&metric));
                }
                Output::Step(step) => {
                    self.list.iter_mut().for_each(|sink| sink.step(&step));
                    if let Some(step) = self.sampling.as_mut().and_then(|sampling| sampling.step(step)) {
                        self.step(&step);
                    }
                }
                Output::Cuda(call) => self.list.iter_mut().for_each(|sink| sink.cuda(&call)),
                Output::Kernel(row) => self.list.iter_mut().for_each(|sink| sink.kernel(&row)),
                Output::Growing(growing) => self.grows(&growing),
                Output::Process(process) => self.list.iter_mut().for_each(|sink| sink.process(&process)),
                Output::Lost(lost) => self.telemetry.add_lost(lost.stage, lost.count),
                Output::Delivered(delivered) => self.telemetry.add_delivered(delivered),
                Output::Gpus(gpus) => self.list.iter_mut().for_each(|sink| sink.gpus(gpus.as_ref())),
                Output::Verdict(_) => {}
            }
        }
        if let Some(sampling) = &self.sampling {
            self.telemetry.set_left_out(&sampling.counts());
        }
    }

    fn grows(&mut self, growing: &Growing) {
        self.grown += 1;
        if self.unsaid.len() < MAX_UNSAID {
            self.unsaid.push(sentence(growing));
        }
    }

    /// What a user should hear of before the run is over, since the last call.
    pub fn take_unsaid(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unsaid)
    }

    fn request(&mut self, trace: &Arc<Trace>) {
        self.digest.trace(trace);
        self.list.iter_mut().for_each(|sink| sink.request(trace));
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

    fn step(&mut self, step: &EngineStep) {
        let (server, service) = (Arc::clone(&step.server), Service::Engine);
        self.export(&Arc::new(Trace { server, service, spans: step.spans(self.max_spans), merit: Merit::default() }));
    }

    fn export(&mut self, trace: &Arc<Trace>) {
        self.list.iter_mut().for_each(|sink| sink.trace(trace));
    }

    fn access(&mut self, record: &Arc<AccessRecord>) {
        self.digest.record(record);
        self.list.iter_mut().for_each(|sink| sink.access(record));
    }

    /// Flushes all, waits for the exporters (bounded), writes the files that are written at the end.
    pub fn finish(self) -> Summary {
        let Self { telemetry, list, sampling, digest, kept, grown, shows_summary, .. } = self;
        let left_out = sampling.map(Sampling::finish).unwrap_or_default();
        telemetry.set_left_out(&left_out);
        let (mut has_terminal, mut failures) = (false, Vec::new());
        for sink in list {
            let is_terminal = sink.is_terminal();
            let failure = sink.finish();
            // One that takes no more would keep the summary waiting for ever.
            has_terminal |= is_terminal && failure.is_none();
            failures.extend(failure);
        }
        if shows_summary {
            print_summary(&digest, kept.as_ref(), has_terminal);
        }
        let dropped = [&telemetry.spans_dropped_queue, &telemetry.spans_dropped_export, &telemetry.spans_dropped_limit];
        Summary {
            requests: digest.requests(),
            spans_exported: telemetry.spans_exported.load(Relaxed),
            spans_dropped: dropped.iter().map(|counter| counter.load(Relaxed)).sum(),
            left_out,
            grown,
            failures,
        }
    }
}

/// As a user should read it.
fn sentence(growing: &Growing) -> String {
    let Growing { process, library, live, by, seconds, .. } = growing;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let library = sanitise(library, LONGEST_LIBRARY);
    format!(
        "device memory of {library} in process {process} grows and nothing of it is freed: {:.1} MiB, {:.1} more in {seconds:.0} s",
        mib(*live),
        mib(*by)
    )
}

/// To stdout below the request lines; else to a person who watches stderr.
fn print_summary(digest: &Digest, kept: Option<&Kept>, has_terminal: bool) {
    let store = kept.map(Kept::store);
    let explain = |trace: &Trace| {
        let around = store.as_ref().map(|store| why::around(store, trace)).unwrap_or_default();
        let verdict = why::explain(trace, &around);
        let kind = verdict.causes.first().map(|cause| cause.kind);
        Told { kind, text: why::text::paragraph(trace, &verdict) }
    };
    // A closed pipe at the very end is nobody's concern.
    if has_terminal {
        let mut stdout = std::io::stdout();
        let text = digest.render(Style::of(&stdout), explain);
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    } else if std::io::stderr().is_terminal() {
        let mut stderr = std::io::stderr();
        let _ = stderr.write_all(digest.render(Style::of(&stderr), explain).as_bytes());
    }
}
