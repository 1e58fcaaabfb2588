//! Which engine steps are exported.
//!
//! A server makes hundreds of steps a second and its requests link to a dozen each, so a step is exported when an exported
//! request links to it. A step is usually over before the requests that link to it, so the last [`KEPT`] are kept, compactly; the
//! last step of a request may come after it, so the last [`WANTED`] links that found no step are kept as well. Besides, a step
//! that took [`OUTLIER`] times the median of its engine's recent ones, and is among the slowest, goes out by itself: a few a minute.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::policy::EngineSteps;
use super::window::Window;
use crate::output::{EngineStep, SpanId, Trace, TraceId};

/// Steps that are kept for requests to come: at 100 steps a second, five minutes.
const KEPT: usize = 32_768;
/// Launches of theirs that are kept one by one, some 40 MiB: of older steps the totals are.
const KEPT_LAUNCHES: usize = 262_144;
/// Links to steps that were not seen yet.
const WANTED: usize = 4096;
/// An outlier takes this many times the median …
const OUTLIER: u64 = 3;
/// … of this many steps before it (no outlier without as many) …
const RECENT: usize = 128;
/// … is among this share of the slowest of the last minutes …
const SLOWEST: f64 = 0.01;
/// … and one of so many a minute, an engine.
const OUTLIERS_A_MINUTE: u32 = 6;
const MINUTE_NS: u64 = 60_000_000_000;
/// Engines whose outliers are looked for; those of one host are few.
const ENGINES: usize = 64;

/// A request's root span.
type Root = (TraceId, SpanId);

/// The step links to the request that links to it, whether or not it was known to be in it when the step left the core.
fn link_back(step: &mut EngineStep, root: Root) {
    if step.batch.contains(&root) {
        return;
    }
    let others = step.batch.iter().take(EngineStep::MAX_LINKS - 1);
    step.batch = std::iter::once(&root).chain(others).copied().collect();
}

fn launches_of(step: &EngineStep) -> usize {
    step.cuda.as_ref().map_or(0, |cuda| cuda.kernels.len())
}

#[derive(Debug)]
pub struct Steps {
    mode: EngineSteps,
    wants_outliers: bool,
    /// Oldest first; `None`: exported.
    kept: VecDeque<(SpanId, Option<Box<EngineStep>>)>,
    /// How many steps left `kept` at its front: what `places` count from.
    gone: u64,
    /// Launches that those in `kept` hold, and the first of them, counted as `places` are, that may hold any.
    launches: usize,
    first_whole: u64,
    places: HashMap<SpanId, u64>,
    /// By a step's span: in which order it was asked for, and for which request.
    wanted: HashMap<SpanId, (u64, Root)>,
    /// Oldest first; an entry whose number is not the one in `wanted` was found since.
    wanted_order: VecDeque<(SpanId, u64)>,
    next_wanted: u64,
    engines: BTreeMap<(u32, u64, u32), Engine>,
}

impl Steps {
    pub fn new(mode: EngineSteps, wants_outliers: bool) -> Self {
        Self {
            mode,
            wants_outliers,
            kept: VecDeque::new(),
            gone: 0,
            launches: 0,
            first_whole: 0,
            places: HashMap::new(),
            wanted: HashMap::new(),
            wanted_order: VecDeque::new(),
            next_wanted: 0,
            engines: BTreeMap::new(),
        }
    }

    /// Takes a step: the step back when it is exported now, and how many were left out for good by this.
    pub fn push(&mut self, mut step: Box<EngineStep>) -> (Option<Box<EngineStep>>, u64) {
        match self.mode {
            EngineSteps::Off => return (None, 1),
            EngineSteps::All => return (Some(step), 0),
            EngineSteps::Linked => {}
        }
        let id = step.span_id;
        let is_outlier = self.wants_outliers && self.is_outlier(&step);
        let asked_for = self.wanted.remove(&id);
        if let Some((_, root)) = asked_for {
            link_back(&mut step, root);
        }
        let (now, later) = if asked_for.is_some() || is_outlier { (Some(step), None) } else { (None, Some(step)) };
        let mut left_out = 0;
        if self.kept.len() == KEPT
            && let Some((oldest, step)) = self.kept.pop_front()
        {
            if self.places.get(&oldest) == Some(&self.gone) {
                self.places.remove(&oldest);
            }
            self.gone += 1;
            left_out = u64::from(step.is_some());
            self.launches -= step.as_deref().map_or(0, launches_of);
        }
        self.places.insert(id, self.gone + self.kept.len() as u64);
        self.launches += later.as_deref().map_or(0, launches_of);
        self.kept.push_back((id, later));
        self.let_launches_go();
        (now, left_out)
    }

    /// Appends the steps that an exported request links to and that were not exported before; how many links are given up.
    pub fn link(&mut self, trace: &Trace, out: &mut Vec<Box<EngineStep>>) -> u64 {
        if self.mode != EngineSteps::Linked {
            return 0;
        }
        let Some(root) = trace.spans.first().map(|root| (root.trace_id, root.span_id)) else { return 0 };
        let mut missed = 0;
        for link in trace.spans.iter().flat_map(|span| &span.links) {
            let place = self.places.get(&link.span_id).and_then(|place| usize::try_from(place - self.gone).ok());
            match place.and_then(|place| self.kept.get_mut(place)) {
                Some((_, step)) => {
                    if let Some(mut step) = step.take() {
                        self.launches -= launches_of(&step);
                        link_back(&mut step, root);
                        out.push(step);
                    }
                }
                None => missed += self.want(link.span_id, root),
            }
        }
        missed
    }

    /// The oldest steps keep their totals alone, until what is left has room. It is told on each that goes out.
    fn let_launches_go(&mut self) {
        while self.launches > KEPT_LAUNCHES {
            self.first_whole = self.first_whole.max(self.gone);
            let place = usize::try_from(self.first_whole - self.gone).unwrap_or(usize::MAX);
            let Some((_, step)) = self.kept.get_mut(place) else { return };
            if let Some(cuda) = step.as_mut().and_then(|step| step.cuda.as_mut()) {
                self.launches -= cuda.let_go();
            }
            self.first_whole += 1;
        }
    }

    /// Looks out for a step; how many were given up for it.
    fn want(&mut self, id: SpanId, root: Root) -> u64 {
        if self.wanted.contains_key(&id) {
            return 0;
        }
        let mut missed = 0;
        if self.wanted_order.len() == WANTED
            && let Some((oldest, number)) = self.wanted_order.pop_front()
            && self.wanted.get(&oldest).is_some_and(|(asked_for, _)| *asked_for == number)
        {
            self.wanted.remove(&oldest);
            missed = 1;
        }
        self.wanted.insert(id, (self.next_wanted, root));
        self.wanted_order.push_back((id, self.next_wanted));
        self.next_wanted += 1;
        missed
    }

    fn is_outlier(&mut self, step: &EngineStep) -> bool {
        let key = (step.server.pid, step.server.start_ticks, step.engine);
        if self.engines.len() >= ENGINES && !self.engines.contains_key(&key) {
            return false;
        }
        self.engines.entry(key).or_default().is_outlier(step)
    }

    /// The end: how many steps were never exported, and how many links were never met.
    pub fn finish(self) -> (u64, u64) {
        (self.kept.iter().filter(|(_, step)| step.is_some()).count() as u64, self.wanted.len() as u64)
    }
}

/// Recent steps of one engine.
#[derive(Debug, Default)]
struct Engine {
    slowest: Window,
    recent: VecDeque<u64>,
    /// Of `recent`, made anew when a quarter of it is.
    median: Option<u64>,
    since: usize,
    minute: u64,
    in_minute: u32,
}

impl Engine {
    fn is_outlier(&mut self, step: &EngineStep) -> bool {
        let took = step.end_ns.saturating_sub(step.start_ns);
        let is_among_slowest = self.slowest.add(step.end_ns, took as f64 / 1e9, SLOWEST);
        let is_long = self.median.is_some_and(|median| took > median.saturating_mul(OUTLIER));
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
        self.since += 1;
        if self.recent.len() == RECENT && self.since >= RECENT / 4 {
            let mut sorted: Vec<u64> = self.recent.iter().copied().collect();
            self.median = Some(*sorted.select_nth_unstable(RECENT / 2).1);
            self.since = 0;
        }
        if !(is_among_slowest && is_long) {
            return false;
        }
        let minute = step.end_ns / MINUTE_NS;
        if minute != self.minute {
            (self.minute, self.in_minute) = (minute, 0);
        }
        self.in_minute += 1;
        self.in_minute <= OUTLIERS_A_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::output::cuda::StepCuda;
    use crate::output::{CudaCall, CudaWhat, Merit, Service, Span, SpanKind, SpanLink, SpanStatus, UnixNanos};

    const MS: u64 = 1_000_000;

    fn id(n: u64) -> SpanId {
        SpanId((n + 1).to_be_bytes())
    }

    fn step(n: u64, ms: u64) -> Box<EngineStep> {
        Box::new(EngineStep {
            cuda: None,
            server: Arc::default(),
            trace_id: TraceId(u128::from(n + 1).to_be_bytes()),
            span_id: id(n),
            engine: 0,
            start_ns: n * 10 * MS,
            end_ns: (n * 10 + ms) * MS,
            requests: 1,
            tokens: 1,
            first_tokens: 0,
            prefill_tokens: 0,
            decode_tokens: 1,
            batch: Box::default(),
            stats: None,
        })
    }

    /// A request that links to these steps.
    fn request(steps: &[u64]) -> Trace {
        let links = steps.iter().map(|&n| SpanLink {
            trace_id: TraceId(u128::from(n + 1).to_be_bytes()),
            span_id: id(n),
            attributes: vec![],
        });
        let span = Span {
            trace_id: TraceId([9; 16]),
            span_id: SpanId([9; 8]),
            parent: None,
            parent_is_remote: false,
            trace_state: None,
            name: "decode_step",
            kind: SpanKind::Internal,
            start_ns: 0,
            end_ns: 1,
            status: SpanStatus::Unset,
            attributes: vec![],
            events: vec![],
            links: links.collect(),
        };
        Trace { server: Arc::default(), service: Service::Requests, spans: vec![span], merit: Merit::default() }
    }

    fn linked(steps: &mut Steps, to: &[u64]) -> Vec<SpanId> {
        let mut out = Vec::new();
        assert_eq!(steps.link(&request(to), &mut out), 0);
        out.iter().map(|step| step.span_id).collect()
    }

    #[test]
    fn of_older_steps_the_totals_are_kept_and_what_was_let_go_is_told() {
        // 600 steps of 500 launches each: more than are kept one by one ─ then a request of the first and the last
        let mut steps = Steps::new(EngineSteps::Linked, false);
        let call = CudaCall {
            server: Arc::default(),
            process: 1,
            thread: 1,
            engine: Some(0),
            rank: None,
            start: UnixNanos(0),
            end: None,
            stream: None,
            step: None,
            what: CudaWhat::Set { bytes: 1 },
        };
        let last = 599;
        for n in 0..=last {
            let kernels = Arc::new(vec![call.clone(); 500]);
            let cuda = StepCuda { launches: 500, kernels, ..StepCuda::default() };
            steps.push(Box::new(EngineStep { cuda: Some(Box::new(cuda)), ..*step(n, 5) }));
            assert!(steps.launches <= KEPT_LAUNCHES);
        }
        let mut out = Vec::new();
        steps.link(&request(&[0, last]), &mut out);
        let told = |step: &EngineStep| step.cuda.as_ref().map(|cuda| (cuda.kernels.len(), cuda.kernels_let_go));
        assert_eq!(out.iter().map(|step| told(step)).collect::<Vec<_>>(), [Some((0, true)), Some((500, false))]);
    }

    #[test]
    fn only_steps_that_a_request_links_to_go_out_and_each_once() {
        let mut steps = Steps::new(EngineSteps::Linked, true);
        for n in 0..10 {
            assert_eq!(steps.push(step(n, 5)), (None, 0));
        }
        assert_eq!(linked(&mut steps, &[2, 5]), [id(2), id(5)]);
        assert_eq!(linked(&mut steps, &[5, 6, 6]), [id(6)]);
        assert_eq!(steps.finish(), (7, 0));
    }

    #[test]
    fn a_step_that_ends_after_its_request_goes_out_when_it_comes() {
        let mut steps = Steps::new(EngineSteps::Linked, true);
        assert_eq!(linked(&mut steps, &[1]), []);
        assert_eq!(linked(&mut steps, &[1, 3]), []);
        assert_eq!(steps.push(step(0, 5)).0, None);
        assert_eq!(steps.push(step(1, 5)).0.unwrap().span_id, id(1));
        assert_eq!(linked(&mut steps, &[1]), [], "once");
        assert_eq!(steps.finish(), (1, 1), "the third never came");
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_falls_out_is_counted() {
        let mut steps = Steps::new(EngineSteps::Linked, true);
        let count = KEPT as u64 + 100;
        let left_out: u64 = (0..count).map(|n| steps.push(step(n, 5)).1).sum();
        assert_eq!((left_out, steps.kept.len(), steps.places.len()), (100, KEPT, KEPT));
        assert_eq!(linked(&mut steps, &[count - 1, 100]), [id(count - 1), id(100)]);
        let mut out = Vec::new();
        let missed: u64 = (0..WANTED as u64 + 7).map(|n| steps.link(&request(&[1_000_000 + n]), &mut out)).sum();
        assert_eq!((missed, steps.wanted.len(), steps.wanted_order.len()), (7, WANTED, WANTED));
        assert_eq!(steps.finish(), (KEPT as u64 - 2, WANTED as u64));
    }

    #[test]
    fn a_few_outliers_go_out_by_themselves() {
        let mut steps = Steps::new(EngineSteps::Linked, true);
        for n in 0..2000 {
            assert_eq!(steps.push(step(n, 5)).0, None, "{n}");
        }
        assert!(steps.push(step(2000, 14)).0.is_none(), "not three times the median");
        assert!(steps.push(step(2001, 50)).0.is_some());
        let burst = (0..40).filter(|n| steps.push(step(2002 + n, 60 + n)).0.is_some()).count();
        assert!(burst < OUTLIERS_A_MINUTE as usize, "{burst}");
        let mut none = Steps::new(EngineSteps::Linked, false);
        assert!((0..3000).all(|n| none.push(step(n, if n == 2500 { 500 } else { 5 })).0.is_none()));
    }

    #[test]
    fn off_exports_none_and_all_every_one() {
        let mut off = Steps::new(EngineSteps::Off, true);
        assert_eq!(off.push(step(1, 5)), (None, 1));
        assert_eq!(linked(&mut off, &[1]), []);
        assert_eq!(off.finish(), (0, 0));
        let mut all = Steps::new(EngineSteps::All, true);
        assert!(all.push(step(1, 5)).0.is_some());
        assert_eq!(linked(&mut all, &[1]), []);
        assert_eq!(all.finish(), (0, 0));
    }
}
