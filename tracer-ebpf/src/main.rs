//! The eBPF programs. On the host this is an empty binary so that `cargo check` covers the workspace.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}
