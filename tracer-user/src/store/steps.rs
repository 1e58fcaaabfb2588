//! Engine steps that are over, of all engines.
//!
//! Enters: steps, an engine's in the order of their ends. Leaves: steps by id, and those of an engine at a time. Invariant: no more bytes
//! are held than are allowed; the oldest go first, and a step that is larger than all of them is not kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::size;
use crate::output::{EngineStep, SpanId, TraceId};

/// Names of servers that are remembered before those are forgotten whose steps are gone.
const MAX_NAMES: usize = 256;

/// An engine: the instance of its server, and its number there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineKey {
    pub server: Arc<str>,
    pub engine: u32,
}

#[derive(Debug, Default)]
pub struct Steps {
    by_engine: BTreeMap<EngineKey, VecDeque<Arc<EngineStep>>>,
    by_id: BTreeMap<(TraceId, SpanId), Arc<EngineStep>>,
    /// Whose the steps are, in the order in which they came.
    order: VecDeque<EngineKey>,
    /// Names of servers, each once: a step brings the server, not its name.
    names: BTreeSet<Arc<str>>,
    bytes: usize,
    dropped: u64,
}

impl Steps {
    /// Keeps a step, where `bytes` are enough for it; gives whose it is.
    pub fn push(&mut self, step: Arc<EngineStep>, bytes: usize) -> EngineKey {
        let key = self.key_of(&step);
        let size = size::of_step(&step);
        if size > bytes {
            self.dropped += 1;
            return key;
        }
        self.bytes += size;
        self.by_id.insert((step.trace_id, step.span_id), Arc::clone(&step));
        self.by_engine.entry(key.clone()).or_default().push_back(step);
        self.order.push_back(key.clone());
        key
    }

    fn key_of(&mut self, step: &EngineStep) -> EngineKey {
        let name = step.server.instance();
        if let Some(known) = self.names.get(&*name) {
            return EngineKey { server: Arc::clone(known), engine: step.engine };
        }
        // Of servers that came and went.
        if self.names.len() >= MAX_NAMES {
            let by_engine = &self.by_engine;
            self.names.retain(|name| by_engine.keys().any(|key| key.server == *name));
        }
        let server: Arc<str> = name.into();
        self.names.insert(Arc::clone(&server));
        EngineKey { server, engine: step.engine }
    }

    /// Drops what ended before `from_ns`, and the oldest until `bytes` are left.
    pub fn shrink(&mut self, bytes: usize, from_ns: u64) {
        while let Some(key) = self.order.front() {
            let Some(steps) = self.by_engine.get_mut(key) else { break };
            let is_old = steps.front().is_some_and(|step| step.end_ns < from_ns);
            if !is_old && self.bytes <= bytes {
                break;
            }
            if let Some(step) = steps.pop_front() {
                self.bytes = self.bytes.saturating_sub(size::of_step(&step));
                self.by_id.remove(&(step.trace_id, step.span_id));
                self.dropped += 1;
            }
            if steps.is_empty() {
                self.by_engine.remove(key);
            }
            self.order.pop_front();
        }
    }

    pub fn count(&self) -> usize {
        self.order.len()
    }

    pub fn by_id(&self, trace: TraceId, span: SpanId) -> Option<&Arc<EngineStep>> {
        self.by_id.get(&(trace, span))
    }

    /// The steps of a trace: one, unless ids fall together.
    pub fn of_trace(&self, trace: TraceId) -> impl Iterator<Item = &Arc<EngineStep>> {
        let ids = (trace, SpanId([0; 8]))..=(trace, SpanId([0xff; 8]));
        self.by_id.range(ids).map(|(_, step)| step)
    }

    /// The engines whose steps are kept, with them, oldest first.
    pub fn engines(&self) -> impl Iterator<Item = (&EngineKey, &VecDeque<Arc<EngineStep>>)> {
        self.by_engine.iter()
    }

    /// The steps of an engine that overlap `from_ns..to_ns`, oldest first.
    pub fn during(
        &self,
        server: &str,
        engine: u32,
        from_ns: u64,
        to_ns: u64,
    ) -> impl DoubleEndedIterator<Item = &Arc<EngineStep>> {
        let key = EngineKey { server: server.into(), engine };
        self.by_engine.get(&key).into_iter().flat_map(move |steps| {
            let first = steps.partition_point(|step| step.end_ns <= from_ns);
            let end = steps.partition_point(|step| step.start_ns < to_ns);
            steps.range(first..end.max(first))
        })
    }

    pub fn held_bytes(&self) -> usize {
        self.bytes
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
