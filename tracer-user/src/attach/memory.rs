//! What the kernel side keeps of processes that call CUDA, from user space: memory that they hold, and collectives that they sent.
//!
//! Enters: the maps of processes, of their peaks, blocks and captures. Leaves: sums that have moved since they were last told. Invariant: of a
//! process that is gone nothing stays in a map.

use std::collections::HashMap;

use aya::maps::{HashMap as Map, MapData, PerCpuHashMap};
use tracer_ebpf::wire::cuda::{Block, CaptureKey, Process};

use crate::input::cuda::OfProcess;

/// [`Process`] as a map's value.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct ProcessRow(Process);

// SAFETY: `#[repr(C)]` of plain integers without padding.
unsafe impl aya::Pod for ProcessRow {}

/// [`Block`] as a map's key.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct BlockRow(Block);

// SAFETY: as above.
unsafe impl aya::Pod for BlockRow {}

/// [`CaptureKey`] as a map's key.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct CaptureRow(CaptureKey);

// SAFETY: as above.
unsafe impl aya::Pod for CaptureRow {}

/// The maps.
pub(super) struct Memory {
    processes: Map<MapData, u32, ProcessRow>,
    peaks: PerCpuHashMap<MapData, u32, u64>,
    blocks: Map<MapData, BlockRow, u64>,
    captures: Map<MapData, CaptureRow, u64>,
    told: HashMap<u32, OfProcess>,
}

impl Memory {
    pub(super) fn new(
        (processes, peaks): (Map<MapData, u32, ProcessRow>, PerCpuHashMap<MapData, u32, u64>),
        (blocks, captures): (Map<MapData, BlockRow, u64>, Map<MapData, CaptureRow, u64>),
    ) -> Self {
        Self { processes, peaks, blocks, captures, told: HashMap::new() }
    }

    fn of(&self, process: u32) -> Option<OfProcess> {
        let Process { live, collectives, collective_bytes, .. } = self.processes.get(&process, 0).ok()?.0;
        let peak = self.peaks.get(&process, 0).ok().and_then(|peaks| peaks.iter().copied().max()).unwrap_or(0);
        Some(OfProcess { live, peak, collectives, collective_bytes })
    }

    /// The sums of processes that have moved since they were told; of one, or of all.
    pub(super) fn moved(&mut self, only: Option<u32>) -> Vec<(u32, OfProcess)> {
        let all = || self.processes.keys().filter_map(Result::ok).collect();
        let processes: Vec<u32> = only.map_or_else(all, |process| vec![process]);
        let mut moved = Vec::new();
        for process in processes {
            let Some(sums) = self.of(process) else { continue };
            if self.told.insert(process, sums) != Some(sums) {
                moved.push((process, sums));
            }
        }
        moved
    }

    /// The sums did not arrive: all are told once more.
    pub(super) fn tell_again(&mut self) {
        self.told.clear();
    }

    /// A process is gone, and was told of.
    pub(super) fn forget(&mut self, process: u32) {
        self.told.remove(&process);
        if self.processes.remove(&process).is_err() {
            // It never called anything.
            return;
        }
        let _ = self.peaks.remove(&process);
        let process = u64::from(process);
        let blocks: Vec<BlockRow> = self.blocks.keys().filter_map(Result::ok).collect();
        for block in blocks.into_iter().filter(|block| block.0.process == process) {
            let _ = self.blocks.remove(&block);
        }
        let captures: Vec<CaptureRow> = self.captures.keys().filter_map(Result::ok).collect();
        for capture in captures.into_iter().filter(|capture| capture.0.process == process) {
            let _ = self.captures.remove(&capture);
        }
    }
}
