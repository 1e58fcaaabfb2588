//! What a program that was traced did, by its own account.
//!
//! The CUDA program counts its calls; the decode loop's account is torch.profiler's. Written by both as one line of JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    pub count: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// Launch calls by kernel, mangled or demangled. Nodes of a capture are none.
    pub launches: BTreeMap<String, u64>,
    pub graph_launches: u64,
    /// Through libcudart, by kind (`h2h h2d d2h d2d p2p unknown`). Nothing where the account has none.
    pub copies: Option<BTreeMap<String, Amount>>,
    /// Calls that wait for a stream, an event or the device, through libcudart.
    pub waits: Option<u64>,
    /// In those calls, ns.
    pub wait_ns: Option<u64>,
    /// Of the tight loop of launches; ns of `CLOCK_MONOTONIC` a call.
    pub ns_per_launch: Option<f64>,
    /// Whether the device computed what the kernels say.
    pub is_result_right: Option<bool>,
    /// For the reader of the report.
    pub notes: Vec<String>,
}
