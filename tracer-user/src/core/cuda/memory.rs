//! Memory that a process has through CUDA, of devices and of the host: what it holds, held at most, and which library asked for it.
//!
//! Enters: what the process holds of devices, as the kernel side keeps it; allocations and frees with where they were called from; which
//! library lies there, when that is known. Leaves: totals, bytes by library (`unknown` where nothing says it, so that all together are what
//! the process holds), and libraries that allocate on and free nothing. Of what was there before the attach nothing is known; freeing it
//! changes nothing. Caching allocators hold what they do not use. Bounded: what finds no room has no library, and is counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Core;
use crate::input::EventNanos;
use crate::input::cuda::{CallKind, MemoryOf};
use crate::output::cuda::{Growing, MemoryHeld};
use crate::output::{Labels, Metric, Output};

/// Allocations of a kind that are told apart.
const MAX_BLOCKS: usize = 262_144;
/// Places in code that allocate; what further ones ask for has no library.
const MAX_CALLERS: usize = 1024;
/// Libraries of an engine that are told apart, the first to come; torch, NCCL, cuBLAS, and what else one server loads.
const MAX_LIBRARIES: usize = 16;
/// A library that holds more at the end of each of so many such times, one after the other, and freed nothing in them, grows: as long as a
/// server takes from one kind of load to the next, and no allocator warms up for.
const WINDOW: EventNanos = 5_000_000_000;
const WINDOWS: u32 = 6;

/// What nothing is known of, and what found no room.
const UNKNOWN: &str = "unknown";
const OTHER: &str = "other";

#[derive(Debug, Clone, Copy)]
struct Block {
    bytes: u64,
    caller: u64,
}

/// Blocks of a kind of memory, by address.
#[derive(Debug, Default)]
struct Blocks(HashMap<u64, Block>);

impl Blocks {
    /// What was at this address before, whose free was lost; nothing, and false, where there is no room.
    fn takes(&mut self, address: u64, block: Block) -> (Option<Block>, bool) {
        if self.0.len() >= MAX_BLOCKS && !self.0.contains_key(&address) {
            return (None, false);
        }
        (self.0.insert(address, block), true)
    }
}

/// A place in code that allocates.
#[derive(Debug, Default)]
struct Caller {
    library: Option<Arc<str>>,
    /// Bytes of devices.
    live: u64,
    /// Something of it was freed in this window.
    has_freed: bool,
}

/// How a library's memory moves, from window to window.
#[derive(Debug, Default)]
struct Trend {
    /// At the end of the last window, and when it began to grow, bytes.
    live: u64,
    from: u64,
    /// Windows in which it grew, up to now.
    windows: u32,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    device: Blocks,
    host: Blocks,
    held: [MemoryHeld; MemoryOf::ALL.len()],
    /// By address; 0: not known.
    callers: BTreeMap<u64, Caller>,
    trends: BTreeMap<Arc<str>, Trend>,
    /// The end of this window.
    until: Option<EventNanos>,
    /// Something that nothing is known of was freed in this window.
    has_freed: bool,
    /// Bytes by library are others since they were told.
    has_moved: bool,
    refused: u64,
}

impl Memory {
    pub(super) fn called(&mut self, what: &CallKind, caller: u64) {
        match *what {
            CallKind::Alloc { address, bytes, live } => {
                self.holds(live, 0);
                if address == 0 {
                    return;
                }
                let caller =
                    if self.callers.len() < MAX_CALLERS || self.callers.contains_key(&caller) { caller } else { 0 };
                let (before, has_room) = self.device.takes(address, Block { bytes, caller });
                if let Some(before) = before {
                    self.freed(before);
                }
                self.refused += u64::from(!has_room);
                if has_room {
                    let caller = self.callers.entry(caller).or_default();
                    caller.live = caller.live.saturating_add(bytes);
                    self.has_moved = true;
                }
            }
            CallKind::Free { address, bytes, live } => {
                self.holds(live, 0);
                match self.device.0.remove(&address) {
                    Some(block) => self.freed(block),
                    None => self.has_freed |= bytes > 0,
                }
            }
            CallKind::HostAlloc { address, bytes } if address != 0 => {
                let (before, has_room) = self.host.takes(address, Block { bytes, caller });
                self.refused += u64::from(!has_room);
                if has_room {
                    let MemoryHeld { live, peak } = &mut self.held[MemoryOf::Host as usize];
                    *live = live.saturating_sub(before.map_or(0, |before| before.bytes)).saturating_add(bytes);
                    *peak = (*peak).max(*live);
                }
            }
            CallKind::HostFree { address } => {
                let bytes = self.host.0.remove(&address).map_or(0, |block| block.bytes);
                let MemoryHeld { live, .. } = &mut self.held[MemoryOf::Host as usize];
                *live = live.saturating_sub(bytes);
            }
            _ => {}
        }
    }

    /// It holds so much of devices; `peak`: and held so much at some time.
    pub(super) fn holds(&mut self, live: u64, peak: u64) {
        let held = &mut self.held[MemoryOf::Device as usize];
        self.has_moved |= held.live != live;
        *held = MemoryHeld { live, peak: held.peak.max(live).max(peak) };
    }

    /// Records were lost, of frees too: whose the memory is, is not known any more, nor whether it grows.
    pub(super) fn lost(&mut self) {
        self.device.0.clear();
        for caller in self.callers.values_mut() {
            caller.live = 0;
        }
        self.trends.clear();
        self.has_moved = true;
    }

    fn freed(&mut self, block: Block) {
        if let Some(caller) = self.callers.get_mut(&block.caller) {
            caller.live = caller.live.saturating_sub(block.bytes);
            caller.has_freed = true;
            self.has_moved = true;
        }
    }

    /// Which library lies at a place that allocates.
    fn lies_in(&mut self, caller: u64, library: &Arc<str>) {
        if let Some(caller) = self.callers.get_mut(&caller) {
            caller.library = Some(Arc::clone(library));
            self.has_moved = true;
        }
    }

    /// Bytes of devices by library, also of those that hold none any more; and whether something of it was freed.
    fn by_library(&self) -> BTreeMap<Arc<str>, (u64, bool)> {
        let mut sums: BTreeMap<Arc<str>, (u64, bool)> = BTreeMap::new();
        let (mut known, mut has_freed_unknown) = (0_u64, self.has_freed);
        for Caller { library, live, has_freed } in self.callers.values() {
            let Some(library) = library else {
                has_freed_unknown |= has_freed;
                continue;
            };
            let (sum, any) = sums.entry(Arc::clone(library)).or_default();
            (*sum, *any) = (sum.saturating_add(*live), *any || *has_freed);
            known = known.saturating_add(*live);
        }
        let unknown = self.held(MemoryOf::Device).live.saturating_sub(known);
        if unknown > 0 {
            let (sum, any) = sums.entry(Arc::from(UNKNOWN)).or_default();
            (*sum, *any) = (sum.saturating_add(unknown), *any || has_freed_unknown);
        }
        sums
    }

    /// Looks at the window that is over at `now`, if one is: libraries that grow since then.
    fn grows(&mut self, now: EventNanos) -> Vec<Growing> {
        let until = *self.until.get_or_insert(now.saturating_add(WINDOW));
        if now < until {
            return Vec::new();
        }
        self.until = Some(now.saturating_add(WINDOW));
        let mut growing = Vec::new();
        let libraries = self.by_library();
        self.trends.retain(|library, _| libraries.contains_key(library));
        for (library, (live, has_freed)) in libraries {
            let trend = self.trends.entry(Arc::clone(&library)).or_default();
            if live <= trend.live || has_freed {
                *trend = Trend { live, from: live, windows: 0 };
                continue;
            }
            trend.live = live;
            trend.windows += 1;
            if trend.windows == WINDOWS {
                let (by, seconds) = (live.saturating_sub(trend.from), f64::from(WINDOWS) * WINDOW as f64 / 1e9);
                growing.push(Growing { server: Arc::default(), process: 0, library, live, by, seconds });
            }
        }
        self.callers.values_mut().for_each(|caller| caller.has_freed = false);
        self.has_freed = false;
        growing
    }

    fn is_growing(&self) -> bool {
        self.trends.values().any(|trend| trend.windows >= WINDOWS)
    }

    /// Allocations that found no room since the last call.
    pub(super) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    pub(super) fn held(&self, of: MemoryOf) -> MemoryHeld {
        self.held[of as usize]
    }

    /// The process is gone, and all it held is free. Its libraries are still told of, once.
    pub(super) fn ended(&mut self) {
        let callers = std::mem::take(&mut self.callers).into_iter();
        let callers =
            callers.map(|(at, caller)| (at, Caller { library: caller.library, ..Caller::default() })).collect();
        *self = Self { callers, has_moved: self.has_moved || self.held(MemoryOf::Device).live > 0, ..Self::default() };
    }
}

/// Of an engine: what its processes held together at most, and the libraries that its series tell apart.
#[derive(Debug, Default)]
pub(super) struct EngineMemory {
    peaks: [u64; MemoryOf::ALL.len()],
    libraries: Vec<Arc<str>>,
    /// What was said last of each, bytes.
    told: BTreeMap<Arc<str>, u64>,
    is_growing: bool,
}

impl EngineMemory {
    /// The name under which a library is told: its own, for the first to come.
    fn told_as(&mut self, library: &Arc<str>) -> Arc<str> {
        if self.libraries.contains(library) || **library == *UNKNOWN {
            return Arc::clone(library);
        }
        if self.libraries.len() >= MAX_LIBRARIES {
            return Arc::from(OTHER);
        }
        self.libraries.push(Arc::clone(library));
        Arc::clone(library)
    }

    /// Bytes by library are these now: what is news of that. What is in it no longer holds nothing.
    fn tell(&mut self, sums: BTreeMap<Arc<str>, u64>) -> Vec<(Arc<str>, u64)> {
        let mut now: BTreeMap<Arc<str>, u64> = self.told.keys().map(|library| (Arc::clone(library), 0)).collect();
        for (library, live) in sums {
            let total = now.entry(self.told_as(&library)).or_default();
            *total = total.saturating_add(live);
        }
        let news = now.iter().filter(|(library, live)| self.told.get(*library) != Some(*live));
        let news = news.map(|(library, live)| (Arc::clone(library), *live)).collect();
        self.told = now;
        news
    }
}

impl Core {
    /// Which library lies at a place that allocates.
    pub(in crate::core) fn cuda_caller(&mut self, process: u32, caller: u64, library: &Arc<str>) {
        if let Some(of) = self.cuda.processes.get_mut(&process) {
            of.memory.lies_in(caller, library);
        }
    }

    /// What the processes of an engine hold together; `allocated`: one of these came.
    pub(super) fn memory_metric(
        &mut self,
        process: u32,
        labels: &Labels,
        allocated: Option<MemoryOf>,
        out: &mut Vec<Output>,
    ) {
        let engine = self.cuda_series(process);
        let its = self.cuda.processes.iter().filter(|(other, _)| self.cuda_series(**other) == engine);
        let mut held = [MemoryHeld::default(); MemoryOf::ALL.len()];
        for (_, process) in its {
            for of in MemoryOf::ALL {
                let MemoryHeld { live, peak } = process.memory.held(of);
                // What one of them held at most is part of the most that they did.
                let all = &mut held[of as usize];
                *all = MemoryHeld { live: all.live.saturating_add(live), peak: all.peak.max(peak) };
            }
        }
        let known = self.cuda.memory.entry(engine).or_default();
        for (held, peak) in held.iter_mut().zip(&mut known.peaks) {
            *peak = held.live.max(held.peak).max(*peak);
            held.peak = *peak;
        }
        out.push(Output::Metric(Metric::CudaMemory { labels: labels.clone(), held, allocated }));
    }

    /// Tells of bytes by library where they have moved, and of libraries that grow.
    pub(super) fn memory_sweep(&mut self, out: &mut Vec<Output>) {
        let now = self.now;
        let (mut moved, mut looked) = (false, false);
        for (process, of) in &mut self.cuda.processes {
            if of.memory.callers.is_empty() && !of.memory.has_moved {
                continue;
            }
            looked = true;
            moved |= std::mem::take(&mut of.memory.has_moved);
            for growing in of.memory.grows(now) {
                let server = Arc::clone(&self.about.server);
                out.push(Output::Growing(Box::new(Growing { process: *process, server, ..growing })));
            }
        }
        if !looked {
            return;
        }
        let mut engines: BTreeMap<u32, (bool, BTreeMap<Arc<str>, u64>)> = BTreeMap::new();
        for (process, of) in &self.cuda.processes {
            let (is_growing, sums) = engines.entry(self.cuda_series(*process)).or_default();
            *is_growing |= of.memory.is_growing();
            for (library, (live, _)) in if moved { of.memory.by_library() } else { BTreeMap::new() } {
                let total = sums.entry(library).or_default();
                *total = total.saturating_add(live);
            }
        }
        for (engine, (is_growing, sums)) in engines {
            let labels = self.about.labels(engine);
            let known = self.cuda.memory.entry(engine).or_default();
            let news = if moved { known.tell(sums) } else { Vec::new() };
            let of = |(library, live)| Metric::CudaLibraryMemory { labels: labels.clone(), library, live };
            out.extend(news.into_iter().map(of).map(Output::Metric));
            if std::mem::replace(&mut known.is_growing, is_growing) != is_growing {
                out.push(Output::Metric(Metric::CudaMemoryGrowing { labels, is_growing }));
            }
        }
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
