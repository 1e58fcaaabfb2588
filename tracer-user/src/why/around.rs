//! What went on around a request, out of what is kept.
//!
//! Steps are found by time. Requests are kept in the order in which they were over, so that those that overlap are among the ones that were
//! over since it began: of each of these the root is looked at, and of those that overlap the phases.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::case::{int, uncached};
use super::{Around, Prefill, limits};
use crate::model::keys::{attribute, span};
use crate::output::{EngineStep, Span, SpanId, Trace};
use crate::store::Store;
use crate::store::steps::{EngineKey, Steps};

/// A request may be told of so much later than it ended, ns: timers wait for its other side.
const LATE: u64 = 60_000_000_000;

/// What `store` has of it.
pub fn around(store: &Store, trace: &Trace) -> Around {
    let Some(root) = trace.spans.first() else { return Around::default() };
    let mut engines: Vec<u32> = trace.spans.iter().filter_map(engine_of).collect();
    engines.sort_unstable();
    engines.dedup();
    let mut around = Around::default();
    for &engine in &engines {
        let key = Steps::key(&trace.server, engine);
        around.steps.extend(store.steps().during(&key, root.start_ns, root.end_ns).cloned());
        around.before.extend(before(store, &key, root.start_ns));
    }
    around.steps.sort_by_key(|step| step.end_ns);
    for other in store.requests().rev() {
        let Some(of) = other.trace.spans.first() else { continue };
        if of.end_ns.saturating_add(LATE) < root.start_ns {
            break;
        }
        let overlaps = of.start_ns < root.end_ns && of.end_ns > root.start_ns;
        let is_other = (of.trace_id, of.span_id) != (root.trace_id, root.span_id);
        if overlaps && is_other && same_server(trace, &other.trace) {
            prefills(&other.trace, &engines, (root.start_ns, root.end_ns), &mut around.prefills);
            let tokenize = other.trace.spans.iter().find(|of| of.name == span::TOKENIZE);
            let times = tokenize.map(|of| (of.start_ns, of.end_ns));
            around.tokenizing.extend(times.filter(|of| of.0 < root.end_ns && of.1 > root.start_ns));
        }
    }
    around
}

fn engine_of(of: &Span) -> Option<u32> {
    int(of, attribute::ENGINE_INDEX).and_then(|engine| u32::try_from(engine).ok())
}

fn same_server(one: &Trace, other: &Trace) -> bool {
    Arc::ptr_eq(&one.server, &other.server)
        || (one.server.pid == other.server.pid && one.server.instance() == other.server.instance())
}

/// The newest that were over before.
fn before(store: &Store, engine: &EngineKey, at_ns: u64) -> impl Iterator<Item = Arc<EngineStep>> {
    store.steps().before(engine, at_ns, limits::BEFORE).cloned()
}

/// The times in which prompts of a request were computed, and what it had when it was preempted computed again.
fn prefills(other: &Trace, engines: &[u32], (from, to): (u64, u64), out: &mut Vec<Prefill>) {
    let Some(root) = other.spans.first() else { return };
    let by_parent: BTreeMap<SpanId, u32> =
        other.spans.iter().filter_map(|of| Some((of.span_id, engine_of(of)?))).collect();
    let engine = |of: &Span| of.parent.and_then(|parent| by_parent.get(&parent).copied());
    let mut add = |engine: u32, start_ns: u64, end_ns: u64, tokens: Option<u64>| {
        if engines.contains(&engine) && start_ns < to && end_ns > from {
            out.push(Prefill { trace: root.trace_id, engine, start_ns, end_ns, tokens });
        }
    };
    for of in other.spans.iter().filter(|of| of.name == span::PREFILL) {
        if let Some(engine) = engine(of) {
            add(engine, of.start_ns, of.end_ns, uncached(of));
        }
    }
    let again = |of: &&Span| super::case::text(of, attribute::REASON) == Some("preemption");
    for wait in other.spans.iter().filter(|of| of.name == span::QUEUE).filter(again) {
        let step = other
            .spans
            .iter()
            .find(|of| of.name == span::DECODE_STEP && of.start_ns <= wait.start_ns && of.end_ns >= wait.end_ns);
        if let (Some(engine), Some(step)) = (engine(wait), step) {
            add(engine, wait.end_ns, step.end_ns, None);
        }
    }
}
