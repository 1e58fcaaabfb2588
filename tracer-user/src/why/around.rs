//! What went on around a request, out of what is kept.
//!
//! Enters: a store, of which as little is done as can be: it is locked meanwhile. Steps are found by time; of each request that is kept the
//! root is looked at, in whatever order they came. Leaves: of those that overlap, the phases.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::case::{int, uncached};
use super::{Around, Prefill, limits};
use crate::model::keys::{attribute, span};
use crate::output::{Span, SpanId, Trace};
use crate::store::Store;
use crate::store::steps::Steps;

/// What a store has that may matter to a request; nothing of it is looked into yet.
#[derive(Debug, Default)]
pub struct Near {
    around: Around,
    /// Requests of its server that overlap it, or what came next.
    others: Vec<Arc<Trace>>,
}

/// What `store` has of it.
pub fn around(store: &Store, trace: &Trace) -> Around {
    Near::of(store, trace).around(trace)
}

impl Near {
    /// The part that needs the store.
    pub fn of(store: &Store, trace: &Trace) -> Self {
        let Some(root) = trace.spans.first() else { return Self::default() };
        let mut near = Self::default();
        for engine in engines_of(trace) {
            let (steps, engine) = (store.steps(), Steps::key(&trace.server, engine));
            near.around.steps.extend(steps.during(&engine, root.start_ns, root.end_ns).cloned());
            near.around.before.extend(steps.before(&engine, root.start_ns, limits::BEFORE).cloned());
            let after = steps.during(&engine, root.end_ns, u64::MAX);
            near.around.after.extend(after.filter(|of| of.start_ns >= root.end_ns).take(limits::AFTER).cloned());
        }
        near.around.steps.sort_by_key(|step| step.end_ns);
        near.around.after.sort_by_key(|step| step.end_ns);
        let until = near.around.until(root.end_ns);
        for other in store.requests() {
            let Some(of) = other.trace.spans.first() else { continue };
            let overlaps = of.start_ns < until && of.end_ns > root.start_ns;
            let is_other = (of.trace_id, of.span_id) != (root.trace_id, root.span_id);
            if overlaps && is_other && same_server(trace, &other.trace) {
                near.others.push(Arc::clone(&other.trace));
            }
        }
        near
    }

    /// The part that does not.
    pub fn around(self, trace: &Trace) -> Around {
        let Self { mut around, others } = self;
        let Some(root) = trace.spans.first() else { return around };
        let (engines, until) = (engines_of(trace), around.until(root.end_ns));
        for other in others {
            prefills(&other, &engines, (root.start_ns, until), &mut around.prefills);
            let tokenize = other.spans.iter().find(|of| of.name == span::TOKENIZE);
            let times = tokenize.map(|of| (of.start_ns, of.end_ns));
            around.tokenizing.extend(times.filter(|of| of.0 < root.end_ns && of.1 > root.start_ns));
        }
        around
    }
}

impl Around {
    /// When the last step that is known of ended, or the request did at `end_ns`.
    fn until(&self, end_ns: u64) -> u64 {
        self.after.iter().map(|step| step.end_ns).max().unwrap_or(end_ns).max(end_ns)
    }
}

/// Each once.
fn engines_of(trace: &Trace) -> Vec<u32> {
    let mut engines: Vec<u32> = trace.spans.iter().filter_map(engine_of).collect();
    engines.sort_unstable();
    engines.dedup();
    engines
}

fn engine_of(of: &Span) -> Option<u32> {
    int(of, attribute::ENGINE_INDEX).and_then(|engine| u32::try_from(engine).ok())
}

fn same_server(one: &Trace, other: &Trace) -> bool {
    Arc::ptr_eq(&one.server, &other.server)
        || (one.server.pid == other.server.pid && one.server.instance() == other.server.instance())
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
