//! The engine side: requests, cancellations and outputs on the ZMTP connections, each seen at both ends and counted once.
//!
//! An output counts when the front end receives it: what it receives after it cancelled a request it drops, and so does the
//! model. Where only the engine's end is seen, it counts when it leaves.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::{Core, InFlight, Receivers};
use crate::engine::{Add, EngineMessage, LifeEventKind, Outputs, RequestOutput, ids};
use crate::input::{Direction, End, EventNanos, Role, Server};
use crate::model::generation::{Generation, Phase, StepRef};
use crate::model::step::Share;
use crate::output::{FinishReason, Metric, Output};

/// How long an output message may be under way between its two ends, ns (a loaded front end: 10s of ms).
const IN_FLIGHT: EventNanos = 250_000_000;
/// Messages that are remembered to recognise their second sighting.
const MAX_SEEN: usize = 16_384;
/// Prefill chunks that are kept of one request.
const MAX_CHUNKS: usize = 64;

impl Core {
    pub(super) fn engine_message(
        &mut self,
        at: EventNanos,
        process: u32,
        end: End,
        direction: Direction,
        message: EngineMessage,
        out: &mut Vec<Output>,
    ) {
        match message {
            EngineMessage::Add(add) => self.add(at, process, direction, add),
            EngineMessage::Abort(ids) => self.abort(at, &ids),
            EngineMessage::Outputs(outputs) => self.outputs(at, process, end, direction, outputs, out),
            EngineMessage::Dead => self.engine_died(at),
            EngineMessage::Ready { version } => {
                if let (Some(version), None) = (version, &self.server.engine_version) {
                    self.server = Arc::new(Server { engine_version: Some(version), ..(*self.server).clone() });
                }
            }
            EngineMessage::Other => {}
        }
    }

    fn add(&mut self, at: EventNanos, process: u32, direction: Direction, add: Add) {
        let front_end = if direction == Direction::Out { process } else { 0 };
        let known = self.generation_of.get(add.id.as_str()).copied();
        let again = known.and_then(|key| self.generations.get_mut(&key)).filter(|generation| {
            // The other end of the same message; an id that a client uses again comes with another arrival.
            let arrival = add.arrival.map(|unix| self.clock.event_of_unix((unix * 1e9) as u64));
            generation.arrival == arrival || !generation.settled()
        });
        let key = if let (Some(generation), Some(key)) = (again, known) {
            generation.added = Some(generation.added.map_or(at, |added| added.min(at)));
            key
        } else {
            let key = self.key();
            let generation = Generation::from_add(add, at, &self.clock);
            self.recent.remove(&generation.id);
            self.generation_of.insert(Arc::clone(&generation.id), key);
            self.generations.insert(key, generation);
            key
        };
        if direction == Direction::Out {
            let encode = self.take_encode(front_end, key);
            if let Some(generation) = self.generations.get_mut(&key) {
                generation.process = front_end;
                generation.encode = generation.encode.or(encode);
            }
        }
        self.join_by_id(key);
    }

    /// The tokenizer call that made this request's tokens: the first unused one between its arrival and its sending, or (one
    /// call for several prompts) the last used one.
    fn take_encode(&mut self, process: u32, key: u64) -> Option<(EventNanos, EventNanos)> {
        let generation = self.generations.get(&key)?;
        let sent = generation.added?;
        // Before 0.17 the arrival is stamped after tokenising: nothing bounds the call from below.
        let from = generation.arrival.filter(|_| generation.arrival_before_tokenizing);
        // The stamp is a wall-clock reading, converted: 0.2 ms for its error.
        let from = from.map_or(0, |at| at.saturating_sub(200_000));
        let child = ids::split_child(&generation.id).0.is_some_and(|index| index > 0);
        let encodes = self.encodes.get_mut(&process)?;
        let fits = |e: &super::Encode| e.entered >= from && e.returned <= sent;
        let fresh = if child { None } else { encodes.iter_mut().find(|e| !e.used && fits(e)) };
        if let Some(encode) = fresh {
            encode.used = true;
            return Some((encode.entered, encode.returned));
        }
        encodes.iter().rev().find(|e| e.used && fits(e)).map(|e| (e.entered, e.returned))
    }

    fn abort(&mut self, at: EventNanos, ids: &[String]) {
        for id in ids {
            let Some(&key) = self.generation_of.get(id.as_str()) else { continue };
            if let Some(generation) = self.generations.get_mut(&key) {
                generation.abort(at);
                match generation.exchange {
                    Some(exchange) => self.touched.push(exchange),
                    None => self.join_cancelled(key, false),
                }
            }
        }
    }

    /// The engine is gone: what it had is over, with an error.
    pub(super) fn engine_died(&mut self, at: EventNanos) {
        for generation in self.generations.values_mut().filter(|g| !g.settled()) {
            generation.phase = Phase::Over { at, reason: FinishReason::Error };
            self.touched.extend(generation.exchange);
        }
    }

    fn outputs(
        &mut self,
        at: EventNanos,
        process: u32,
        end: End,
        direction: Direction,
        message: Outputs,
        out: &mut Vec<Output>,
    ) {
        // What an engine tells the coordinator is the state that it tells a front end too.
        if direction == Direction::In && self.roles.get(&process) == Some(&Role::Coordinator) {
            let key = identity(&message);
            self.in_flight.retain(|m| m.key != key);
            return;
        }
        let key = identity(&message);
        match direction {
            Direction::In => {
                self.receivers = Receivers::Seen;
                if let Some(index) = self.in_flight.iter().position(|m| m.key == key) {
                    // Messages of one connection arrive in order: earlier ones of it arrived unseen.
                    let from = self.in_flight[index].from;
                    let mut overtaken = Vec::new();
                    let mut rest = std::collections::VecDeque::new();
                    for (i, message) in self.in_flight.drain(..).enumerate() {
                        if i < index && message.from == from {
                            overtaken.push(message);
                        } else if i != index {
                            rest.push_back(message);
                        }
                    }
                    self.in_flight = rest;
                    for earlier in overtaken {
                        self.apply(&earlier.message, earlier.sent, out);
                    }
                    self.apply(&message, at, out);
                } else if self.remember(key) {
                    self.apply(&message, at, out);
                }
            }
            Direction::Out => {
                if !self.remember(key) {
                    return;
                }
                if self.receivers == Receivers::Unseen {
                    self.apply(&message, at, out);
                } else {
                    self.in_flight.push_back(InFlight { sent: at, from: end, message, key });
                }
            }
        }
    }

    /// False when the message was seen before.
    fn remember(&mut self, key: u64) -> bool {
        if !self.seen_messages.insert(key) {
            return false;
        }
        self.seen_order.push_back(key);
        if self.seen_order.len() > MAX_SEEN
            && let Some(old) = self.seen_order.pop_front()
        {
            self.seen_messages.remove(&old);
        }
        true
    }

    /// Outputs that were sent long ago and never seen arriving count as received then.
    pub(super) fn release_in_flight(&mut self, now: EventNanos, out: &mut Vec<Output>) {
        while self.in_flight.front().is_some_and(|m| m.sent.saturating_add(IN_FLIGHT) <= now) {
            let Some(message) = self.in_flight.pop_front() else { return };
            if self.receivers == Receivers::Unknown {
                self.receivers = Receivers::Unseen;
            }
            self.apply(&message.message, message.sent, out);
        }
    }

    fn apply(&mut self, message: &Outputs, received: EventNanos, out: &mut Vec<Output>) {
        if message.utility && message.outputs.is_empty() {
            return;
        }
        let engine = message.engine;
        let stamp = message.timestamp.map_or(received as i64, |at| (at * 1e9).round() as i64);
        let at = message.timestamp.map_or(received, |at| self.clock.event_of_engine(at));
        let share = self.share(message);
        let (step, before) = self.steps.entry(engine).or_default().message(engine, stamp, at, share);
        if let Some(before) = before {
            self.emit_step(&before, out);
        }
        for output in &message.outputs {
            self.output(engine, output, at, received, step, message.cut, out);
        }
        if let Some(stats) = message.stats {
            out.push(Output::Metric(Metric::Scheduler {
                labels: self.labels(engine),
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
            .map(|e| self.clock.event_of_engine(e.at))
            .min();
        let is_first = |o: &&RequestOutput| {
            self.generation_of.get(o.id.as_str()).and_then(|k| self.generations.get(k)).is_none_or(|g| g.last.is_none())
        };
        Share {
            requests: message.outputs.len() as u64,
            tokens: message.outputs.iter().map(|o| o.tokens).sum(),
            prefills: message.outputs.iter().filter(is_first).count() as u64,
            first_scheduled,
            stats: message.stats,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one output's facts; a struct would be built only to be taken apart")]
    fn output(
        &mut self,
        engine: u32,
        output: &RequestOutput,
        at: EventNanos,
        received: EventNanos,
        step: StepRef,
        cut: bool,
        out: &mut Vec<Output>,
    ) {
        let key = match self.generation_of.get(output.id.as_str()) {
            Some(&key) => key,
            None if self.recent.contains(output.id.as_str()) => return,
            // Its ADD was before the attach (or lost).
            None => {
                let key = self.key();
                let id: Arc<str> = Arc::from(output.id.as_str());
                let external = ids::external_of(&id).to_owned();
                self.generations.insert(key, Generation::new(Arc::clone(&id), external, received));
                self.generation_of.insert(id, key);
                key
            }
        };
        let Some(generation) = self.generations.get_mut(&key) else { return };
        let Some(took) = generation.take(output, at, received, step, &self.clock) else { return };
        generation.lost |= cut;
        if took.first
            && let (Some(scheduled), Some(steps)) = (generation.scheduled, self.steps.get(&engine))
        {
            generation.chunks = steps.ends_between(scheduled, at).take(MAX_CHUNKS).collect();
        }
        let exchange = generation.exchange;
        let prompt = (generation.prompt_tokens, generation.cached_tokens);
        let first_seen = generation.added.is_some() || !output.events.is_empty() || output.prompt_tokens.is_some();
        let labels = self.labels(engine);
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
        match exchange {
            Some(exchange) if took.over => self.touched.push(exchange),
            None => self.join_by_id(key),
            Some(_) => {}
        }
    }
}

/// Tells an output message from every other, the same at both of its ends.
fn identity(message: &Outputs) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&message.engine.to_le_bytes());
    hash.update(&message.timestamp.unwrap_or(0.0).to_bits().to_le_bytes());
    hash.update(&[u8::from(message.stats.is_some())]);
    for output in &message.outputs {
        hash.update(output.id.as_bytes());
        hash.update(&output.tokens.to_le_bytes());
    }
    hash.digest()
}
