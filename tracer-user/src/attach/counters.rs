//! What the kernel side has counted of CUDA calls, from user space.
//!
//! Enters: the maps of threads and of functions. Leaves: totals that have moved since they were last looked at. Invariant: a thread's totals
//! are taken when they stand still, so that no half of a call is in them; entries of what is gone are taken out.

use std::collections::{BTreeSet, HashMap, HashSet};

use aya::maps::{HashMap as Map, MapData};
use tracer_ebpf::wire::cuda::{FunctionKey as WireKey, Thread};

use super::memory::Memory;
use crate::decode::record::cuda::{key, sums};
use crate::input::EventNanos;
use crate::input::cuda::{FunctionKey, OfProcess, Sums};

/// A thread that called nothing for so long will not tell of its burst by itself soon, ns.
const IDLE: EventNanos = 2_000_000;
/// A thread is looked at until it was idle for so long, then once a second, ns.
const BUSY: EventNanos = 100_000_000;

/// [`Thread`] as a map's value.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct ThreadRow(Thread);

// SAFETY: `#[repr(C)]` of plain integers without padding.
unsafe impl aya::Pod for ThreadRow {}

/// [`WireKey`] as a map's key.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct FunctionRow(WireKey);

// SAFETY: `#[repr(C)]` of plain integers without padding.
unsafe impl aya::Pod for FunctionRow {}

/// The totals of a thread.
#[derive(Debug, Clone, Copy)]
pub struct OfThread {
    pub process: u32,
    pub thread: u32,
    pub sums: Sums,
}

/// The maps.
pub struct Counters {
    threads: Map<MapData, u64, ThreadRow>,
    functions: Map<MapData, FunctionRow, u64>,
    /// When each thread last called, as it was told.
    told: HashMap<u64, EventNanos>,
    counted: HashMap<FunctionKey, u64>,
    /// Of them, those whose first launch was told of.
    met: HashSet<FunctionKey>,
    /// Threads that called of late.
    busy: BTreeSet<u64>,
    memory: Memory,
}

impl Counters {
    pub(super) fn new(
        (threads, functions): (Map<MapData, u64, ThreadRow>, Map<MapData, FunctionRow, u64>),
        memory: Memory,
    ) -> Self {
        let (told, counted, met, busy) = (HashMap::new(), HashMap::new(), HashSet::new(), BTreeSet::new());
        Self { threads, functions, told, counted, met, busy, memory }
    }

    /// What processes hold, and have sent, where it has moved since it was told; of one process, or of all.
    pub fn processes(&mut self, only: Option<u32>) -> Vec<(u32, OfProcess)> {
        self.memory.moved(only)
    }

    /// A burst of the thread was told of by the kernel side.
    pub fn heard(&mut self, process: u32, thread: u32, sums: &Sums) {
        let key = u64::from(process) << 32 | u64::from(thread);
        self.told.insert(key, sums.last);
        self.busy.insert(key);
    }

    /// What was told of late did not arrive: the totals that are still here are told once more. Those of processes that went meanwhile are
    /// not.
    pub fn tell_again(&mut self) {
        self.told.clear();
        self.busy.extend(self.threads.keys().filter_map(Result::ok));
        self.counted.clear();
        self.memory.tell_again();
    }

    /// The first launch of a function was told of.
    pub fn met(&mut self, function: FunctionKey) {
        self.met.insert(function);
    }

    /// Functions that were counted, and of which no first launch was told: the ring was full then. Each is given once. Rings are to be
    /// drained between the count and this.
    pub fn unmet(&mut self) -> Vec<FunctionKey> {
        let unmet: Vec<_> = self.counted.keys().filter(|function| !self.met.contains(function)).copied().collect();
        self.met.extend(&unmet);
        unmet
    }

    /// Threads that stand still at `now` and have called since they were told of. `all`: every thread is looked at, else those that called
    /// of late.
    pub fn threads(&mut self, now: EventNanos, all: bool) -> Vec<OfThread> {
        if all {
            self.busy.extend(self.threads.keys().filter_map(Result::ok));
        }
        let mut moved = Vec::new();
        for key in self.busy.clone() {
            let read = || self.threads.get(&key, 0).ok().map(|row| sums(&row.0.sums));
            let Some(first) = read() else {
                self.busy.remove(&key);
                self.told.remove(&key);
                continue;
            };
            if now.saturating_sub(first.last) > BUSY {
                self.busy.remove(&key);
            }
            let is_told = self.told.get(&key) == Some(&first.last);
            if is_told || now.saturating_sub(first.last) < IDLE || read() != Some(first) {
                continue;
            }
            self.told.insert(key, first.last);
            moved.push(OfThread { process: (key >> 32) as u32, thread: key as u32, sums: first });
        }
        moved
    }

    /// Takes out threads that are gone (`is_gone`: process, thread) and were told of; gives them. A process may make and end millions.
    pub fn take_ended(&mut self, is_gone: impl Fn(u32, u32) -> bool) -> Vec<(u32, u32)> {
        let keys: Vec<u64> = self.threads.keys().filter_map(Result::ok).collect();
        let mut ended = Vec::new();
        for key in keys {
            let (process, thread) = ((key >> 32) as u32, key as u32);
            let last = self.threads.get(&key, 0).map(|row| row.0.sums.last);
            if last.is_ok_and(|last| self.told.get(&key) == Some(&last)) && is_gone(process, thread) {
                let _ = self.threads.remove(&key);
                self.told.remove(&key);
                self.busy.remove(&key);
                ended.push((process, thread));
            }
        }
        ended
    }

    /// The threads of a process that is gone, as far as they were not told of.
    pub fn of_process(&mut self, process: u32) -> Vec<OfThread> {
        let keys: Vec<u64> = self.threads.keys().filter_map(Result::ok).collect();
        let its = keys.into_iter().filter(|key| (key >> 32) as u32 == process);
        let rows = its.filter_map(|key| Some((key, sums(&self.threads.get(&key, 0).ok()?.0.sums))));
        rows.filter(|(key, sums)| self.told.get(key) != Some(&sums.last))
            .map(|(key, sums)| OfThread { process, thread: key as u32, sums })
            .collect()
    }

    /// Functions that were launched since they were last looked at.
    pub fn functions(&mut self) -> Vec<(FunctionKey, u64)> {
        let rows: Vec<(FunctionRow, u64)> = self.functions.iter().filter_map(Result::ok).collect();
        let newest = rows.iter().map(|(row, _)| row.0.epoch).max().unwrap_or(0);
        let mut moved = Vec::new();
        for (row, count) in rows {
            let Ok(function) = key(&row.0) else { continue };
            let before = self.counted.insert(function, count);
            if before != Some(count) && (count > 0 || before.is_some()) {
                moved.push((function, count));
            } else if row.0.epoch < newest && before.is_some() {
                // Told of, and launched no more: its handle may be another function's now.
                let _ = self.functions.remove(&row);
                self.counted.remove(&function);
                self.met.remove(&function);
            }
        }
        moved
    }

    /// A process is gone, and was told of.
    pub fn forget(&mut self, process: u32) {
        let threads: Vec<u64> = self.threads.keys().filter_map(Result::ok).collect();
        for key in threads.into_iter().filter(|key| (key >> 32) as u32 == process) {
            let _ = self.threads.remove(&key);
            self.told.remove(&key);
            self.busy.remove(&key);
        }
        let functions: Vec<FunctionRow> = self.functions.keys().filter_map(Result::ok).collect();
        for row in functions.into_iter().filter(|row| row.0.process == process) {
            let _ = self.functions.remove(&row);
        }
        self.counted.retain(|function, _| function.process != process);
        self.met.retain(|function| function.process != process);
        self.memory.forget(process);
    }
}
