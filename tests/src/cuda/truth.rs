//! What a program says that it did, counted by itself.
//!
//! Times are nanoseconds of `CLOCK_MONOTONIC`. Streams are the script's numbers; `Truth::streams` has their handles. A launch into a
//! capture is a node of its graph and no launch.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// As the program sees its own pid.
    pub pid: u32,
    /// `runtime-12`, `runtime-13-per-thread`, `driver`, …
    pub api: String,
    /// Calls that went through the program's own hooks, by function.
    pub patched: BTreeMap<String, u64>,
    pub bench: Vec<Bench>,
    /// The handles of the eight streams, as CUDA gets them; the first is the default one.
    pub streams: Vec<u64>,
    /// The newest thread first, the main thread last.
    pub threads: Vec<ThreadTruth>,
    pub total: Tally,
    pub graphs: Vec<Graph>,
    /// Device memory (plain, managed, async) at the end, and at most.
    pub live_bytes: u64,
    pub peak_bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bench {
    pub name: String,
    pub launches: u64,
    pub ns_per_launch: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadTruth {
    /// Its id in its own pid namespace.
    pub thread: u32,
    /// Steps and what is outside of them.
    pub total: Tally,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub start_ns: u64,
    pub end_ns: u64,
    pub tally: Tally,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    pub count: u64,
    pub bytes: u64,
}

/// Launches of one kernel in one shape.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launches {
    /// As it is registered, mangled.
    pub name: String,
    /// `launch`, `launch_ex`, `launch_cooperative`, `stub`, `nccl`
    pub how: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: usize,
    /// Of one of them: the `CUfunction` for a program of the driver's API, the host function for one of the runtime; 0 of NCCL's.
    pub handle: u64,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    pub launches: Vec<Launches>,
    /// Launch calls that became nodes of a graph.
    pub captured: u64,
    /// By the graph's name.
    pub graph_launches: BTreeMap<String, u64>,
    /// By the kind that the call said: `h2h`, `h2d`, `d2h`, `d2d`, `default`, `peer`.
    pub copies: BTreeMap<String, Amount>,
    /// Those of the kind `default`, by what they were.
    pub default_copies: BTreeMap<String, Amount>,
    pub memsets: Amount,
    /// `stream`, `event`, `device`
    pub syncs: BTreeMap<String, u64>,
    /// In those calls, measured around them.
    pub sync_wait_ns: u64,
    /// In copies that wait, measured around them.
    pub copy_wait_ns: u64,
    pub allocations: Amount,
    pub frees: Amount,
    pub host_allocations: Amount,
    pub host_frees: Amount,
    /// By kind as NCCL spells it: `AllReduce`, …; bytes are elements by the size of one.
    pub collectives: BTreeMap<String, Amount>,
}

impl Tally {
    /// Launch calls that were no nodes, NCCL's among them where a driver is mapped.
    pub fn launch_count(&self) -> u64 {
        self.launches.iter().map(|launches| launches.count).sum()
    }

    pub fn graph_launch_count(&self) -> u64 {
        self.graph_launches.values().sum()
    }

    /// Launches by registered name.
    pub fn by_name(&self) -> BTreeMap<&str, u64> {
        let mut names = BTreeMap::new();
        for launches in &self.launches {
            *names.entry(launches.name.as_str()).or_default() += launches.count;
        }
        names
    }
}

/// A graph as it is at the end.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    pub name: String,
    /// The handle of the executable graph.
    pub exec: u64,
    /// Its kernel nodes in the order of their capture, one each.
    pub kernels: Vec<Launches>,
    /// Its copy and memset nodes.
    pub copies: u64,
    pub memsets: u64,
    /// How often it was updated.
    pub updates: u32,
    pub destroyed: bool,
}
