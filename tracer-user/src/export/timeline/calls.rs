//! Calls of CUDA libraries: a track for each thread that calls, and one for each stream that shows the order of its launches.
//!
//! A call whose return is not seen is a point. Nothing is drawn of what the GPU did, which nobody saw.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use super::mark::{Count, Mark, Note, Pen, Slice, TrackId};
use super::rows::Rows;
use super::tracks::{About, Below, LONGEST, Tracks, arrow};
use crate::model::trace_ids::run_identity;
use crate::output::cuda::{CopyKind, WaitOf};
use crate::output::{CudaCall, CudaWhat};
use crate::sanitise::sanitise;

/// Waits of a thread follow each other; what overlaps by an error still has to be drawn.
const ROWS: usize = 4;
/// Threads of an engine that get arrows from its steps: its ranks, and a few more.
const LAUNCHING: usize = 64;

/// A thread of a process of a server.
type Caller = (u32, u32);

#[derive(Debug)]
struct Thread {
    rows: Rows,
    /// Of its last call.
    step: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    threads: HashMap<TrackId, Thread>,
    /// Who launched for each engine of each server.
    launching: HashMap<(u64, u32), BTreeSet<Caller>>,
}

impl Calls {
    /// The arrows that may start at a step.
    pub(super) fn arrows_of(&self, run: u64, engine: u32, step: u64) -> Vec<u64> {
        self.launching.get(&(run, engine)).into_iter().flatten().map(|&caller| first_launch(step, caller)).collect()
    }

    /// Draws a call. Whether there was room.
    pub(super) fn draw(&mut self, call: &CudaCall, tracks: &mut Tracks, pen: &mut Pen<'_>) -> Option<()> {
        if call.rank.is_some() {
            tracks.learn(&call.server, call.process, About { role: None, engine: call.engine, rank: call.rank });
        }
        let process = tracks.process(&call.server, call.process, pen)?;
        let at = call.start.0;
        if let CudaWhat::Memory { live, peak } = call.what {
            for (what, bytes) in [(Below::MemoryLive, live), (Below::MemoryPeak, peak)] {
                let track = tracks.below(process, what, pen)?;
                pen.mark(&Mark::Count { track, at, value: Count::Whole(bytes) });
            }
            return Some(());
        }
        let track = tracks.below(process, Below::Thread { process: call.process, thread: call.thread }, pen)?;
        let end = call.end.map_or(at, |end| end.0.max(at));
        let thread = self.threads.entry(track).or_insert_with(|| Thread { rows: Rows::new(ROWS), step: None });
        let row = if end > at { thread.rows.place(at, end)? as u32 } else { 0 };
        let track = match row {
            0 => track,
            row => tracks.below(track, Below::ThreadRow { thread: call.thread, row }, pen)?,
        };
        let step = call.step.map(|(_, span)| u64::from_be_bytes(span.0));
        let is_first = step.is_some() && thread.step != step;
        thread.step = step.or(thread.step);
        let arrow_in = if is_first { self.arrow_to(call, step) } else { None };

        let (name, category) = title(&call.what);
        let name = sanitise(&name, LONGEST);
        let words = Words::of(&call.what);
        let mut notes = notes_of(&call.what, &words);
        notes.extend(call.stream.map(|handle| ("stream", Note::Hex(handle))));
        notes.extend(step.map(|step| ("step", Note::Hex(step))));
        let categories = &["cuda", category];
        pen.mark(&Mark::Slice(Slice {
            track,
            start: at,
            end,
            name: &name,
            categories,
            arrows_out: &[],
            arrow_in,
            notes: &notes,
        }));
        // A wait puts nothing on its stream.
        let stream = call.stream.filter(|_| !matches!(call.what, CudaWhat::Wait { .. }));
        if let Some(handle) = stream {
            let track = tracks.below(process, Below::Stream { handle }, pen)?;
            pen.mark(&Mark::Instant { track, at, name: &name, categories });
        }
        Some(())
    }

    /// The arrow from its step to a thread's first call.
    fn arrow_to(&mut self, call: &CudaCall, step: Option<u64>) -> Option<u64> {
        let (step, engine) = (step?, call.engine?);
        let caller = (call.process, call.thread);
        let callers = self.launching.entry((run_identity(&call.server), engine)).or_default();
        if callers.len() < LAUNCHING {
            callers.insert(caller);
        }
        callers.contains(&caller).then(|| first_launch(step, caller))
    }
}

fn first_launch(step: u64, (process, thread): Caller) -> u64 {
    arrow(&[step, u64::from(process), u64::from(thread)])
}

/// What a call is shown as, and the category that says what it is.
fn title(what: &CudaWhat) -> (Cow<'_, str>, &str) {
    let (name, category) = match what {
        CudaWhat::GraphLaunch { graph, .. } => return (format!("graph {graph:#x}").into(), "graph"),
        CudaWhat::Launch { kernel, .. } => (kernel.short.as_str(), kernel.class.name()),
        CudaWhat::Copy { kind, .. } => (copy(*kind), "copy"),
        CudaWhat::Set { .. } => ("memset", "memset"),
        CudaWhat::Wait { of: WaitOf::Stream } => ("wait for stream", "wait"),
        CudaWhat::Wait { of: WaitOf::Event } => ("wait for event", "wait"),
        CudaWhat::Wait { of: WaitOf::Device } => ("wait for device", "wait"),
        CudaWhat::Collective { kind, .. } => (kind.name(), "collective"),
        CudaWhat::Memory { .. } => ("device memory", "memory"),
    };
    (name.into(), category)
}

fn copy(kind: CopyKind) -> &'static str {
    match kind {
        CopyKind::HostToDevice => "copy h2d",
        CopyKind::DeviceToHost => "copy d2h",
        CopyKind::DeviceToDevice => "copy d2d",
        CopyKind::HostToHost => "copy h2h",
        CopyKind::PeerToPeer => "copy p2p",
        CopyKind::Unknown => "copy",
    }
}

/// Texts that are made for a call's notes.
struct Words {
    grid: String,
    block: String,
    /// Of a graph.
    kernels: String,
}

impl Words {
    fn of(what: &CudaWhat) -> Self {
        let words = |[x, y, z]: &[u32; 3]| format!("{x}x{y}x{z}");
        match what {
            CudaWhat::Launch { grid, block, .. } => {
                Self { grid: words(grid), block: words(block), kernels: String::new() }
            }
            CudaWhat::GraphLaunch { kernels, .. } => {
                let words: Vec<String> =
                    kernels.iter().map(|(name, count)| format!("{} ×{count}", name.short)).collect();
                Self { grid: String::new(), block: String::new(), kernels: words.join(", ") }
            }
            _ => Self { grid: String::new(), block: String::new(), kernels: String::new() },
        }
    }
}

fn notes_of<'a>(what: &'a CudaWhat, words: &'a Words) -> Vec<(&'static str, Note<'a>)> {
    match what {
        CudaWhat::Launch { kernel, grid: _, block: _, shared, weight } => {
            let mut notes = vec![
                ("kernel", Note::Text(&kernel.demangled)),
                ("class", Note::Text(kernel.class.name())),
                ("named_by", Note::Text(kernel.named_by.name())),
                ("grid", Note::Text(&words.grid)),
                ("block", Note::Text(&words.block)),
                ("shared_bytes", Note::Number(u64::from(*shared))),
            ];
            if *weight > 1 {
                notes.push(("stands_for", Note::Number(u64::from(*weight))));
            }
            notes
        }
        CudaWhat::GraphLaunch { graph, nodes, kernels: _, changed, replays } => {
            let mut notes = vec![("graph", Note::Hex(*graph)), ("replays", Note::Number(*replays))];
            notes.extend(nodes.map(|nodes| ("nodes", Note::Number(u64::from(nodes)))));
            if !words.kernels.is_empty() {
                notes.push(("kernels", Note::Text(&words.kernels)));
            }
            if *changed {
                notes.push(("contents", Note::Text("changed since")));
            } else if nodes.is_none() {
                notes.push(("contents", Note::Text("unknown")));
            }
            notes
        }
        CudaWhat::Copy { kind: _, bytes } | CudaWhat::Set { bytes } => vec![("bytes", Note::Number(*bytes))],
        CudaWhat::Collective { kind: _, bytes, communicator } => {
            vec![("bytes", Note::Number(*bytes)), ("communicator", Note::Hex(*communicator))]
        }
        CudaWhat::Wait { .. } | CudaWhat::Memory { .. } => Vec::new(),
    }
}
