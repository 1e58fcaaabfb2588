//! The rings, and the counters of what found no room.
//!
//! A ring is known by its index: into the map `DROPS`, into the global `WAKE_BYTES`, and into user space's list of rings.

/// Request edges: few, small, and never starved by payloads.
pub const EDGES: u32 = 0;
/// Payloads.
pub const DATA: u32 = 1;
/// Calls of CUDA libraries.
pub const LAUNCHES: u32 = 2;
/// How many rings there are.
pub const RINGS: usize = 3;

/// Index into the map of drops, behind those of the rings: descriptors that found their table full.
pub const DROPS_DESCRIPTORS: u32 = RINGS as u32;
/// Index into the map of drops: calls of threads, and functions, that found their table full.
pub const DROPS_CUDA: u32 = RINGS as u32 + 1;
/// Elements of the map of drops.
pub const DROPS_LEN: u32 = RINGS as u32 + 2;
