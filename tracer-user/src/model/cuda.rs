//! Draws what a step did with CUDA: attributes of its span, and a span a launch where launches are told one by one.
//!
//! A launch is a point in time: when the call was made. How long the kernel ran on the GPU is not observed, and not drawn.

use super::generation::Generation;
use super::keys::{attribute, span};
use super::trace_ids;
use crate::output::cuda::{CudaCall, CudaWhat, StepCuda, StepGraph};
use crate::output::{EngineStep, Span, SpanKind, SpanStatus, Value};

/// Characters of a kernel's full name; those of cutlass have 10,000.
const NAME_MAX: usize = 512;
/// Kernels that a graph names in a step's attribute.
const GRAPH_KERNELS: usize = 8;

type Attributes = Vec<(&'static str, Value)>;

fn int(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn seconds(ns: u64) -> Value {
    Value::Float(ns as f64 / 1e9)
}

/// What its steps did for a request, when each did as much for every request of its batch: estimated. All shares of a step together are
/// the step, once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    pub steps: u64,
    pub launches: f64,
    pub graph_launches: f64,
    /// By `CopyKind`.
    pub copies: [f64; 6],
    pub copy_bytes: [f64; 6],
    pub wait_ns: f64,
}

impl Share {
    /// Adds a step that had so many requests.
    pub fn add(&mut self, step: &StepCuda, requests: usize) {
        let of = 1.0 / requests.max(1) as f64;
        self.steps += 1;
        self.launches += step.launches as f64 * of;
        self.graph_launches += step.graph_launches as f64 * of;
        self.wait_ns += step.wait_ns as f64 * of;
        for kind in 0..self.copies.len() {
            self.copies[kind] += step.copies[kind] as f64 * of;
            self.copy_bytes[kind] += step.copy_bytes[kind] as f64 * of;
        }
    }

    /// Adds another one.
    fn join(&mut self, other: &Self) {
        self.steps += other.steps;
        self.launches += other.launches;
        self.graph_launches += other.graph_launches;
        self.wait_ns += other.wait_ns;
        for kind in 0..self.copies.len() {
            self.copies[kind] += other.copies[kind];
            self.copy_bytes[kind] += other.copy_bytes[kind];
        }
    }
}

/// Adds the shares of a request's generations.
pub fn share(generations: &[&Generation], add: &mut impl FnMut(&'static str, Option<Value>)) {
    let mut all = Share::default();
    for of in generations.iter().filter_map(|generation| generation.cuda.as_deref()) {
        all.join(of);
    }
    if all.steps == 0 {
        return;
    }
    add(attribute::CUDA_SHARE_PROVENANCE, Some(Value::Str("estimated".into())));
    add(attribute::CUDA_SHARE_STEPS, Some(int(all.steps)));
    add(attribute::CUDA_SHARE_LAUNCHES, Some(Value::Float(all.launches)));
    add(attribute::CUDA_SHARE_GRAPH_LAUNCHES, Some(Value::Float(all.graph_launches)));
    add(attribute::CUDA_SHARE_WAIT, Some(Value::Float(all.wait_ns / 1e9)));
    for (kind, (copies, bytes)) in attribute::CUDA_SHARE_COPIES.into_iter().enumerate() {
        if all.copies[kind] > 0.0 {
            add(copies, Some(Value::Float(all.copies[kind])));
            add(bytes, Some(Value::Float(all.copy_bytes[kind])));
        }
    }
}

/// Adds the totals of a step.
pub fn attributes(of: &StepCuda, attributes: &mut Attributes) {
    attributes.push((attribute::CUDA_LAUNCHES, int(of.launches)));
    attributes.push((attribute::CUDA_GRAPH_LAUNCHES, int(of.graph_launches)));
    if let Some(mode) = of.mode() {
        attributes.push((attribute::CUDA_MODE, Value::Str(mode.name().into())));
    }
    if of.fell_back {
        attributes.push((attribute::CUDA_FELL_BACK, Value::Bool(true)));
    }
    attributes.push((attribute::CUDA_GAP, seconds(of.gap_ns)));
    attributes.push((attribute::CUDA_WAITS, int(of.waits)));
    attributes.push((attribute::CUDA_WAIT, seconds(of.wait_ns)));
    for (kind, (copies, bytes)) in attribute::CUDA_COPIES.into_iter().enumerate() {
        if of.copies[kind] > 0 {
            attributes.push((copies, int(of.copies[kind])));
            attributes.push((bytes, int(of.copy_bytes[kind])));
        }
    }
    if of.sets > 0 {
        attributes.push((attribute::CUDA_SETS, int(of.sets)));
        attributes.push((attribute::CUDA_SET_BYTES, int(of.set_bytes)));
    }
    if of.processes > 1 {
        attributes.push((attribute::CUDA_PROCESSES, int(u64::from(of.processes))));
        attributes.push((attribute::CUDA_SKEW, seconds(of.skew_ns)));
    }
    if of.collectives > 0 {
        attributes.push((attribute::CUDA_COLLECTIVES, int(of.collectives)));
    }
    if let Some(skew) = of.collective_skew_ns {
        attributes.push((attribute::CUDA_COLLECTIVE_SKEW, seconds(skew)));
    }
    if let Some(rank) = of.straggler {
        attributes.push((attribute::CUDA_STRAGGLER, int(u64::from(rank))));
    }
    if of.estimated {
        attributes.push((attribute::CUDA_ESTIMATED, Value::Bool(true)));
    }
    if !of.top.is_empty() {
        let top = of.top.iter().map(|(name, count)| format!("{} ×{count}", name.short).into()).collect();
        attributes.push((attribute::CUDA_TOP, Value::StrList(top)));
    }
    if !of.graphs.is_empty() {
        let graphs = of.graphs.iter().map(|graph| words(graph).into()).collect();
        attributes.push((attribute::CUDA_GRAPHS, Value::StrList(graphs)));
    }
    if of.begins_with_call {
        attributes.push((attribute::CUDA_BEGINS_WITH_CALL, Value::Bool(true)));
    }
}

/// `graph 0x7f… ×2: rms_norm ×3, silu ×1`; what is not known of it is said.
fn words(of: &StepGraph) -> String {
    let StepGraph { graph, rank, launches, nodes, kernels, changed } = of;
    let rank = rank.map(|rank| format!(" of rank {rank}")).unwrap_or_default();
    let kernels: Vec<String> =
        kernels.iter().take(GRAPH_KERNELS).map(|(name, count)| format!("{} ×{count}", name.short)).collect();
    let contents = match (nodes, changed) {
        (None, _) => "contents unknown".to_owned(),
        (Some(_), true) => format!("changed since: {}", kernels.join(", ")),
        (Some(nodes), false) if kernels.is_empty() => format!("{nodes} nodes"),
        (Some(_), false) => kernels.join(", "),
    };
    format!("graph {graph:#x}{rank} ×{launches}: {contents}")
}

/// A span for each of the first `max` launches of a step; and how many launches have none.
pub fn spans(step: &EngineStep, of: &StepCuda, max: usize) -> (Vec<Span>, u64) {
    let spans: Vec<Span> =
        (0..).zip(of.kernels.iter()).take(max).filter_map(|(index, call)| launch(step, index, call)).collect();
    // Where they are not told one by one there is none to miss.
    let is_told = !of.kernels.is_empty() || of.kernels_let_go;
    let dropped = if is_told { of.launches.saturating_sub(spans.len() as u64) } else { 0 };
    (spans, dropped)
}

fn launch(step: &EngineStep, index: u64, call: &CudaCall) -> Option<Span> {
    let CudaWhat::Launch { kernel, grid, block, shared, .. } = &call.what else { return None };
    let three = |[x, y, z]: [u32; 3]| Value::Str(format!("{x}x{y}x{z}").into());
    let full: String = kernel.demangled.chars().take(NAME_MAX).collect();
    let attributes = vec![
        (attribute::PROVENANCE, Value::Str("observed".into())),
        (attribute::CUDA_KERNEL, Value::Str(kernel.short.clone().into())),
        (attribute::CUDA_KERNEL_NAME, Value::Str(full.into())),
        (attribute::CUDA_CLASS, Value::Str(kernel.class.name().into())),
        (attribute::CUDA_NAMED_BY, Value::Str(kernel.named_by.name().into())),
        (attribute::CUDA_GRID, three(*grid)),
        (attribute::CUDA_BLOCK, three(*block)),
        (attribute::CUDA_SHARED, int(u64::from(*shared))),
        (attribute::CUDA_STREAM, Value::Str(format!("{:#x}", call.stream.unwrap_or(0)).into())),
    ];
    Some(Span {
        trace_id: step.trace_id,
        span_id: trace_ids::span(step.trace_id, index + 1, span::CUDA_LAUNCH, 0),
        parent: Some(step.span_id),
        parent_is_remote: false,
        trace_state: None,
        name: span::CUDA_LAUNCH,
        kind: SpanKind::Internal,
        start_ns: call.start.0,
        end_ns: call.start.0,
        status: SpanStatus::Unset,
        attributes,
        events: Vec::new(),
        links: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::cuda::{Class, KernelName, NamedBy};

    #[test]
    fn shares_of_a_step_are_the_step_once() {
        // one step of 3 requests, which copied 2 × 10 bytes to the device and 1 × 6 back
        let step = StepCuda { copies: [0, 2, 1, 0, 0, 0], copy_bytes: [0, 20, 6, 0, 0, 0], ..StepCuda::default() };
        let mut all = Share::default();
        for _ in 0..3 {
            let mut share = Share::default();
            share.add(&step, 3);
            all.join(&share);
        }
        let near = |of: [f64; 6], expected: [f64; 6]| of.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(near(all.copies, [0.0, 2.0, 1.0, 0.0, 0.0, 0.0]), "{all:?}");
        assert!(near(all.copy_bytes, [0.0, 20.0, 6.0, 0.0, 0.0, 0.0]), "{all:?}");
    }

    #[test]
    fn a_graph_says_what_it_holds_or_that_this_is_not_known() {
        let name = |short: &str| {
            let (name, demangled, short) = (short.to_owned(), short.to_owned(), short.to_owned());
            std::sync::Arc::new(KernelName { name, demangled, short, class: Class::Other, named_by: NamedBy::Handle })
        };
        let graph = StepGraph {
            graph: 0xabc,
            rank: None,
            launches: 2,
            nodes: Some(5),
            kernels: vec![(name("rms_norm"), 3), (name("silu"), 1)],
            changed: false,
        };
        assert_eq!(words(&graph), "graph 0xabc ×2: rms_norm ×3, silu ×1");
        let changed = StepGraph { changed: true, rank: Some(1), ..graph.clone() };
        assert_eq!(words(&changed), "graph 0xabc of rank 1 ×2: changed since: rms_norm ×3, silu ×1");
        let unknown = StepGraph { nodes: None, kernels: Vec::new(), ..graph.clone() };
        assert_eq!(words(&unknown), "graph 0xabc ×2: contents unknown");
        assert_eq!(words(&StepGraph { kernels: Vec::new(), ..graph }), "graph 0xabc ×2: 5 nodes");
    }
}
