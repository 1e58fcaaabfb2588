//! The wire format between the kernel side and the user side.
//!
//! Builds for the host and for BPF; no aya here. What enters: nothing. What leaves: `#[repr(C)]` records with explicit
//! padding whose sizes are asserted at compile time.
#![no_std]

pub mod wire;
