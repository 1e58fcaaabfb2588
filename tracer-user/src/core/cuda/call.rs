//! Calls that are told one by one, until the step is known that they are part of.
//!
//! Held at most [`MAX_HELD`] calls and [`HOLD`] long; then they leave without a step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::collectives::{self, Entered, Skew};
use super::functions::nameless;
use super::graphs::Contents;
use super::{Place, Process, engine_of};
use crate::core::Core;
use crate::input::cuda::{Call, CallKind, FunctionKey, Launch};
use crate::input::{EventNanos, LossStage};
use crate::output::cuda::{CudaCall, CudaWhat, KernelName, MemoryHeld, StepCuda, StepGraph};
use crate::output::{Output, SpanId, TraceId, UnixNanos};

/// Calls of a process that wait for their step.
const MAX_HELD: usize = 65_536;
/// How long they wait, ns: a step of a long prompt on a small GPU.
const HOLD: EventNanos = 5_000_000_000;
/// Kernels that a step names.
const TOP: usize = 5;
/// Kernels that a graph's launch names.
const GRAPH_KERNELS: usize = 32;

#[derive(Debug, Clone, Copy)]
enum What {
    Launch(Launch),
    Call(Call),
    Memory(MemoryHeld),
}

#[derive(Debug, Clone, Copy)]
struct Held {
    /// When it was entered, and when it was told of.
    from: EventNanos,
    at: EventNanos,
    thread: u32,
    what: What,
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    held: VecDeque<Held>,
}

impl Calls {
    pub(super) fn launch(&mut self, at: EventNanos, thread: u32, launch: Launch) {
        self.held.push_back(Held { from: at, at, thread, what: What::Launch(launch) });
    }

    pub(super) fn call(&mut self, at: EventNanos, thread: u32, call: Call) {
        self.held.push_back(Held { from: call.entered, at, thread, what: What::Call(call) });
    }

    /// Of devices, after an allocation or a free.
    pub(super) fn memory(&mut self, at: EventNanos, thread: u32, held: MemoryHeld) {
        self.held.push_back(Held { from: at, at, thread, what: What::Memory(held) });
    }

    /// Takes those that were entered by `until`, out of those that were by `end`. A wait stands where it came back.
    fn take(&mut self, until: EventNanos, end: EventNanos) -> Vec<Held> {
        let by_end = std::iter::from_fn(|| self.held.pop_front_if(|held| held.from <= end));
        let (its, later): (Vec<Held>, Vec<Held>) = by_end.partition(|held| held.from <= until);
        for held in later.into_iter().rev() {
            self.held.push_front(held);
        }
        its
    }

    /// What waits no longer, and whether it went for want of room.
    fn overdue(&mut self, now: EventNanos, wait: bool) -> Option<(Held, bool)> {
        let too_many = self.held.len() > MAX_HELD;
        let held = self.held.pop_front_if(|held| !wait || too_many || held.at.saturating_add(HOLD) < now)?;
        Some((held, wait && too_many))
    }
}

/// Calls that leave one by one; of others the sums are enough.
pub(super) fn is_drawn(what: &CallKind) -> bool {
    matches!(
        what,
        CallKind::Copy { .. }
            | CallKind::Set { .. }
            | CallKind::Wait { .. }
            | CallKind::GraphLaunch { .. }
            | CallKind::Collective { .. }
    )
}

/// Launches by kernel, of a step.
type Counts = BTreeMap<String, (Arc<KernelName>, u64)>;

/// The most frequent of them, so many.
fn top(counts: Counts, most: usize) -> Vec<(Arc<KernelName>, u64)> {
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_by(|(one, a), (other, b)| b.cmp(a).then_with(|| one.short.cmp(&other.short)));
    counts.truncate(most);
    counts
}

/// The kernels of a graph, most frequent first.
fn named(contents: &Contents, of: &Process) -> Vec<(Arc<KernelName>, u64)> {
    let mut by_key: BTreeMap<FunctionKey, u64> = BTreeMap::new();
    for key in &contents.kernels {
        *by_key.entry(*key).or_default() += 1;
    }
    let mut counts = Counts::new();
    for (key, count) in by_key {
        let name = of.functions.name(key);
        counts.entry(name.name.clone()).or_insert((name, 0)).1 += count;
    }
    top(counts, GRAPH_KERNELS)
}

/// Graphs of a step, by process and handle.
type Graphs = BTreeMap<(u32, u64), StepGraph>;

fn add_graph(call: &CudaCall, graphs: &mut Graphs) {
    let CudaWhat::GraphLaunch { graph, nodes, kernels, changed, .. } = &call.what else { return };
    let key = (call.process, *graph);
    if graphs.len() >= StepCuda::MAX_GRAPHS && !graphs.contains_key(&key) {
        return;
    }
    let of = graphs.entry(key).or_insert_with(|| StepGraph {
        graph: *graph,
        rank: call.rank,
        launches: 0,
        nodes: *nodes,
        kernels: kernels.clone(),
        changed: false,
    });
    of.launches += 1;
    of.changed |= changed;
}

fn most_frequent(graphs: Graphs) -> Vec<StepGraph> {
    let processes: BTreeSet<u32> = graphs.keys().map(|(process, _)| *process).collect();
    let is_one = processes.len() < 2;
    let with_rank = |graph: StepGraph| StepGraph { rank: graph.rank.filter(|_| !is_one), ..graph };
    let mut graphs: Vec<StepGraph> = graphs.into_values().map(with_rank).collect();
    graphs.sort_by_key(|graph| std::cmp::Reverse(graph.launches));
    graphs
}

impl Core {
    /// Lets calls go that no step will be told for; `all`: no step will be told any more.
    pub(super) fn release_calls(&mut self, process: u32, all: bool, out: &mut Vec<Output>) {
        let now = self.now;
        let place = self.place(process);
        // Which engine's a process is may be known by the engine's first message alone, which comes behind its first step. What is no
        // server has no engine, and no steps.
        let may_have_steps = place.engine.is_some() || !self.about.server.engine.is_empty();
        let wait = !all && may_have_steps && self.engine.has_messages();
        let mut crowded_out = 0;
        while let Some((held, is_crowded)) =
            self.cuda.processes.get_mut(&process).and_then(|of| of.calls.overdue(now, wait))
        {
            crowded_out += u64::from(is_crowded);
            let call = self.leaving(process, place, held, None);
            out.push(Output::Cuda(Box::new(call)));
        }
        self.count_loss(LossStage::Evicted, crowded_out, out);
    }

    /// Gives the calls between the edges of a step to it, or those that its totals are of where the engine launches ahead; the launches are
    /// its kernels.
    pub(in crate::core) fn calls_of_step(
        &mut self,
        engine: u32,
        edges: (EventNanos, EventNanos),
        step: (TraceId, SpanId),
        cuda: &mut StepCuda,
        out: &mut Vec<Output>,
    ) {
        let its = self.cuda.processes.keys().copied().filter(|of| engine_of(self, *of) == Some(engine));
        let mut counts = Counts::new();
        let mut graphs = Graphs::new();
        let mut ranks: BTreeMap<u32, Vec<Entered>> = BTreeMap::new();
        for process in its.collect::<Vec<_>>() {
            let place = self.place(process);
            let (from, until) = self.cuda.leads.get(&engine).map_or(edges, |lead| lead.window(process, edges));
            let Some(of) = self.cuda.processes.get_mut(&process) else { continue };
            for held in of.calls.take(until, edges.1) {
                let is_in_it = held.from >= from;
                if is_in_it && let What::Call(Call { what: CallKind::Collective { kind, bytes, .. }, .. }) = held.what {
                    cuda.collectives += 1;
                    let rank = place.rank.unwrap_or(process);
                    ranks.entry(rank).or_default().push(Entered { at: held.from, kind, bytes });
                }
                let call = self.leaving(process, place, held, is_in_it.then_some(step));
                if is_in_it && let CudaWhat::Launch { kernel, weight, .. } = &call.what {
                    if let Some((_, count)) = counts.get_mut(&kernel.name) {
                        *count += u64::from(*weight);
                    } else {
                        counts.insert(kernel.name.clone(), (Arc::clone(kernel), u64::from(*weight)));
                    }
                    if cuda.kernels.len() < StepCuda::MAX_KERNELS {
                        Arc::make_mut(&mut cuda.kernels).push(call.clone());
                    }
                }
                if is_in_it {
                    add_graph(&call, &mut graphs);
                }
                out.push(Output::Cuda(Box::new(call)));
            }
        }
        cuda.top = top(counts, TOP);
        cuda.graphs = most_frequent(graphs);
        if let Some(Skew { most, straggler }) = collectives::skew(&ranks) {
            (cuda.collective_skew_ns, cuda.straggler) = (Some(most), straggler);
        }
    }

    fn leaving(&self, process: u32, place: Place, held: Held, step: Option<(TraceId, SpanId)>) -> CudaCall {
        let unix = |at: EventNanos| UnixNanos(self.about.clock.unix(at));
        let of = self.cuda.processes.get(&process);
        let (what, stream, end) = match held.what {
            What::Launch(launch) => {
                let Launch { key, stream, grid, block, shared, weight, .. } = launch;
                let kernel = of.map_or_else(|| nameless(key), |of| of.functions.name(key));
                (CudaWhat::Launch { kernel, grid, block, shared, weight }, Some(stream), None)
            }
            What::Memory(MemoryHeld { live, peak }) => (CudaWhat::Memory { live, peak }, None, None),
            What::Call(Call { what, stream, .. }) => match what {
                CallKind::Copy { kind, bytes } => (CudaWhat::Copy { kind, bytes }, Some(stream), None),
                CallKind::Wait { of } => (CudaWhat::Wait { of }, Some(stream), Some(unix(held.at))),
                CallKind::GraphLaunch { exec } => {
                    let known = of.and_then(|of| of.graphs.get(exec));
                    let contents = known.and_then(|exec| exec.contents.as_ref());
                    let nodes = contents.map(|contents| contents.nodes);
                    let replays = known.map_or(1, |exec| exec.replays);
                    let changed = known.is_some_and(|exec| exec.changed);
                    let kernels = contents.zip(of).map_or_else(Vec::new, |(contents, of)| named(contents, of));
                    (CudaWhat::GraphLaunch { graph: exec, nodes, kernels, changed, replays }, Some(stream), None)
                }
                CallKind::Collective { kind, bytes, communicator } => {
                    (CudaWhat::Collective { kind, bytes, communicator }, Some(stream), None)
                }
                // Others are not held.
                CallKind::Set { bytes } => (CudaWhat::Set { bytes }, Some(stream), None),
                _ => (CudaWhat::Set { bytes: 0 }, Some(stream), None),
            },
        };
        CudaCall {
            server: Arc::clone(&self.about.server),
            process,
            thread: held.thread,
            engine: place.engine,
            rank: place.rank,
            start: unix(held.from),
            end,
            stream,
            step,
            what,
        }
    }
}
