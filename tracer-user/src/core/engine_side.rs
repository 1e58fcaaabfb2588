//! The engine side: requests, cancellations and outputs on the ZMTP connections, each seen at both ends and counted once.

use std::sync::Arc;

use super::Core;
use super::batches::Batch;
use crate::engine::{Add, EngineMessage, LifeEventKind, Outputs, RequestOutput};
use crate::input::{Direction, End, EventNanos, LossStage, Role};
use crate::model::generation::{Generation, StepRef};
use crate::model::step::Share;
use crate::output::{Metric, Output};

/// Prefill chunks that are kept of one request.
const MAX_CHUNKS: usize = 64;

/// Where and when a message was seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    pub at: EventNanos,
    pub process: u32,
    pub end: End,
    pub direction: Direction,
}

impl Core {
    pub(super) fn engine_message(&mut self, seen: Sighting, message: EngineMessage, out: &mut Vec<Output>) {
        match message {
            EngineMessage::Add(add) => self.add(seen, add, out),
            EngineMessage::Abort(ids) => self.abort(seen.at, &ids),
            EngineMessage::Outputs(outputs) => self.outputs(seen, outputs, out),
            EngineMessage::Dead => {
                let engine = self.connections.get(seen.end).and_then(|connection| connection.engine);
                self.generations_over(seen.at, |generation| engine.is_none_or(|engine| generation.may_be_of(engine)));
            }
            EngineMessage::Ready { version } => {
                if let Some(version) = version {
                    self.about.version(version);
                }
            }
            EngineMessage::Unreadable => {
                self.count_loss(LossStage::Unreadable, 1, out);
                self.outputs_lost(seen.end, &[]);
            }
            EngineMessage::Other => {}
        }
    }

    fn add(&mut self, seen: Sighting, add: Add, out: &mut Vec<Output>) {
        let Sighting { at, process, direction, .. } = seen;
        if add.cut && direction == Direction::Out {
            self.count_loss(LossStage::Cut, 1, out);
        }
        let known = self.generations.key_of(&add.id);
        let clock = &self.about.clock;
        let again = known.and_then(|key| self.generations.get_mut(key)).filter(|generation| {
            // The other end of the same message; an id that a client uses again comes with another arrival.
            let arrival = add.arrival.map(|unix| clock.event_of_unix((unix * 1e9) as u64));
            generation.arrival == arrival || !generation.settled()
        });
        let key = if let (Some(generation), Some(key)) = (again, known) {
            generation.added = Some(generation.added.map_or(at, |added| added.min(at)));
            key
        } else {
            let ids = self.engine.identify(&add.id, add.external_id.as_deref());
            self.insert_generation(Generation::from_add(add, ids, at, &self.about.clock))
        };
        match direction {
            Direction::In => {
                if let Some(generation) = self.generations.get_mut(key) {
                    generation.engine_process = process;
                }
            }
            Direction::Out => {
                if let Some(generation) = self.generations.get_mut(key) {
                    let encode = self.encodes.take(process, generation);
                    generation.process = process;
                    generation.encode = generation.encode.or(encode);
                }
            }
        }
        self.join().by_id(key);
    }

    fn insert_generation(&mut self, generation: Generation) -> u64 {
        let key = self.key();
        self.generations.insert(key, generation, &mut self.index);
        key
    }

    fn abort(&mut self, at: EventNanos, ids: &[String]) {
        for id in ids {
            let Some(key) = self.generations.key_of(id) else { continue };
            if let Some(generation) = self.generations.get_mut(key) {
                generation.abort(at);
                self.settled(key);
                if !self.generations.has_lead(key) {
                    self.join().cancelled(key, false);
                }
            }
        }
    }

    /// A generation is over: its exchange may be, too, or it waits for one.
    fn settled(&mut self, key: u64) {
        if let Some(exchange) = self.generations.settle(key, &mut self.index) {
            self.exchanges.touch(exchange);
        }
    }

    /// What ran where something ended is over, with an error.
    pub(super) fn generations_over(&mut self, at: EventNanos, hit: impl Fn(&Generation) -> bool) {
        for key in self.generations.fail(at, hit) {
            self.settled(key);
        }
    }

    fn outputs(&mut self, seen: Sighting, message: Outputs, out: &mut Vec<Output>) {
        let Sighting { at, process, end, direction } = seen;
        // What an engine tells the coordinator is the state that it tells a front end too.
        if direction == Direction::In && self.about.role(process) == Some(Role::Coordinator) {
            self.in_flight.forget(&message);
            return;
        }
        if let Some(connection) = self.connections.get_mut(end) {
            connection.engine = Some(message.engine);
        }
        self.about.hears_of(message.engine, (direction == Direction::Out).then_some(process));
        let stamped = !message.outputs.is_empty();
        let mut due = std::mem::take(&mut self.due);
        self.in_flight.sighted(at, end, direction, message, &mut due);
        let firsts = self.apply_due(&mut due, Some(seen), out);
        self.due = due;
        if direction == Direction::In {
            self.uptake.arrived(process, stamped, firsts);
        }
    }

    /// Outputs that were sent long ago and never seen arriving count as received then.
    pub(super) fn release_in_flight(&mut self, now: EventNanos, out: &mut Vec<Output>) {
        let mut due = std::mem::take(&mut self.due);
        self.in_flight.overdue(now, &mut due);
        let _ = self.apply_due(&mut due, None, out);
        self.due = due;
    }

    /// Gives the requests whose first output is in these messages.
    fn apply_due(
        &mut self,
        due: &mut Vec<(EventNanos, Outputs)>,
        seen: Option<Sighting>,
        out: &mut Vec<Output>,
    ) -> Vec<u64> {
        let mut firsts = Vec::new();
        for (received, message) in due.drain(..) {
            if message.missing > 0 {
                self.count_loss(LossStage::Cut, 1, out);
                let present: Vec<&str> = message.outputs.iter().map(|output| output.id.as_str()).collect();
                if let Some(seen) = seen {
                    // The last one that is there was not read whole.
                    self.outputs_lost(seen.end, &present[..present.len().saturating_sub(1)]);
                }
            }
            let front_end = seen.filter(|s| s.direction == Direction::In).map(|s| s.process);
            self.apply(&message, received, front_end.unwrap_or(0), &mut firsts, out);
        }
        firsts
    }

    /// Outputs of the engine on this connection are missing: what may have had one is marked. `present`: requests whose share of
    /// the message was read.
    pub(super) fn outputs_lost(&mut self, end: End, present: &[&str]) {
        let Some(connection) = self.connections.get(end) else { return };
        let Some(engine) = connection.engine else { return };
        let process = connection.process;
        let present: std::collections::HashSet<&str> = present.iter().copied().collect();
        for generation in self.generations.values_mut() {
            let its = generation.may_be_of(engine)
                && (generation.process == process || generation.process == 0 || process == 0);
            if its && !generation.settled() && !present.contains(&*generation.id) {
                generation.lost = true;
            }
        }
    }

    fn apply(
        &mut self,
        message: &Outputs,
        received: EventNanos,
        front_end: u32,
        firsts: &mut Vec<u64>,
        out: &mut Vec<Output>,
    ) {
        if message.utility && message.outputs.is_empty() {
            return;
        }
        let engine = message.engine;
        let stamp = message.timestamp.map_or(received as i64, |at| (at * 1e9).round() as i64);
        let at = message.timestamp.map_or(received, |at| self.about.clock.event_of_engine(at));
        let share = self.share(message);
        let (step, before) = self.steps.entry(engine).or_default().message(engine, stamp, at, share);
        if let Some(before) = before {
            self.step_is_over(before, out);
        }
        let place = Applied { engine, at, received, step, front_end };
        let mut batch = Batch { keys: Vec::with_capacity(message.outputs.len()), ..Batch::default() };
        for output in &message.outputs {
            firsts.extend(self.output(output, place, &mut batch, out));
        }
        self.batches.add(step, batch);
        if let Some(stats) = message.stats {
            out.push(Output::Metric(Metric::Scheduler {
                labels: self.about.labels(engine),
                running: stats.running,
                waiting: stats.waiting,
                kv_cache_usage: stats.kv_cache_usage,
                prefix_queries: stats.prefix_queries,
                prefix_hits: stats.prefix_hits,
            }));
        }
    }

    fn share(&self, message: &Outputs) -> Share {
        let first_scheduled = message
            .outputs
            .iter()
            .flat_map(|o| o.events.iter())
            .filter(|e| e.kind == LifeEventKind::Scheduled)
            .map(|e| self.about.clock.event_of_engine(e.at))
            .min();
        let is_first = |o: &&RequestOutput| {
            // Prefill statistics and events come with the first output; a release without them is looked up.
            o.prompt_tokens.is_some()
                || (!o.events.is_empty() || message.stats.is_none())
                    && self.generations.of_id(&o.id).is_none_or(|g| g.last.is_none())
        };
        Share {
            requests: message.outputs.len() as u64,
            tokens: message.outputs.iter().map(|o| o.tokens).sum(),
            first_tokens: message.outputs.iter().filter(is_first).count() as u64,
            first_scheduled,
            stats: message.stats,
        }
    }

    /// Gives the request when this is its first output.
    fn output(
        &mut self,
        output: &RequestOutput,
        place: Applied,
        batch: &mut Batch,
        out: &mut Vec<Output>,
    ) -> Option<u64> {
        let key = match self.generations.key_of(&output.id) {
            Some(key) => key,
            None if self.generations.was_recent(&output.id) => return None,
            // Its ADD was before the attach (or lost).
            None => {
                let ids = self.engine.identify(&output.id, None);
                let mut generation = Generation::new(Arc::from(output.id.as_str()), ids, place.received);
                generation.process = place.front_end;
                let key = self.insert_generation(generation);
                self.join().by_id(key);
                key
            }
        };
        let generation = self.generations.get_mut(key)?;
        let took = generation.take(output, place.at, place.received, place.step, &self.about.clock)?;
        if took.first
            && let (Some(scheduled), Some(steps)) = (generation.scheduled, self.steps.get(&place.engine))
        {
            generation.chunks = steps.ends_between(scheduled, place.at).take(MAX_CHUNKS).collect();
            if steps.was_busy(scheduled) {
                self.cuda.admitted(place.engine, generation.chunks.len());
            }
        }
        if took.first && generation.added.is_some() {
            self.uptake.keeps_statistics(place.front_end, !output.events.is_empty());
        }
        let prompt = (generation.prompt_tokens, generation.cached_tokens);
        batch.keys.push(key);
        if took.first {
            batch.prefill_tokens += prompt.0.unwrap_or(0).saturating_sub(prompt.1.unwrap_or(0));
        } else {
            batch.decode_tokens += took.tokens;
        }
        let first_seen = generation.added.is_some() || !output.events.is_empty() || output.prompt_tokens.is_some();
        let labels = self.about.labels(place.engine);
        if took.first
            && first_seen
            && let Some(tokens) = prompt.0
        {
            let cached = prompt.1.unwrap_or(0);
            out.push(Output::Metric(Metric::Prompt { labels: labels.clone(), tokens, cached }));
        }
        if took.preemptions > 0 {
            out.push(Output::Metric(Metric::Preempted { labels: labels.clone(), count: took.preemptions }));
        }
        out.push(Output::Metric(Metric::Tokens { labels, tokens: took.tokens, inter_token: took.inter_token }));
        if took.over {
            self.settled(key);
        }
        took.first.then_some(key)
    }
}

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

impl Generation {
    /// Whether this engine runs it, as far as is known before its first output.
    fn may_be_of(&self, engine: u32) -> bool {
        self.first.is_none() || self.engine == engine
    }
}
