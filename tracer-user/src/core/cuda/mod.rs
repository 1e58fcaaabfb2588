//! What the servers' processes do with CUDA: totals, functions, graphs, memory, and which engine step each call is part of.
//!
//! Enters: what was seen of the CUDA libraries, names of functions, steps as they end. Leaves: metrics, calls, and the totals of a step.
//! Invariants: a total is taken once, however often it is told; what a step is given is given to no other; a launch into a capture is work
//! of nobody. All is bounded: what finds no room is counted and leaves without its step.

mod call;
mod collectives;
mod functions;
mod graphs;
mod memory;
mod parts;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::call::Calls;
use self::functions::Functions;
use self::graphs::Graphs;
use self::memory::{EngineMemory, Memory};
use self::parts::Parts;
use self::steps::Lead;
use super::Core;
use crate::input::cuda::{Call, CallKind, CollectiveKind, FunctionKey, KernelName, Launch, MemoryOf, OfProcess, Seen};
use crate::input::{EventNanos, LossStage, Role};
use crate::model::step::Step;
use crate::output::cuda::{KernelRow, StepCuda};
use crate::output::{Labels, Metric, Output};

/// Processes whose calls are kept apart.
const MAX_PROCESSES: usize = 1024;

/// Everything that is known of CUDA in a server.
#[derive(Debug, Default)]
pub(super) struct Cuda {
    processes: BTreeMap<u32, Process>,
    /// Whose child a process is.
    parents: BTreeMap<u32, u32>,
    /// Moves on with these.
    changes: u64,
    /// How far ahead of its outputs an engine launches.
    leads: BTreeMap<u32, Lead>,
    /// Engines of which a step had calls.
    seen_at: BTreeSet<u32>,
    /// What the processes of an engine hold together.
    memory: BTreeMap<u32, EngineMemory>,
}

/// One process.
#[derive(Debug, Default)]
struct Process {
    parts: Parts,
    functions: Functions,
    graphs: Graphs,
    memory: Memory,
    /// Its sums, as they were last told.
    told: OfProcess,
    calls: Calls,
    /// It has ended; names of what it launched may still come.
    ended: Option<EventNanos>,
    /// Where it belongs, and of which state of what is known that was made.
    place: Option<(u64, Place)>,
}

/// Where a process belongs.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    engine: Option<u32>,
    rank: Option<u32>,
}

impl Cuda {
    /// A process is another one's child.
    pub(super) fn parent(&mut self, process: u32, parent: u32) {
        if self.parents.len() < MAX_PROCESSES {
            self.parents.insert(process, parent);
            self.changes += 1;
        }
    }

    /// The process's, made where it is new; nothing when there are too many.
    fn process(&mut self, process: u32) -> Option<&mut Process> {
        if self.processes.len() >= MAX_PROCESSES && !self.processes.contains_key(&process) {
            return None;
        }
        Some(self.processes.entry(process).or_default())
    }

    /// What a function is called, which was met before; what is gone needs no name.
    pub(super) fn named(&mut self, function: FunctionKey, name: &Arc<KernelName>) {
        if let Some(process) = self.processes.get_mut(&function.process) {
            process.functions.named(function, name);
        }
    }

    /// Whether a step of the engine had calls.
    pub(super) fn is_seen_at(&self, engine: u32) -> bool {
        self.seen_at.contains(&engine) || !self.processes.is_empty()
    }

    /// A new request got its first token, in one step, while the engine was busy; so many steps ended between its scheduling and that.
    pub(super) fn admitted(&mut self, engine: u32, steps_between: usize) {
        self.leads.entry(engine).or_default().admitted(steps_between);
    }
}

/// The engine that a process works for: its own, its parent's, or the only one.
fn engine_of(core: &Core, process: u32) -> Option<u32> {
    let engines = core.about.engine_processes();
    let of = |process: u32| engines.iter().find(|(_, of)| **of == process).map(|(engine, _)| *engine);
    let parent = core.cuda.parents.get(&process).copied();
    // A worker's parent may be the engine's own; which may be the API server's.
    let grandparent = parent.and_then(|parent| core.cuda.parents.get(&parent).copied());
    let only = || (engines.len() == 1).then(|| engines.keys().next().copied()).flatten();
    of(process).or_else(|| parent.and_then(of)).or_else(|| grandparent.and_then(of)).or_else(only)
}

impl Core {
    /// Takes what was seen of the CUDA libraries in a thread.
    pub(super) fn cuda(&mut self, at: EventNanos, process: u32, thread: u32, seen: Seen, out: &mut Vec<Output>) {
        // Another process has its number now.
        if self.cuda.processes.get(&process).is_some_and(|of| of.ended.is_some_and(|ended| ended < at)) {
            self.cuda_flush(process, out);
        }
        match seen {
            Seen::Burst(sums) => {
                let labels = self.cuda_labels(process);
                let Some(of) = self.cuda.process(process) else { return };
                if let Some(part) = of.parts.told(thread, sums) {
                    out.push(Output::Metric(Metric::CudaCalls { labels, of: Box::new(part) }));
                }
                let crowded_out = of.parts.take_crowded_out();
                // Where no steps are seen none will ask for them.
                if self.engine.has_messages() && self.place(process).engine.is_some() {
                    self.count_loss(LossStage::Evicted, crowded_out, out);
                }
            }
            Seen::ThreadEnded => {
                if let Some(of) = self.cuda.process(process) {
                    of.parts.ended(thread);
                }
            }
            Seen::Function { key, .. } => {
                if let Some(of) = self.cuda.process(process) {
                    of.functions.met(key, at);
                }
            }
            Seen::Counts(counts) => {
                let newest = counts.iter().map(|(key, _)| key.epoch).max().unwrap_or(0);
                let Some(of) = self.cuda.process(process) else { return };
                for (key, count) in counts.into_iter().filter(|(key, _)| key.process == process) {
                    of.functions.counted(key, count);
                }
                self.launches_by_class(process, false, out);
                let Some(of) = self.cuda.process(process) else { return };
                of.functions.counted_all(newest);
                let refused = of.functions.take_refused() + of.memory.take_refused();
                self.count_loss(LossStage::Evicted, refused, out);
            }
            Seen::Process(sums) => self.cuda_sums(process, sums, out),
            Seen::Launch(launch) => self.launched(at, process, thread, launch, out),
            Seen::Call(call) => self.called(at, process, thread, call, out),
            Seen::Activity(_) => {
                let labels = self.cuda_labels(process);
                out.push(Output::Metric(Metric::CudaActivity { labels }));
            }
        }
    }

    /// Where a process belongs: found once for each state of what is known, since every launch asks.
    fn place(&mut self, process: u32) -> Place {
        let stamp = self.about.changes() + self.cuda.changes;
        let known = self.cuda.processes.get(&process).and_then(|of| of.place);
        if let Some((of, place)) = known
            && of == stamp
        {
            return place;
        }
        let place = Place { engine: engine_of(self, process), rank: self.rank(process) };
        if let Some(of) = self.cuda.processes.get_mut(&process) {
            of.place = Some((stamp, place));
        }
        place
    }

    /// The engine that a process's series are told of.
    fn cuda_series(&self, process: u32) -> u32 {
        engine_of(self, process).unwrap_or(0)
    }

    /// The labels of a process's series.
    fn cuda_labels(&self, process: u32) -> Labels {
        self.about.labels(self.cuda_series(process))
    }

    fn launched(&mut self, at: EventNanos, process: u32, thread: u32, launch: Launch, out: &mut Vec<Output>) {
        let Some(of) = self.cuda.process(process) else { return };
        of.functions.launched(&launch);
        if let Some(number) = launch.capture {
            of.graphs.node(number, Some(launch.key));
            return;
        }
        of.calls.launch(at, thread, launch);
        self.release_calls(process, false, out);
    }

    fn called(&mut self, at: EventNanos, process: u32, thread: u32, call: Call, out: &mut Vec<Output>) {
        let Some(of) = self.cuda.process(process) else { return };
        of.graphs.called(&call);
        if call.capture.is_some() {
            return;
        }
        match call.what {
            CallKind::Alloc { .. } | CallKind::Free { .. } => {
                of.memory.called(&call.what, call.caller);
                of.calls.memory(at, thread, of.memory.held(MemoryOf::Device));
                let allocated = matches!(call.what, CallKind::Alloc { .. }).then_some(MemoryOf::Device);
                let labels = self.cuda_labels(process);
                self.memory_metric(process, &labels, allocated, out);
            }
            CallKind::HostAlloc { .. } | CallKind::HostFree { .. } => {
                of.memory.called(&call.what, call.caller);
                let allocated = matches!(call.what, CallKind::HostAlloc { .. }).then_some(MemoryOf::Host);
                let labels = self.cuda_labels(process);
                self.memory_metric(process, &labels, allocated, out);
            }
            what if call::is_drawn(&what) => of.calls.call(at, thread, call),
            _ => {}
        }
        self.release_calls(process, false, out);
    }

    /// A process's sums were told: what is new in them, whether or not it was told call by call.
    fn cuda_sums(&mut self, process: u32, sums: OfProcess, out: &mut Vec<Output>) {
        let labels = self.cuda_labels(process);
        let Some(of) = self.cuda.process(process) else { return };
        let before = std::mem::replace(&mut of.told, sums);
        for (index, kind) in CollectiveKind::ALL.into_iter().enumerate() {
            let count = sums.collectives[index].saturating_sub(before.collectives[index]);
            let bytes = sums.collective_bytes[index].saturating_sub(before.collective_bytes[index]);
            if count > 0 || bytes > 0 {
                out.push(Output::Metric(Metric::Collectives { labels: labels.clone(), kind, count, bytes }));
            }
        }
        if (sums.live, sums.peak) != (before.live, before.peak) {
            of.memory.holds(sums.live, sums.peak);
            self.memory_metric(process, &labels, None, out);
        }
    }

    /// Records of rare calls were lost: any graph may have been changed, or be another one, and whose memory is which is not known.
    pub(super) fn cuda_lost(&mut self) {
        for of in self.cuda.processes.values_mut() {
            of.graphs.lost();
            of.memory.lost();
        }
    }

    /// Tells of launches whose class is known, or will not be: `is_last`.
    fn launches_by_class(&mut self, process: u32, is_last: bool, out: &mut Vec<Output>) {
        let labels = self.cuda_labels(process);
        let now = self.now;
        let Some(of) = self.cuda.processes.get_mut(&process) else { return };
        for (class, count) in of.functions.take_counted(now, is_last) {
            out.push(Output::Metric(Metric::CudaLaunches { labels: labels.clone(), class, count }));
        }
    }

    /// The first work of a step of which nothing says when it began: the engine was idle, so what came behind its last step is this one's.
    /// Nothing before a first step: a server that starts works long before it serves.
    pub(super) fn first_call(&self, of: &Step) -> Option<EventNanos> {
        let engine = of.reference.engine;
        let ended = self.cuda.leads.get(&engine)?.ended()?;
        let its = self.cuda.processes.iter().filter(|(process, _)| engine_of(self, **process) == Some(engine));
        its.filter_map(|(_, process)| process.parts.first_work(ended, of.end)).min()
    }

    /// The totals of a step that is over, between its edges; nothing when its engine calls no CUDA.
    pub(super) fn cuda_step(&mut self, of: &Step, edges: (EventNanos, EventNanos)) -> Option<Box<StepCuda>> {
        let engine = of.reference.engine;
        let is_single = of.first_tokens == 0 && of.tokens == of.requests;
        let its: Vec<u32> =
            self.cuda.processes.keys().copied().filter(|of| engine_of(self, *of) == Some(engine)).collect();
        if its.is_empty() {
            return None;
        }
        let mut step = StepCuda::default();
        let lead = self.cuda.leads.entry(engine).or_default();
        for process in its {
            let Some(of) = self.cuda.processes.get_mut(&process) else { continue };
            lead.take(process, &mut of.parts, edges);
        }
        lead.ends(edges, is_single, &mut step);
        if step.is_empty() && !self.cuda.seen_at.contains(&engine) {
            return None;
        }
        self.cuda.seen_at.insert(engine);
        Some(Box::new(step))
    }

    /// A process is gone: what it held is free. What it launched leaves when the names of all of it are known.
    pub(super) fn cuda_exited(&mut self, process: u32, at: EventNanos, out: &mut Vec<Output>) {
        let Some(of) = self.cuda.processes.get_mut(&process) else { return };
        of.ended = Some(at);
        if MemoryOf::ALL.iter().any(|kind| of.memory.held(*kind).live > 0) {
            self.memory_sweep(out);
            if let Some(of) = self.cuda.processes.get_mut(&process) {
                of.memory.ended();
            }
            let labels = self.cuda_labels(process);
            self.memory_metric(process, &labels, None, out);
        }
        self.cuda_sweep(out);
    }

    /// Lets go what ended processes launched, once it is named, or will not be.
    pub(super) fn cuda_sweep(&mut self, out: &mut Vec<Output>) {
        self.memory_sweep(out);
        let now = self.now;
        let is_due = |of: &Process| {
            of.ended.is_some_and(|at| of.functions.are_all_named() || now.saturating_sub(at) > functions::PATIENCE)
        };
        let due = self.cuda.processes.iter().filter(|(_, of)| is_due(of)).map(|(process, _)| *process);
        for process in due.collect::<Vec<_>>() {
            self.cuda_flush(process, out);
        }
    }

    /// The run is over.
    pub(super) fn cuda_finish(&mut self, out: &mut Vec<Output>) {
        self.memory_sweep(out);
        for process in self.cuda.processes.keys().copied().collect::<Vec<_>>() {
            self.cuda_flush(process, out);
        }
    }

    /// Nothing more is told of a process: launches count as what they are known to be, calls that wait for their step leave without,
    /// then a row for each kernel.
    fn cuda_flush(&mut self, process: u32, out: &mut Vec<Output>) {
        self.launches_by_class(process, true, out);
        self.release_calls(process, true, out);
        let Some(of) = self.cuda.processes.remove(&process) else { return };
        self.cuda.parents.remove(&process);
        self.cuda.changes += 1;
        let server = Arc::clone(&self.about.server);
        let rows = of.functions.rows().map(|row| KernelRow { process, server: Arc::clone(&server), ..row });
        out.extend(rows.map(|row| Output::Kernel(Box::new(row))));
    }

    /// The rank of a process among the workers of its engine: as their titles say; where one has none, its place in the order of their
    /// numbers.
    fn rank(&self, process: u32) -> Option<u32> {
        let engine = engine_of(self, process)?;
        if self.about.role(process) != Some(Role::Worker) {
            return None;
        }
        let workers = || self.about.of_role(Role::Worker).filter(|worker| engine_of(self, *worker) == Some(engine));
        if workers().all(|worker| self.about.rank(worker).is_some()) {
            return self.about.rank(process);
        }
        Some(workers().filter(|worker| *worker < process).count() as u32)
    }
}

#[cfg(test)]
mod tests;
