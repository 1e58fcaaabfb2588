//! Records that cross the ring buffers, one file a family.
//!
//! Every record starts with a [`header::Header`]; its `kind` says which struct the bytes are. Numbers and layouts here are
//! the contract between an object and the binary that loads it: a kind is never reused for another layout.

pub mod call;
pub mod cuda;
pub mod header;
pub mod map;
pub mod net;
pub mod proc;
pub mod ring;
pub mod target;
