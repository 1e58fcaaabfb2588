//! A run: what `attach` and `replay` (and tests) share between a source and the exporters.
//!
//! [`pipeline`] is the only entrance and is pure; [`begun`] and [`live`] feed it from running servers, [`replay`] from a syscall log,
//! [`recorded`] from a recording. Nothing here parses a command line or prints: what a user should know is returned.

pub mod begun;
pub mod budget;
pub mod length;
pub mod live;
mod naming;
pub mod pipeline;
pub mod preroll;
pub mod privileges;
pub mod recorded;
pub mod replay;
pub mod stop;
pub mod telling;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::core::Config;
use crate::core::view::View;
use crate::export::prometheus::server::MetricsServer;
use crate::export::{Sinks, Summary};
use crate::input::{EventNanos, Input};
use crate::output::Verdict;
use crate::recording::Entry;
use crate::recording::recorder::{Recorded, Recorder};
use crate::store::now::Now;
use crate::telemetry::Telemetry;
use pipeline::Pipeline;

/// A pipeline with its exporters behind it.
#[derive(Debug)]
pub struct Run {
    pipeline: Pipeline,
    sinks: Sinks,
    telemetry: Arc<Telemetry>,
    recorder: Option<Recorder>,
}

/// What a run amounts to.
#[derive(Debug)]
pub struct Ended {
    pub summary: Summary,
    /// Inputs that came too late to be put in order.
    pub late: u64,
    /// The metrics endpoint, where it is to outlive the run: it serves the values as they are at the end.
    pub metrics_server: Option<MetricsServer>,
    /// What became of its recording, where one was asked for.
    pub recorded: Option<Recorded>,
}

impl Run {
    pub fn new(servers: usize, lag: EventNanos, config: &Config, sinks: Sinks, telemetry: Arc<Telemetry>) -> Self {
        Self { pipeline: Pipeline::new(servers, lag, config), sinks, telemetry, recorder: None }
    }

    /// Records from here on; before the first input. `raw`: with the bytes of the streams.
    pub fn record(&mut self, recorder: Recorder, raw: bool) {
        self.pipeline.record(raw);
        self.recorder = Some(recorder);
    }

    /// A recording was asked for, and cannot go on.
    pub fn has_recording_failed(&self) -> bool {
        self.recorder.as_ref().is_some_and(Recorder::has_failed)
    }

    /// As [`Pipeline::replay`].
    pub fn replay(&mut self, entry: Entry, raw: bool) {
        self.pipeline.replay(entry, raw);
    }

    /// As [`Pipeline::unanswered`].
    pub fn unanswered(&self) -> u64 {
        self.pipeline.unanswered()
    }

    /// As [`Pipeline::push`].
    pub fn push(&mut self, server: Option<usize>, input: Input) {
        self.pipeline.push(server, input);
    }

    /// What connections turned out to speak, for the source.
    pub fn verdicts(&mut self) -> Vec<(Verdict, EventNanos)> {
        self.pipeline.verdicts()
    }

    /// As [`Pipeline::views`].
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.pipeline.views()
    }

    /// Hands on what was said since the last call.
    pub fn export(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.push(self.pipeline.take_entries());
        }
        if self.pipeline.outputs().is_empty() {
            return;
        }
        // It grows with traces, which are outputs.
        self.telemetry.spans_dropped_limit.store(self.pipeline.spans_dropped(), Relaxed);
        self.sinks.push(self.pipeline.outputs());
    }

    /// Shows what is open now to those who want it.
    pub fn show_now(&mut self) {
        if self.sinks.wants_now() {
            self.sinks.now(&Arc::new(Now::of(self.pipeline.views())));
        }
    }

    /// As [`Sinks::reopen`].
    pub fn reopen(&self) {
        self.sinks.reopen();
    }

    /// As [`Sinks::is_unread`]; a recording is one that will read.
    pub fn is_unread(&self) -> bool {
        self.recorder.is_none() && self.sinks.is_unread()
    }

    /// What a user should hear of before the run is over, since the last call.
    pub fn take_unsaid(&mut self) -> Vec<String> {
        self.sinks.take_unsaid()
    }

    /// The stream is over: everything held and everything open goes out.
    pub fn close(&mut self) {
        while self.pipeline.finish_part() {
            self.export();
        }
        self.export();
    }

    /// Flushes the exporters and waits for them. `keep_serving`: the metrics endpoint is not taken down.
    pub fn finish(mut self, keep_serving: bool) -> Ended {
        self.close();
        let metrics_server = if keep_serving { self.sinks.keep_metrics_server() } else { None };
        let late = self.pipeline.late();
        let recorded = self.recorder.take().map(|recorder| recorder.finish(late));
        Ended { summary: self.sinks.finish(), late, metrics_server, recorded }
    }
}
