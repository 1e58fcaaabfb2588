//! The steps of all engines, from their first message until they leave.
//!
//! Enters: what each message of a step gave, ends of requests, and (from `core/cuda`) what a step's threads called. Leaves: steps, once
//! each, with the requests that they served. Invariant: an engine's steps leave in the order of their ends. A step of an engine that uses
//! CUDA waits [`CUDA_SETTLED`], others leave when nothing can join them any more.

use std::collections::{BTreeMap, VecDeque};

use super::batches::{Batch, Batches};
use super::cuda::Cuda;
use super::requests::Requests;
use super::scene::Scene;
use crate::engine::SchedulerStats;
use crate::input::EventNanos;
use crate::model::generation::{Generation, StepRef};
use crate::model::lags::{Lags, Sends};
use crate::model::load::MAX_LOADS;
use crate::model::step::{Share, Step, Steps as OfEngine};
use crate::model::tree;
use crate::output::cuda::StepCuda;
use crate::output::{EngineStep, Metric, Output, SpanId, TraceId};

/// What an engine's threads called last in a step is told when they have stood still, 45 ms later, or call again; and the tracer may be
/// held up.
const CUDA_SETTLED: EventNanos = 300_000_000;

/// Pairs of front ends and engines whose distance is followed, of the most engines of a large node; beyond, requests go without, counted.
const MAX_LAGS: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Steps {
    by_engine: BTreeMap<u32, OfEngine>,
    /// What each engine does now, for displays.
    now: BTreeMap<u32, Now>,
    /// Steps that are over, in the order of their ends, of engines that use CUDA: what their threads called last is not told yet.
    over: VecDeque<Step>,
    batches: Batches,
    /// How far each front end (a process) is behind each engine.
    lags: BTreeMap<(u32, u32), Lags>,
    /// What each engine sent late.
    sends: BTreeMap<u32, Sends>,
}

/// An engine as its newest messages left it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Now {
    /// The newest statistics, where it keeps any.
    pub stats: Option<SchedulerStats>,
    /// Tokens that it gave since it was first heard of.
    pub tokens: u64,
    /// Its newest step, and when that ended.
    pub step: Option<(StepRef, EventNanos)>,
    /// What that gave so far.
    pub requests: u64,
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
}

/// What engines do besides talking to their front ends.
pub(super) struct Work<'a> {
    pub steps: &'a mut Steps,
    pub cuda: &'a mut Cuda,
}

impl Work<'_> {
    /// A step is over: it leaves, or waits for what its threads called.
    pub(super) fn over(&mut self, step: Step, scene: &mut Scene<'_>) {
        if self.cuda.is_seen_at(step.reference.engine) {
            self.steps.over.push_back(step);
        } else {
            self.steps.leave(&step, None, scene);
        }
    }

    /// Steps that nothing can join any more at `now` are over.
    pub(super) fn settle(&mut self, now: EventNanos, scene: &mut Scene<'_>) {
        let settled: Vec<Step> = self.steps.by_engine.values_mut().filter_map(|of| of.take_settled(now)).collect();
        for step in settled {
            self.over(step, scene);
        }
    }

    /// Whether the last step that it was in has left.
    pub(super) fn has_left(&self, generation: &Generation, now: EventNanos) -> bool {
        generation
            .last
            .is_none_or(|last| !self.cuda.is_seen_at(last.step.engine) || last.at.saturating_add(CUDA_SETTLED) < now)
    }
}

impl Steps {
    /// A message stamped `stamp` (engine ns), at `at` on the event clock: the step it belongs to, and the one before if that is over by this.
    pub(super) fn message(&mut self, engine: u32, stamp: i64, at: EventNanos, share: Share) -> (StepRef, Option<Step>) {
        let now = self.now.entry(engine).or_default();
        now.stats = share.stats.or(now.stats);
        let (step, before) = self.by_engine.entry(engine).or_default().message(engine, stamp, at, share);
        if now.step.is_none_or(|(newest, _)| newest != step) {
            *now = Now { stats: now.stats, tokens: now.tokens, step: Some((step, at)), ..Now::default() };
        }
        (step, before)
    }

    /// What a message gave. Gives how many steps will leave without theirs, for want of room.
    pub(super) fn add(&mut self, step: StepRef, batch: Batch) -> u64 {
        if let Some(now) = self.now.get_mut(&step.engine) {
            now.tokens = now.tokens.saturating_add(batch.tokens);
            if now.step.is_some_and(|(newest, _)| newest == step) {
                now.requests = now.requests.saturating_add(batch.keys.len() as u64);
                now.prefill_tokens = now.prefill_tokens.saturating_add(batch.prefill_tokens);
                now.decode_tokens = now.decode_tokens.saturating_add(batch.decode_tokens);
            }
        }
        self.batches.add(step, batch)
    }

    /// The steps of an engine that were seen so far.
    pub(super) fn of(&self, engine: u32) -> Option<&OfEngine> {
        self.by_engine.get(&engine)
    }

    /// What each engine does now, by its number.
    pub(super) fn now(&self) -> impl Iterator<Item = (u32, Now)> {
        self.now.iter().map(|(&engine, &now)| (engine, now))
    }

    /// A request was scheduled again, or for the first time: what the scheduler said around its waits from the one at `first` on.
    pub(super) fn waited(&mut self, engine: u32, generation: &mut Generation, first: usize) {
        let Some(of) = self.by_engine.get_mut(&engine).filter(|_| engine < MAX_LOADS) else { return };
        for wait in generation.waits.iter_mut().skip(first) {
            of.load.entered(wait.from, wait.by_preemption);
            wait.load = of.load.around(wait);
        }
    }

    /// The engine sent a message at `at` that it had stamped at `stamp`.
    pub(super) fn engine_sent(&mut self, engine: u32, stamp: EventNanos, at: EventNanos) {
        if engine < MAX_LOADS {
            self.sends.entry(engine).or_default().sent(stamp, at);
        }
    }

    /// The front end has a message of the engine's, stamped at `stamp`: it received it at `at`, or got to it then.
    pub(super) fn front_end_has(&mut self, front_end: u32, engine: u32, stamp: EventNanos, at: EventNanos) {
        let key = (front_end, engine);
        if self.lags.len() < MAX_LAGS || self.lags.contains_key(&key) {
            self.lags.entry(key).or_default().has(stamp, at, self.sends.entry(engine).or_default());
        }
    }

    /// A front end's process is gone.
    pub(super) fn front_end_ended(&mut self, process: u32) {
        self.lags.retain(|(front_end, _), _| *front_end != process);
    }

    /// A request is about to leave: what only now is known of its waits, and how far its front end was behind. Gives how much of that is
    /// missing because there are too many engines or front ends.
    pub(super) fn look_back(&self, generation: &mut Generation) -> u64 {
        if let Some(of) = self.by_engine.get(&generation.engine) {
            for wait in &mut generation.waits {
                let Some(mut load) = wait.load else { continue };
                of.load.recount(wait, &mut load);
                wait.load = Some(load);
            }
        }
        let lags = self.lags.get(&(generation.process, generation.engine));
        let (none, sends) = (Sends::default(), self.sends.get(&generation.engine));
        generation.lagged = lags.map(|lags| Box::new(lags.of(generation, sends.unwrap_or(&none))));
        let has_no_load = generation.engine >= MAX_LOADS && !generation.waits.is_empty();
        let has_no_lags = lags.is_none() && self.lags.len() >= MAX_LAGS;
        u64::from(has_no_load) + u64::from(has_no_lags)
    }

    /// The engine's process is gone.
    pub(super) fn engine_ended(&mut self, engine: u32) {
        self.now.remove(&engine);
        self.sends.remove(&engine);
    }

    /// The oldest step that is over and has waited long enough; any one when the run is over.
    pub(super) fn next_over(&mut self, now: EventNanos, is_end: bool) -> Option<Step> {
        self.over.pop_front_if(|step| is_end || step.end.saturating_add(CUDA_SETTLED) < now)
    }

    /// The requests that a step gave something for, in the order of their outputs.
    pub(super) fn served(&self, step: StepRef) -> &[u64] {
        self.batches.keys_of(step)
    }

    /// A request left; `root` is its root span.
    pub(super) fn request_left(&mut self, key: u64, root: (TraceId, SpanId), now: EventNanos) {
        self.batches.left(key, root, now);
    }

    /// A step leaves, with what its threads did with CUDA. One of which nothing says when it began does not.
    pub(super) fn leave(&mut self, step: &Step, cuda: Option<Box<StepCuda>>, scene: &mut Scene<'_>) {
        let batch = self.batches.take(step.reference);
        let about = &*scene.about;
        let Some(mut step) = step.leave(&about.server, about.run, &about.clock) else { return };
        step.cuda = cuda;
        (step.prefill_tokens, step.decode_tokens) = (batch.prefill_tokens, batch.decode_tokens);
        let roots = batch.keys.iter().filter_map(|key| self.root_of(*key, scene.requests, about.run));
        step.batch = roots.take(EngineStep::MAX_LINKS).collect();
        let seconds = step.end_ns.saturating_sub(step.start_ns) as f64 / 1e9;
        // Where its first call stands for its start, it is longer than that.
        if !step.cuda.as_ref().is_some_and(|cuda| cuda.begins_with_call) {
            let labels = about.labels(step.engine);
            scene.say(Metric::Step { labels, seconds });
        }
        scene.out.push(Output::Step(Box::new(step)));
    }

    /// The root span of an engine request's tree, where it is known already.
    fn root_of(&self, key: u64, requests: &Requests, run: u64) -> Option<(TraceId, SpanId)> {
        let exchange = |generation: &Generation| requests.exchanges.get(generation.exchange?);
        requests.generations.get(key).and_then(exchange).map_or_else(
            || self.batches.root_of(key),
            |exchange| {
                let place = tree::place_of(exchange, run);
                Some((place.trace_id, place.root_id))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::scene::tests::Ground;
    use crate::input::cuda::{Seen, Sums};

    const MS: EventNanos = 1_000_000;

    /// A message of a step of engine 0 at `at`, which gave a token for each of these; with statistics where it starts one.
    fn message(ground: &mut Ground, at: EventNanos, keys: &[u64], running: Option<u64>) -> StepRef {
        let stats = running.map(|running| SchedulerStats { running, ..SchedulerStats::default() });
        let requests = keys.len() as u64;
        let share = Share { requests, tokens: requests, stats, ..Share::default() };
        ground.now = at;
        let (mut work, mut scene) = ground.all();
        let (step, before) = work.steps.message(0, at as i64, at, share);
        if let Some(before) = before {
            work.over(before, &mut scene);
        }
        let batch = Batch { keys: keys.to_vec(), decode_tokens: requests, tokens: requests, prefill_tokens: 0 };
        work.steps.add(step, batch);
        step
    }

    fn settle(ground: &mut Ground, at: EventNanos) {
        ground.now = at;
        let (mut work, mut scene) = ground.all();
        work.settle(at, &mut scene);
    }

    /// Requests and decode tokens of the steps that left.
    fn left(ground: &Ground) -> Vec<(u64, u64)> {
        let step = |output: &Output| match output {
            Output::Step(step) => Some((step.requests, step.decode_tokens)),
            _ => None,
        };
        ground.out.iter().filter_map(step).collect()
    }

    #[test]
    fn a_step_leaves_once_with_the_requests_of_all_its_messages() {
        // steps end at 10, 20 ms; the second one's message to another front end comes 0.02 ms later ─ 50 ms later it is over
        let mut ground = Ground::default();
        message(&mut ground, 10 * MS, &[1, 2], Some(3));
        message(&mut ground, 20 * MS, &[1, 2], Some(3));
        message(&mut ground, 20 * MS + 20_000, &[3], None);
        assert_eq!(left(&ground), [], "nothing says when the first began");
        settle(&mut ground, 70 * MS);
        assert_eq!(left(&ground), []);
        settle(&mut ground, 70 * MS + 1);
        settle(&mut ground, 200 * MS);
        assert_eq!(left(&ground), [(3, 3)]);
    }

    #[test]
    fn the_newest_step_is_shown_as_it_grows_and_goes_with_its_engine() {
        // step 10: two requests, one more in a second message ─ step 20: one, without statistics ─ the process is gone
        let mut ground = Ground::default();
        let now = |ground: &Ground| {
            ground.steps.now().map(|(engine, now)| (engine, now.requests, now.tokens)).collect::<Vec<_>>()
        };
        let running =
            |ground: &Ground| ground.steps.now().filter_map(|(_, now)| Some(now.stats?.running)).collect::<Vec<_>>();
        assert_eq!(now(&ground), []);
        message(&mut ground, 10 * MS, &[1, 2], Some(3));
        message(&mut ground, 10 * MS + 1, &[3], None);
        assert_eq!((now(&ground), running(&ground)), (vec![(0, 3, 3)], vec![3]));
        message(&mut ground, 20 * MS, &[1], None);
        assert_eq!((now(&ground), running(&ground)), (vec![(0, 1, 4)], vec![3]), "the statistics of before stand");
        ground.steps.engine_ended(0);
        assert_eq!(now(&ground), []);
    }

    #[test]
    fn a_step_of_an_engine_that_uses_cuda_waits_until_its_calls_are_told() {
        // a process calls CUDA ─ steps end at 10, 20, 30 ms ─ 300 ms later each is over
        let mut core = crate::core::Core::new(crate::core::Config::default());
        core.cuda(1, 9, 9, Seen::Burst(Sums { first: 1, last: 1, launches: 1, ..Sums::default() }), &mut Vec::new());
        let mut ground = Ground { cuda: core.cuda, ..Ground::default() };
        for at in [10, 20, 30] {
            message(&mut ground, at * MS, &[1], Some(1));
        }
        settle(&mut ground, 90 * MS);
        let next = |ground: &mut Ground, now| ground.steps.next_over(now, false).map(|step| step.end / MS);
        assert_eq!(next(&mut ground, 310 * MS), None);
        assert_eq!((next(&mut ground, 310 * MS + 1), next(&mut ground, 310 * MS + 1)), (Some(10), None));
        assert_eq!(ground.steps.next_over(0, true).map(|step| step.end / MS), Some(20), "at the end nobody waits");
        assert_eq!(left(&ground), []);
    }

    #[test]
    fn a_request_that_left_is_linked_for_a_while() {
        // request 1 leaves ─ its last step leaves, with a link to its root
        let mut ground = Ground::default();
        let root = (TraceId([1; 16]), SpanId([2; 8]));
        message(&mut ground, 10 * MS, &[1], Some(1));
        message(&mut ground, 20 * MS, &[1], Some(1));
        ground.steps.request_left(1, root, 25 * MS);
        settle(&mut ground, 90 * MS);
        let links = ground.out.iter().filter_map(|output| match output {
            Output::Step(step) => Some(step.batch.to_vec()),
            _ => None,
        });
        assert_eq!(links.collect::<Vec<_>>(), [vec![root]]);
    }
}
