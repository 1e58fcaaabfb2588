//! Where inputs come from: the rings of the kernel side (live), or a syscall log (replay).

pub mod descriptors;
pub mod ring;
