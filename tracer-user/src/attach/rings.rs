//! The rings, as a list.

use tracer_ebpf::wire::ring::RINGS as COUNT;

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

/// By their indices on the wire.
pub const RINGS: [Ring; COUNT] = [
    Ring { map: "EDGES", stage: LossStage::EdgeRing, bytes: 1 << 20 },
    // 0.5 s of a server that moves 16 MiB/s through its sockets; the reader drains every 10 ms.
    Ring { map: "DATA", stage: LossStage::DataRing, bytes: 1 << 23 },
    // 40,000 launches: 40 ms of a million a second.
    Ring { map: "LAUNCHES", stage: LossStage::LaunchRing, bytes: 1 << 22 },
];

/// A ring that holds more than this part of its size wakes its reader.
pub const WAKE_PART: u32 = 4;
