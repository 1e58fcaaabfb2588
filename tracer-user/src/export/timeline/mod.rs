//! A run as a timeline for people: requests, engine steps, CUDA calls, counters, in a file that Perfetto opens.
//!
//! Enters: every request, step and call that the pure side says; sampling has no part in it. Leaves: a file that grows as the run goes on
//! and that is readable up to where it was written, should the run break off. What is drawn is what outputs say; a call whose return was
//! not seen is a point, and of the GPU's own work nothing is drawn. Bounded: the queue, tracks, lanes, words, and steps that arrows may
//! point to; what finds no room is counted and said at the end.

mod arrows;
mod calls;
mod chrome;
mod mark;
mod perfetto;
mod proto;
mod requests;
mod rows;
mod steps;
#[cfg(test)]
mod tests;
mod tracks;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use self::arrows::Arrows;
use self::calls::Calls;
use self::mark::{Format, Pen};
use self::requests::Requests;
use self::steps::Steps;
use self::tracks::{About, Tracks};
use super::lines::{Fate, Lines, Render};
use super::sink::{Context, Sink};
use crate::model::trace_ids::run_identity;
use crate::out_file::{self, Existing};
use crate::output::{CudaCall, EngineStep, ServerProcess, Trace};

/// Spans, steps and calls that wait for the file at most; some 20 MB of spans, 8 MB of calls.
const QUEUE: u64 = 32_768;
/// Bytes of a write, when as much is there.
const BATCH: usize = 64 << 10;

#[derive(Debug)]
enum Item {
    Request(Arc<Trace>),
    Step(EngineStep),
    Call(CudaCall),
    Process(ServerProcess),
}

/// What found no room.
#[derive(Debug, Default)]
struct LeftOut {
    /// In the queue.
    late: AtomicU64,
    /// Among the tracks.
    crowded: AtomicU64,
}

#[derive(Debug)]
struct Timeline {
    about: String,
    lines: Lines<Item>,
    left_out: Arc<LeftOut>,
}

impl Sink for Timeline {
    fn request(&mut self, trace: &Arc<Trace>) {
        self.lines.push(&Arc::new(Item::Request(Arc::clone(trace))), trace.spans.len() as u64);
    }

    fn step(&mut self, step: &EngineStep) {
        self.lines.push(&Arc::new(Item::Step(step.clone())), 1);
    }

    fn cuda(&mut self, call: &CudaCall) {
        self.lines.push(&Arc::new(Item::Call(call.clone())), 1);
    }

    fn process(&mut self, process: &ServerProcess) {
        self.lines.push(&Arc::new(Item::Process(process.clone())), 1);
    }

    fn finish(self: Box<Self>) -> Option<String> {
        let Self { about, lines, left_out } = *self;
        let failure = lines.finish();
        let (late, crowded) = (left_out.late.load(Relaxed), left_out.crowded.load(Relaxed));
        failure
            .or_else(|| (late > 0).then(|| format!("{about}: {late} slices are missing: the file did not keep up")))
            .or_else(|| {
                (crowded > 0).then(|| format!("{about}: {crowded} slices are missing: no track was free for them"))
            })
    }
}

pub fn open_perfetto(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let Some(path) = context.flags.perfetto.as_deref() else { return Ok(None) };
    open(context, path, Box::<perfetto::Perfetto>::default()).map(Some)
}

pub fn open_chrome(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let Some(path) = context.flags.chrome.as_deref() else { return Ok(None) };
    open(context, path, Box::<chrome::Chrome>::default()).map(Some)
}

fn open(context: &Context<'_>, path: &Path, format: Box<dyn Format>) -> anyhow::Result<Box<dyn Sink>> {
    let file = out_file::open(path, "a timeline", Existing::Dropped)?;
    let left_out = Arc::new(LeftOut::default());
    let counted = Arc::clone(&left_out);
    let count = move |fate, weight| {
        if fate == Fate::QueueFull {
            counted.late.fetch_add(weight, Relaxed);
        }
    };
    let about = format!("timeline {}", path.display());
    let drawing = Drawing::new(format, Arc::clone(&left_out));
    let lines = Lines::start_with(about.clone(), "slices", Box::new(file), QUEUE, context.pressure, count, drawing)?;
    Ok(Box::new(Timeline { about, lines, left_out }))
}

/// Draws items, on the writing thread.
struct Drawing {
    format: Box<dyn Format>,
    has_begun: bool,
    left_out: Arc<LeftOut>,
    tracks: Tracks,
    arrows: Arrows,
    requests: Requests,
    steps: Steps,
    calls: Calls,
}

impl Drawing {
    fn new(format: Box<dyn Format>, left_out: Arc<LeftOut>) -> Self {
        Self {
            format,
            has_begun: false,
            left_out,
            tracks: Tracks::default(),
            arrows: Arrows::default(),
            requests: Requests::default(),
            steps: Steps::default(),
            calls: Calls::default(),
        }
    }

    fn begin(&mut self, at: u64, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.format.begin(at, out);
        }
    }

    fn draw(&mut self, item: &Item, out: &mut Vec<u8>) {
        let at = match item {
            Item::Request(trace) => trace.spans.first().map_or(0, |root| root.start_ns),
            Item::Step(step) => step.start_ns,
            Item::Call(call) => call.start.0,
            Item::Process(ServerProcess { server, process, role, engine }) => {
                let about = About { role: Some(*role), engine: *engine, rank: None };
                self.tracks.learn(server, *process, about);
                return;
            }
        };
        self.begin(at, out);
        let Self { format, has_begun: _, left_out, tracks, arrows, requests, steps, calls } = self;
        let pen = &mut Pen { format: &mut **format, out };
        let missing = match item {
            Item::Request(trace) => requests.draw(trace, tracks, arrows, pen),
            Item::Step(step) => {
                let id = u64::from_be_bytes(step.span_id.0);
                let launches = calls.arrows_of(run_identity(&step.server), step.engine, id);
                u64::from(steps.draw(step, &launches, tracks, arrows, pen).is_none())
            }
            Item::Call(call) => u64::from(calls.draw(call, tracks, pen).is_none()),
            Item::Process(_) => 0,
        };
        left_out.crowded.fetch_add(missing, Relaxed);
    }
}

impl Render<Item> for Drawing {
    fn item(&mut self, item: &Item, out: &mut Vec<u8>) -> std::io::Result<()> {
        self.draw(item, out);
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.begin(0, out);
        self.format.end(out);
    }

    fn batch(&self) -> usize {
        BATCH
    }
}
