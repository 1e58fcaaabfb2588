//! What the loaded programs of inferspan have run so far, as the kernel counts it: one JSON object, by program.
//!
//! The kernel counts while `/proc/sys/kernel/bpf_stats_enabled` is 1 (Documentation/admin-guide/sysctl/kernel.rst).

use std::collections::BTreeMap;

use anyhow::Result;
use aya::programs::loaded_programs;
use serde::Serialize;

const PROGRAMS: [&str; 8] =
    ["sys_exit", "walk", "process_fork", "process_exec", "process_exit", "call_entry", "call_return", "call_only"];

#[derive(Debug, Default, Serialize)]
struct Cost {
    runs: u64,
    nanos: u64,
}

fn main() -> Result<()> {
    let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
    // One may be unloaded while they are listed.
    for program in loaded_programs().flatten() {
        let Some(name) = program.name_as_str().filter(|name| PROGRAMS.contains(name)) else { continue };
        let cost = costs.entry(name.to_owned()).or_default();
        cost.runs += program.run_count();
        cost.nanos += u64::try_from(program.run_time().as_nanos())?;
    }
    println!("{}", serde_json::to_string(&costs)?);
    Ok(())
}
