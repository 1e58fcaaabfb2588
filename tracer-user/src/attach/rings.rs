//! The rings, as a list.

use tracer_ebpf::wire::ring::{self, BYTES, RINGS as COUNT};

use crate::input::LossStage;

/// A ring from the kernel side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Its map in the object.
    pub map: &'static str,
    /// Where a record is lost that finds it full.
    pub stage: LossStage,
    /// Its size where nothing else is said, bytes: a power-of-two number of pages.
    pub bytes: u32,
}

const fn ring(index: u32, map: &'static str, stage: LossStage) -> Ring {
    Ring { map, stage, bytes: BYTES[index as usize] }
}

/// By their indices on the wire.
pub const RINGS: [Ring; COUNT] = [
    ring(ring::EDGES, "EDGES", LossStage::EdgeRing),
    ring(ring::DATA, "DATA", LossStage::DataRing),
    ring(ring::LAUNCHES, "LAUNCHES", LossStage::LaunchRing),
    ring(ring::RARE, "RARE", LossStage::RareRing),
];
