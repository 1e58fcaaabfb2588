//! The rings, and the counters of what found no room.
//!
//! A ring is known by its index: into the map `DROPS`, into the global `WAKE_BYTES`, and into user space's list of rings.

/// Request edges: few, small, and never starved by payloads.
pub const EDGES: u32 = 0;
/// Payloads.
pub const DATA: u32 = 1;
/// Calls of CUDA libraries of which there may be millions.
pub const LAUNCHES: u32 = 2;
/// Calls of CUDA libraries that are rare, and never starved by launches: memory, collectives, captures and what is in them, graphs, the
/// first launch of a function.
pub const RARE: u32 = 3;
/// How many rings there are.
pub const RINGS: usize = 4;

/// Their sizes where nothing else is said, bytes: power-of-two numbers of pages.
pub const BYTES: [u32; RINGS] = [
    1 << 20,
    // 0.5 s of a server that moves 16 MiB/s through its sockets; the reader drains every 10 ms.
    1 << 23,
    // 50,000 launches: 50 ms of a million a second.
    1 << 22,
    // 47,000 calls; or 3,600 functions, which is what vLLM launches in its first minute.
    1 << 22,
];

/// A ring that holds more than this part of its size wakes its reader.
pub const WAKE_PART: u32 = 4;

/// Index into the map of drops, behind those of the rings: descriptors that found their table full.
pub const DROPS_DESCRIPTORS: u32 = RINGS as u32;
/// Index into the map of drops: calls of threads, functions and memory that found their table full.
pub const DROPS_CUDA: u32 = RINGS as u32 + 1;
/// Elements of the map of drops.
pub const DROPS_LEN: u32 = RINGS as u32 + 2;
