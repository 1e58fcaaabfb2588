//! Engine steps that are over, of all engines.
//!
//! Enters: steps, an engine's in the order of their ends. Leaves: steps by id, and those of an engine at a time. Invariant: no more bytes
//! are held than are allowed; the oldest go first, and a step that is larger than all of them is not kept. A step's launches, where they
//! are told one by one, are most of what it takes: at most half of the room is theirs, and those of older steps go before the steps do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::size;
use crate::input::Server;
use crate::output::{CudaCall, EngineStep, SpanId, TraceId};

/// Names of servers that are remembered before those are forgotten whose steps are gone.
const MAX_NAMES: usize = 256;

/// An engine: the instance of its server and that one's process (two servers in a container are one instance), and its number there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineKey {
    pub server: Arc<str>,
    pub pid: u32,
    pub engine: u32,
}

/// Launches of a step.
#[derive(Debug)]
struct Launches {
    of: (TraceId, SpanId),
    bytes: usize,
}

#[derive(Debug, Default)]
pub struct Steps {
    by_engine: BTreeMap<EngineKey, VecDeque<Arc<EngineStep>>>,
    by_id: BTreeMap<(TraceId, SpanId), Arc<EngineStep>>,
    /// Whose the steps are, in the order in which they came.
    order: VecDeque<EngineKey>,
    /// Names of servers, each once: a step brings the server, not its name.
    names: BTreeSet<Arc<str>>,
    /// By the step's id; and in the order in which they came.
    launches: BTreeMap<(TraceId, SpanId), Arc<Vec<CudaCall>>>,
    launches_order: VecDeque<Launches>,
    bytes: usize,
    launches_bytes: usize,
    dropped: u64,
    launches_dropped: u64,
}

impl Steps {
    /// Keeps a step, where `bytes` are enough for it; gives whose it is.
    pub fn push(&mut self, step: Arc<EngineStep>, bytes: usize) -> EngineKey {
        let key = self.key_of(&step);
        let step = self.part(step);
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

    /// Takes a step's launches off it.
    fn part(&mut self, step: Arc<EngineStep>) -> Arc<EngineStep> {
        let Some(kernels) = step.cuda.as_ref().map(|cuda| &cuda.kernels).filter(|kernels| !kernels.is_empty()) else {
            return step;
        };
        let (of, kernels, bytes) = ((step.trace_id, step.span_id), Arc::clone(kernels), size::of_launches(kernels));
        self.launches.insert(of, kernels);
        self.launches_order.push_back(Launches { of, bytes });
        self.launches_bytes += bytes;
        let mut step = Arc::unwrap_or_clone(step);
        if let Some(cuda) = &mut step.cuda {
            cuda.let_go();
        }
        Arc::new(step)
    }

    /// A step with its launches, where they are still kept; one without says how many there were.
    pub fn whole(&self, step: &Arc<EngineStep>) -> Arc<EngineStep> {
        let Some(kernels) = self.launches.get(&(step.trace_id, step.span_id)) else { return Arc::clone(step) };
        let mut step = EngineStep::clone(step);
        if let Some(cuda) = &mut step.cuda {
            (cuda.kernels, cuda.kernels_let_go) = (Arc::clone(kernels), false);
        }
        Arc::new(step)
    }

    fn key_of(&mut self, step: &EngineStep) -> EngineKey {
        let (name, pid) = (step.server.instance(), step.server.pid);
        if let Some(known) = self.names.get(&*name) {
            return EngineKey { server: Arc::clone(known), pid, engine: step.engine };
        }
        // Of servers that came and went.
        if self.names.len() >= MAX_NAMES {
            let by_engine = &self.by_engine;
            self.names.retain(|name| by_engine.keys().any(|key| key.server == *name));
        }
        let server: Arc<str> = name.into();
        self.names.insert(Arc::clone(&server));
        EngineKey { server, pid, engine: step.engine }
    }

    /// The engine of this number of a server.
    pub fn key(server: &Server, engine: u32) -> EngineKey {
        EngineKey { server: server.instance().into(), pid: server.pid, engine }
    }

    /// Drops what ended before `from_ns`, and the oldest until `bytes` are left.
    pub fn shrink(&mut self, bytes: usize, from_ns: u64) {
        while self.launches_bytes > bytes / 2 {
            let Some(oldest) = self.launches_order.pop_front() else { break };
            self.launches_bytes = self.launches_bytes.saturating_sub(oldest.bytes);
            // Those of a step that was dropped went with it.
            self.launches_dropped += u64::from(self.launches.remove(&oldest.of).is_some());
        }
        while let Some(key) = self.order.front() {
            let Some(steps) = self.by_engine.get_mut(key) else { break };
            let is_old = steps.front().is_some_and(|step| step.end_ns < from_ns);
            if !is_old && self.held_bytes() <= bytes {
                break;
            }
            let Some(steps) = self.by_engine.get_mut(key) else { break };
            if let Some(step) = steps.pop_front() {
                self.bytes = self.bytes.saturating_sub(size::of_step(&step));
                self.by_id.remove(&(step.trace_id, step.span_id));
                self.launches.remove(&(step.trace_id, step.span_id));
                self.dropped += 1;
            }
            if steps.is_empty() {
                self.by_engine.remove(key);
            }
            self.order.pop_front();
        }
        // Launches of steps that went are nobody's bytes.
        while let Some(gone) = self.launches_order.pop_front_if(|oldest| !self.launches.contains_key(&oldest.of)) {
            self.launches_bytes = self.launches_bytes.saturating_sub(gone.bytes);
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
        key: &EngineKey,
        from_ns: u64,
        to_ns: u64,
    ) -> impl DoubleEndedIterator<Item = &Arc<EngineStep>> {
        self.by_engine.get(key).into_iter().flat_map(move |steps| {
            let first = steps.partition_point(|step| step.end_ns <= from_ns);
            let end = steps.partition_point(|step| step.start_ns < to_ns);
            steps.range(first..end.max(first))
        })
    }

    /// The newest `most` steps of an engine that were over by `at_ns`, oldest first.
    pub fn before(&self, key: &EngineKey, at_ns: u64, most: usize) -> impl Iterator<Item = &Arc<EngineStep>> {
        self.by_engine.get(key).into_iter().flat_map(move |steps| {
            let end = steps.partition_point(|step| step.end_ns <= at_ns);
            steps.range(end.saturating_sub(most)..end)
        })
    }

    pub fn held_bytes(&self) -> usize {
        self.bytes + self.launches_bytes
    }

    /// Steps whose launches went before they did.
    pub fn launches_dropped(&self) -> u64 {
        self.launches_dropped
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
