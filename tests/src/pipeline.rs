//! Runs the pure pipeline in this process, on events that a test may have tampered with.

use std::path::{Path, PathBuf};

use inferspan::core::Config;
use inferspan::input::{Event, Input, Lost, What};
use inferspan::output::cuda::{CudaCall, KernelRow};
use inferspan::output::{AccessRecord, EngineStep, GenerationRecord, Metric, Output, Trace, Verdict};
use inferspan::recording::Entry;
use inferspan::run::pipeline::Pipeline;
use inferspan::run::preroll::Preroll;
use inferspan::source::syscall_log::SyscallLog;

/// The real captures.
pub const CAPTURES: [&str; 6] = [
    "v0.11.0_run.jsonl.gz",
    "v0.32_api2.jsonl.gz",
    "v0.32_chat_stream.jsonl.gz",
    "v0.32_handshake.jsonl.gz",
    "v0.32_logprobs_stop_abort.jsonl.gz",
    "v0.32_preempt.jsonl.gz",
];

/// The folder of the real captures.
pub fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/captures")
}

/// Every event of a capture.
///
/// # Panics
/// When the capture does not read whole.
pub fn events(name: &str) -> Vec<Event> {
    let mut log = SyscallLog::open(&captures().join(name)).expect("the capture is in the repository");
    let mut events = Vec::new();
    while let Some(event) = log.next_event().expect("the capture reads") {
        events.push(event);
    }
    assert_eq!(log.bad_lines(), 0, "{name}");
    events
}

/// What the pipeline made of some events.
#[derive(Debug, Default, PartialEq)]
pub struct Made {
    pub access: Vec<AccessRecord>,
    pub traces: Vec<Trace>,
    pub metrics: Vec<Metric>,
    pub steps: Vec<EngineStep>,
    pub calls: Vec<CudaCall>,
    pub kernels: Vec<KernelRow>,
    pub lost: Vec<Lost>,
    pub verdicts: Vec<Verdict>,
    pub spans_dropped: u64,
}

impl Made {
    /// Sorts what a pipeline said.
    pub fn of(out: Vec<Output>, spans_dropped: u64) -> Self {
        let mut made = Self { spans_dropped, ..Self::default() };
        for output in out {
            match output {
                Output::Access(record) => made.access.push(*record),
                Output::Trace(trace) => made.traces.push(trace),
                Output::Metric(metric) => made.metrics.push(metric),
                Output::Step(step) => made.steps.push(*step),
                Output::Cuda(call) => made.calls.push(*call),
                Output::Kernel(row) => made.kernels.push(*row),
                Output::Lost(lost) => made.lost.push(lost),
                Output::Growing(_) | Output::Process(_) | Output::Delivered(_) | Output::Gpus(_) => {}
                Output::Verdict(verdict) => made.verdicts.push(verdict),
            }
        }
        made
    }

    /// The one record of the completion with this id.
    ///
    /// # Panics
    /// When there is none, or several.
    pub fn completion(&self, id: &str) -> &AccessRecord {
        let id = format!("cmpl-{id}");
        let found: Vec<_> = self.access.iter().filter(|record| record.request_id.as_deref() == Some(&id)).collect();
        let [record] = found.as_slice() else { panic!("{} records of {id}: {:#?}", found.len(), self.access) };
        record
    }

    /// The events of all roots.
    pub fn root_events(&self) -> Vec<&'static str> {
        self.traces.iter().flat_map(|trace| trace.spans[0].events.iter().map(|event| event.name)).collect()
    }

    pub fn generations(&self) -> impl Iterator<Item = &GenerationRecord> {
        self.access.iter().flat_map(|a| &a.generations)
    }
}

/// The pipeline of `inferspan replay`, with nothing behind it.
pub fn run(events: &[Event]) -> Made {
    let mut preroll = Preroll::default();
    for event in events {
        preroll.look(event);
    }
    let closes_visible = events.iter().any(|e| matches!(e.what, What::Closed { .. }));
    let mut pipeline = Pipeline::new(1, 500_000_000, &Config { closes_visible, ..Config::default() });
    for fact in preroll.facts(None).0 {
        pipeline.push(Some(0), Input::Fact(fact));
    }
    for event in events {
        pipeline.push(Some(0), Input::Event(event.clone()));
    }
    while pipeline.finish_part() {}
    Made::of(std::mem::take(pipeline.outputs()), pipeline.spans_dropped())
}

/// As [`run`], on inputs of any kind and recorded; `raw`: with the bytes.
pub fn record(inputs: &[Input], raw: bool) -> (Made, Vec<Entry>) {
    let mut preroll = Preroll::default();
    for input in inputs {
        if let Input::Event(event) = input {
            preroll.look(event);
        }
    }
    let mut pipeline = Pipeline::new(1, 500_000_000, &Config::default());
    pipeline.record(raw);
    for fact in preroll.facts(None).0 {
        pipeline.push(Some(0), Input::Fact(fact));
    }
    for input in inputs {
        let server = matches!(input, Input::Event(_)).then_some(0);
        pipeline.push(server, input.clone());
    }
    while pipeline.finish_part() {}
    let entries = pipeline.take_entries();
    (Made::of(std::mem::take(pipeline.outputs()), pipeline.spans_dropped()), entries)
}

/// What a recording gives, and where it does not fit.
pub fn replay(entries: Vec<Entry>, raw: bool) -> (Made, u64) {
    let mut pipeline = Pipeline::new(1, 0, &Config::default());
    for entry in entries {
        pipeline.replay(entry, raw);
    }
    (Made::of(std::mem::take(pipeline.outputs()), pipeline.spans_dropped()), pipeline.unanswered())
}
