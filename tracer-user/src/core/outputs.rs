//! What an engine's message of outputs does, once it counts.
//!
//! Enters: messages, each once, with the time at which the front end has it. Leaves: tokens of requests, steps, metrics. Invariant: a
//! token is counted for its request, its step and the metrics alike, or for none of them: what is dropped is dropped by the front end too.

use std::sync::Arc;

use super::batches::Batch;
use super::scene::Scene;
use super::steps::Work;
use super::uptake::Uptake;
use crate::engine::{LifeEventKind, Outputs, RequestOutput};
use crate::input::{EventNanos, LossStage};
use crate::model::generation::{Generation, StepRef, Took};
use crate::model::step::Share;
use crate::output::Metric;

/// Prefill chunks that are kept of one request.
const MAX_CHUNKS: usize = 64;

/// What the outputs of one message have in common.
#[derive(Debug, Clone, Copy)]
struct Applied {
    engine: u32,
    at: EventNanos,
    received: EventNanos,
    step: StepRef,
    /// The front end that received it; 0 when not known.
    front_end: u32,
}

/// Takes a message that counts now, `received` by `front_end` (0 when not known). Gives the requests whose first output is in it.
pub(super) fn apply(
    message: &Outputs,
    received: EventNanos,
    front_end: u32,
    uptake: &mut Uptake,
    work: &mut Work<'_>,
    scene: &mut Scene<'_>,
) -> Vec<u64> {
    let mut firsts = Vec::new();
    if message.utility && message.outputs.is_empty() {
        return firsts;
    }
    let engine = message.engine;
    let stamp = message.timestamp.map_or(received as i64, |at| (at * 1e9).round() as i64);
    let clock = &scene.about.clock;
    // A stamp is made before it is sent: one from the future is no time at all. (By an estimate it may be, by a little.)
    let latest = if clock.engine_is_estimated() { EventNanos::MAX } else { received };
    let at = message.timestamp.map_or(received, |at| clock.event_of_engine(at).min(latest));
    let share = share(message, scene);
    let (step, before) = work.steps.message(engine, stamp, at, share);
    if let Some(before) = before {
        work.over(before, scene);
    }
    let place = Applied { engine, at, received, step, front_end };
    let mut batch = Batch { keys: Vec::with_capacity(message.outputs.len()), ..Batch::default() };
    for output in &message.outputs {
        firsts.extend(self::output(output, place, &mut batch, uptake, work, scene));
    }
    let forgotten = work.steps.add(step, batch);
    scene.count_loss(LossStage::Evicted, forgotten);
    if let Some(stats) = message.stats {
        let labels = scene.about.labels(engine);
        scene.say(Metric::Scheduler {
            labels,
            running: stats.running,
            waiting: stats.waiting,
            kv_cache_usage: stats.kv_cache_usage,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
        });
    }
    firsts
}

/// Gives the request when this is its first output.
fn output(
    output: &RequestOutput,
    place: Applied,
    batch: &mut Batch,
    uptake: &mut Uptake,
    work: &mut Work<'_>,
    scene: &mut Scene<'_>,
) -> Option<u64> {
    let key = request_of(output, place, scene)?;
    let generation = scene.requests.generations.get_mut(key)?;
    // With thousands open, each field of one that is looked at is far away.
    let is_plain = generation.is_plain(output);
    let held_of = |of: &Generation| if is_plain { of.timeline.held_bytes() } else { of.held_bytes() };
    let held = held_of(generation);
    let waits = if is_plain { 0 } else { generation.waits.len() };
    let took = generation.take(output, place.at, place.received, place.step, &scene.about.clock)?;
    if !is_plain {
        work.steps.waited(place.engine, generation, waits);
    }
    if took.first
        && let (Some(scheduled), Some(steps)) = (generation.scheduled, work.steps.of(place.engine))
    {
        generation.chunks = steps.ends_between(scheduled, place.at).take(MAX_CHUNKS).collect();
        if steps.was_busy(scheduled) {
            work.cuda.admitted(place.engine, generation.chunks.len());
        }
    }
    if took.first && generation.added.is_some() {
        uptake.keeps_statistics(place.front_end, !output.events.is_empty());
    }
    let prompt = (generation.prompt_tokens, generation.cached_tokens);
    batch.take(key, took, prompt);
    let first_seen = generation.added.is_some() || !output.events.is_empty() || output.prompt_tokens.is_some();
    let holds = held_of(generation);
    scene.requests.generations.weigh(held, holds);
    counted(place.engine, took, prompt, first_seen, scene);
    if took.over {
        scene.requests.settled(key);
    }
    took.first.then_some(key)
}

/// What a message adds to its step.
fn share(message: &Outputs, scene: &Scene<'_>) -> Share {
    let first_scheduled = message
        .outputs
        .iter()
        .flat_map(|o| o.events.iter())
        .filter(|e| e.kind == LifeEventKind::Scheduled)
        .map(|e| scene.about.clock.event_of_engine(e.at))
        .min();
    let is_first = |o: &&RequestOutput| {
        // Prefill statistics and events come with the first output; a release without them is looked up.
        o.prompt_tokens.is_some()
            || (!o.events.is_empty() || message.stats.is_none())
                && scene.requests.generations.of_id(&o.id).is_none_or(|g| g.last.is_none())
    };
    Share {
        requests: message.outputs.len() as u64,
        tokens: message.outputs.iter().fold(0, |sum, o| sum.saturating_add(o.tokens)),
        first_tokens: message.outputs.iter().filter(is_first).count() as u64,
        first_scheduled,
        stats: message.stats,
    }
}

/// Whose output it is; `None`: of one that is over.
fn request_of(output: &RequestOutput, place: Applied, scene: &mut Scene<'_>) -> Option<u64> {
    if let Some(key) = scene.requests.generations.key_of(&output.id) {
        return Some(key);
    }
    if scene.requests.generations.was_recent(&output.id) {
        return None;
    }
    // Its ADD was before the attach (or lost).
    let ids = scene.engine.identify(&output.id, None);
    let mut generation = Generation::new(Arc::from(output.id.as_str()), ids, place.received);
    generation.process = place.front_end;
    let key = scene.requests.insert(generation);
    scene.requests.join().by_id(key);
    Some(key)
}

/// Moves the metrics by one output. `prompt`: its tokens, and how many of them were cached.
fn counted(engine: u32, took: Took, prompt: (Option<u64>, Option<u64>), is_first_seen: bool, scene: &mut Scene<'_>) {
    let labels = scene.about.labels(engine);
    if took.first
        && is_first_seen
        && let Some(tokens) = prompt.0
    {
        scene.say(Metric::Prompt { labels: labels.clone(), tokens, cached: prompt.1.unwrap_or(0) });
    }
    if took.preemptions > 0 {
        scene.say(Metric::Preempted { labels: labels.clone(), count: took.preemptions });
    }
    scene.say(Metric::Tokens { labels, tokens: took.tokens, inter_token: took.inter_token });
}

impl Batch {
    /// Adds what an output gave.
    fn take(&mut self, key: u64, took: Took, (prompt, cached): (Option<u64>, Option<u64>)) {
        self.keys.push(key);
        self.tokens = self.tokens.saturating_add(took.tokens);
        let (sum, more) = if took.first {
            (&mut self.prefill_tokens, prompt.unwrap_or(0).saturating_sub(cached.unwrap_or(0)))
        } else {
            (&mut self.decode_tokens, took.tokens)
        };
        *sum = sum.saturating_add(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::scene::tests::Ground;
    use crate::engine::{LifeEvent, SchedulerStats};
    use crate::model::load::Wait;

    /// An output of so many tokens; the first of its request says its prompt: so many tokens, one of them cached.
    fn output(id: &str, tokens: u64, prompt: Option<u64>) -> RequestOutput {
        let events =
            if prompt.is_some() { vec![LifeEvent { kind: LifeEventKind::Scheduled, at: 0.5 }] } else { Vec::new() };
        RequestOutput {
            id: id.into(),
            tokens,
            events,
            prompt_tokens: prompt,
            cached_tokens: prompt.map(|_| 1),
            ..RequestOutput::default()
        }
    }

    fn apply(ground: &mut Ground, stamp: f64, stats: Option<SchedulerStats>, outputs: Vec<RequestOutput>) -> Vec<u64> {
        let message = Outputs { outputs, stats, timestamp: Some(stamp), ..Outputs::default() };
        let received = (stamp * 1e9) as u64 + 100;
        let (mut work, mut scene) = ground.all();
        super::apply(&message, received, 1, &mut Uptake::default(), &mut work, &mut scene)
    }

    #[test]
    fn a_token_counts_for_its_request_its_step_and_the_metrics_alike() {
        // step at 1 s: the first token of a, of a prompt of 8 · step at 2 s: two tokens of a, the first one of b
        let mut ground = Ground::default();
        let stats = Some(SchedulerStats { running: 1, ..SchedulerStats::default() });
        assert_eq!(apply(&mut ground, 1.0, stats, vec![output("a-0123abcd", 1, Some(8))]), [1]);
        let second = vec![output("a-0123abcd", 2, None), output("b-0123abcd", 1, Some(5))];
        assert_eq!(apply(&mut ground, 2.0, stats, second), [2]);
        let tokens: Vec<u64> = ground.requests.generations.iter().map(|(_, g)| g.output_tokens).collect();
        assert_eq!(tokens, [3, 1]);
        let now: Vec<_> = ground.steps.now().map(|(_, now)| now).collect();
        assert_eq!((now[0].tokens, now[0].requests, now[0].prefill_tokens, now[0].decode_tokens), (4, 2, 4, 2));
        let moved = ground.metrics().into_iter().fold((0, 0, 0), |(prompt, tokens, scheduler), metric| match metric {
            Metric::Prompt { tokens: of, cached, .. } => (prompt + of - cached, tokens, scheduler),
            Metric::Tokens { tokens: of, .. } => (prompt, tokens + of, scheduler),
            Metric::Scheduler { .. } => (prompt, tokens, scheduler + 1),
            _ => (prompt, tokens, scheduler),
        });
        assert_eq!(moved, (7 + 4, 4, 2));
    }

    #[test]
    fn what_comes_for_a_request_that_is_over_is_dropped_for_all() {
        // a: one token, the last ─ it leaves ─ another output for it
        let mut ground = Ground::default();
        let last =
            RequestOutput { finish: Some(crate::engine::FinishReason::Length), ..output("a-0123abcd", 1, Some(8)) };
        apply(&mut ground, 1.0, None, vec![last]);
        assert_eq!(apply(&mut ground, 2.0, None, vec![output("a-0123abcd", 1, None)]), [] as [u64; 0]);
        ground.requests.take_alone(1);
        assert_eq!(apply(&mut ground, 3.0, None, vec![output("a-0123abcd", 1, None)]), [] as [u64; 0]);
        assert_eq!(ground.requests.generations.len(), 0, "nor does it make a new one");
        assert_eq!(ground.steps.now().map(|(_, now)| now.tokens).sum::<u64>(), 1);
    }

    #[test]
    fn a_wait_knows_what_the_scheduler_said_around_it() {
        // step at 1 s: 2 run, 3 wait ─ a queued 1.1 s, b 1.2 s ─ step at 2 s: the cache is full ─ both scheduled 2.5 s ─ b preempted 3.1 s
        let mut ground = Ground::default();
        let said = |running, waiting, kv_cache_usage| {
            Some(SchedulerStats { running, waiting, kv_cache_usage, ..SchedulerStats::default() })
        };
        apply(&mut ground, 1.0, said(2, 3, 0.5), vec![]);
        apply(&mut ground, 2.0, said(2, 5, 0.99), vec![]);
        let event = |kind, at| LifeEvent { kind, at };
        let waited = |id: &str, queued| RequestOutput {
            events: vec![event(LifeEventKind::Queued, queued), event(LifeEventKind::Scheduled, 2.5)],
            ..output(id, 1, Some(8))
        };
        apply(&mut ground, 3.0, said(4, 3, 0.6), vec![waited("a-0123abcd", 1.1), waited("b-0123abcd", 1.2)]);
        let again = vec![event(LifeEventKind::Preempted, 3.1), event(LifeEventKind::Scheduled, 3.5)];
        apply(
            &mut ground,
            4.0,
            said(4, 3, 0.7),
            vec![RequestOutput { events: again, ..output("b-0123abcd", 1, None) }],
        );
        let loads = |id| {
            let waits = ground.requests.generations.of_id(id).map(|g| g.waits.clone()).unwrap_or_default();
            let of = |wait: &Wait| wait.load.map(|load| (load.waiting(), load.running(), load.kv_cache_usage));
            waits.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(loads("a-0123abcd"), [Some((3, 2, 0.99))]);
        assert_eq!(loads("b-0123abcd"), [Some((4, 2, 0.99)), Some((3, 3, 0.6))], "itself does not run any more");
    }

    #[test]
    fn steps_while_a_prompt_is_computed_are_its_chunks() {
        // a runs: steps at 1, 2, 3 s · b is scheduled at 0.5 s and gives its first token in the step at 4 s
        let mut ground = Ground::default();
        for stamp in [1.0, 2.0, 3.0] {
            apply(&mut ground, stamp, None, vec![output("a-0123abcd", 1, None)]);
        }
        apply(&mut ground, 4.0, None, vec![output("b-0123abcd", 1, Some(8))]);
        let chunks = ground.requests.generations.of_id("b-0123abcd").map(|g| g.chunks.clone());
        assert_eq!(chunks, Some(vec![1_000_000_000, 2_000_000_000, 3_000_000_000]));
    }

    #[test]
    fn the_answer_to_a_utility_call_is_no_step() {
        let mut ground = Ground::default();
        let message = Outputs { utility: true, timestamp: Some(1.0), ..Outputs::default() };
        let (mut work, mut scene) = ground.all();
        super::apply(&message, 1, 1, &mut Uptake::default(), &mut work, &mut scene);
        assert_eq!((ground.steps.now().count(), ground.out.len()), (0, 0));
    }
}
