//! An engine step out of its tree.
//!
//! Enters: a tree whose root is a step. Leaves: the step; `None` where it lacks what every step says. Of its launches one by one nothing is
//! made, nor of what its graphs hold: the totals and the most frequent kernels are what is asked of a step.

use std::sync::Arc;

use super::record::{count, flag, float, text, value};
use super::trees::Tree;
use crate::engine::SchedulerStats;
use crate::kernel::name::Kernel;
use crate::model::keys::attribute;
use crate::output::cuda::{KernelName, NamedBy, StepCuda};
use crate::output::{EngineStep, Span, Value};

pub(super) fn step(tree: &Tree) -> Option<EngineStep> {
    let root = tree.spans.first()?;
    let n = |key| count(root, key);
    let stats = n(attribute::RUNNING).map(|running| SchedulerStats {
        running,
        waiting: n(attribute::WAITING).unwrap_or(0),
        kv_cache_usage: float(root, attribute::KV_USAGE).unwrap_or(0.0),
        ..SchedulerStats::default()
    });
    let links = root.links.iter().take(EngineStep::MAX_LINKS);
    Some(EngineStep {
        server: Arc::clone(&tree.server),
        trace_id: root.trace_id,
        span_id: root.span_id,
        engine: u32::try_from(n(attribute::ENGINE_INDEX)?).ok()?,
        start_ns: root.start_ns,
        end_ns: root.end_ns,
        requests: n(attribute::BATCH_REQUESTS)?,
        tokens: n(attribute::BATCH_TOKENS)?,
        first_tokens: n(attribute::BATCH_FIRST_TOKENS).unwrap_or(0),
        prefill_tokens: n(attribute::BATCH_PREFILL_TOKENS).unwrap_or(0),
        decode_tokens: n(attribute::BATCH_DECODE_TOKENS).unwrap_or(0),
        batch: links.map(|link| (link.trace_id, link.span_id)).collect(),
        stats,
        cuda: cuda(root).map(Box::new),
    })
}

/// What it did with CUDA, where it says so.
fn cuda(root: &Span) -> Option<StepCuda> {
    let n = |key| count(root, key).unwrap_or(0);
    let is = |key| flag(root, key).unwrap_or(false);
    let ns = |key| float(root, key).map(nanos);
    let mut out = StepCuda {
        launches: count(root, attribute::CUDA_LAUNCHES)?,
        graph_launches: n(attribute::CUDA_GRAPH_LAUNCHES),
        sets: n(attribute::CUDA_SETS),
        set_bytes: n(attribute::CUDA_SET_BYTES),
        waits: n(attribute::CUDA_WAITS),
        wait_ns: ns(attribute::CUDA_WAIT).unwrap_or(0),
        gap_ns: ns(attribute::CUDA_GAP).unwrap_or(0),
        // As many as its mode says: one, or several.
        graphs_of_one: match text(root, attribute::CUDA_MODE) {
            Some("graph") => 1,
            Some("piecewise") => 2,
            _ => 0,
        },
        processes: count(root, attribute::CUDA_PROCESSES).and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
        skew_ns: ns(attribute::CUDA_SKEW).unwrap_or(0),
        collectives: n(attribute::CUDA_COLLECTIVES),
        collective_skew_ns: ns(attribute::CUDA_COLLECTIVE_SKEW),
        straggler: count(root, attribute::CUDA_STRAGGLER).and_then(|rank| u32::try_from(rank).ok()),
        estimated: is(attribute::CUDA_ESTIMATED),
        fell_back: is(attribute::CUDA_FELL_BACK),
        top: top(root),
        begins_with_call: is(attribute::CUDA_BEGINS_WITH_CALL),
        ..StepCuda::default()
    };
    for (kind, (copies, bytes)) in attribute::CUDA_COPIES.into_iter().enumerate() {
        (out.copies[kind], out.copy_bytes[kind]) = (n(copies), n(bytes));
    }
    Some(out)
}

/// `name ×count`, as a step's span says it.
fn top(root: &Span) -> Vec<(Arc<KernelName>, u64)> {
    let Some(Value::StrList(list)) = value(root, attribute::CUDA_TOP) else { return Vec::new() };
    let kernel = |said: &Arc<str>| {
        let (short, count) = said.rsplit_once(" ×")?;
        let Kernel { name, demangled, short, class } = Kernel::named(short);
        // How it was named is not said with it; nobody who reads of a step asks.
        Some((Arc::new(KernelName { name, demangled, short, class, named_by: NamedBy::Handle }), count.parse().ok()?))
    };
    list.iter().filter_map(kernel).collect()
}

/// Of seconds; what is below 0 is 0.
fn nanos(seconds: f64) -> u64 {
    // A cast of a float stops at the ends of the type.
    (seconds * 1e9).round() as u64
}
