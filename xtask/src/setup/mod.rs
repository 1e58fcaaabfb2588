//! `cargo xtask setup`: installs what is missing, each part once, into the cache folder.

pub mod ebpf;
