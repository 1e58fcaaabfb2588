//! The engine side: requests, cancellations and outputs on the ZMTP connections, each seen at both ends and counted once.
//!
//! Enters: an engine's messages as they are sighted, calls of the front end's functions. Leaves: engine requests that begin, learn
//! something and end, and what their steps gave. Invariant: an output counts once, when the front end has it.

use super::encodes::Encodes;
use super::in_flight::InFlight;
use super::scene::Scene;
use super::steps::Work;
use super::uptake::{Message, TakenUp, Uptake};
use super::{loss, outputs};
use crate::engine::{Add, EngineMessage, Outputs};
use crate::input::{Direction, End, EventNanos, LossStage, Role};
use crate::model::generation::Generation;

/// Where and when a message was seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    pub at: EventNanos,
    pub process: u32,
    pub end: End,
    pub direction: Direction,
}

/// What waits between the two ends of the engine's connections, and between the front end's functions and its messages.
#[derive(Debug, Default)]
pub(super) struct EngineSide {
    in_flight: InFlight,
    uptake: Uptake,
    encodes: Encodes,
    /// Scratch of messages that count now.
    due: Vec<(EventNanos, Outputs)>,
}

impl EngineSide {
    pub(super) fn message(
        &mut self,
        seen: Sighting,
        message: EngineMessage,
        work: &mut Work<'_>,
        scene: &mut Scene<'_>,
    ) {
        match message {
            EngineMessage::Add(add) => self.add(seen, add, scene),
            EngineMessage::Abort(ids) => abort(seen.at, &ids, scene),
            EngineMessage::Outputs(outputs) => self.outputs(seen, outputs, work, scene),
            EngineMessage::Dead => {
                let engine = scene.connections.get(seen.end).and_then(|connection| connection.engine);
                scene.requests.over(seen.at, |generation| engine.is_none_or(|engine| generation.may_be_of(engine)));
            }
            EngineMessage::Ready { version } => {
                if let Some(version) = version {
                    scene.about.version(version);
                }
            }
            EngineMessage::Unreadable => {
                scene.count_loss(LossStage::Unreadable, 1);
                loss::outputs(seen.end, &[], scene);
            }
            EngineMessage::Other => {}
        }
    }

    fn add(&mut self, seen: Sighting, add: Add, scene: &mut Scene<'_>) {
        let Sighting { at, process, direction, .. } = seen;
        if add.cut && direction == Direction::Out {
            scene.count_loss(LossStage::Cut, 1);
        }
        let known = scene.requests.generations.key_of(&add.id);
        let clock = &scene.about.clock;
        let arrival = add.arrival.map(|unix| clock.event_of_unix((unix * 1e9) as u64));
        let again = known.and_then(|key| scene.requests.generations.get_mut(key)).filter(|generation| {
            // The other end of the same message; an id that a client uses again comes with another arrival.
            generation.arrival == arrival || !generation.settled()
        });
        let key = if let (Some(generation), Some(key)) = (again, known) {
            generation.added = Some(generation.added.map_or(at, |added| added.min(at)));
            key
        } else {
            if direction == Direction::In && scene.requests.generations.is_gone(&add.id, arrival) {
                // The engine is so far behind that the request was given up, and has left, before it heard of it.
                return;
            }
            let ids = scene.engine.identify(&add.id, add.external_id.as_deref());
            scene.requests.insert(Generation::from_add(add, ids, at, clock))
        };
        if let Some(generation) = scene.requests.generations.get_mut(key) {
            match direction {
                Direction::In => generation.engine_process = process,
                Direction::Out => {
                    let encode = self.encodes.take(process, generation);
                    generation.process = process;
                    generation.encode = generation.encode.or(encode);
                }
            }
        }
        scene.requests.join().by_id(key);
    }

    fn outputs(&mut self, seen: Sighting, message: Outputs, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        let Sighting { at, process, end, direction } = seen;
        // What an engine tells the coordinator is the state that it tells a front end too.
        if direction == Direction::In && scene.about.role(process) == Some(Role::Coordinator) {
            self.in_flight.forget(&message);
            return;
        }
        if let Some(connection) = scene.connections.get_mut(end) {
            connection.engine = Some(message.engine);
        }
        scene.about.hears_of(message.engine, (direction == Direction::Out).then_some(process));
        let stamped = !message.outputs.is_empty();
        let clock = &scene.about.clock;
        // A stamp that is placed by an estimate says nothing of milliseconds.
        let stamp = message.timestamp.filter(|_| stamped && !clock.engine_is_estimated());
        let of = stamp.map(|stamp| (message.engine, clock.event_of_engine(stamp).min(at)));
        if let (Direction::Out, Some((engine, stamp))) = (direction, of) {
            work.steps.engine_sent(engine, stamp, at);
        }
        let mut due = std::mem::take(&mut self.due);
        self.in_flight.sighted(at, end, direction, message, &mut due);
        let firsts = self.apply_due(&mut due, Some(seen), work, scene);
        self.due = due;
        if direction == Direction::In {
            if let Some((engine, stamp)) = of {
                work.steps.front_end_has(process, engine, stamp, at);
            }
            self.uptake.arrived(process, Message { of, stamped, firsts });
        }
    }

    /// Outputs that were sent long ago and never seen arriving count as received then.
    pub(super) fn release(&mut self, now: EventNanos, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        let mut due = std::mem::take(&mut self.due);
        self.in_flight.overdue(now, &mut due);
        let _ = self.apply_due(&mut due, None, work, scene);
        self.due = due;
    }

    /// Gives the requests whose first output is in these messages.
    fn apply_due(
        &mut self,
        due: &mut Vec<(EventNanos, Outputs)>,
        seen: Option<Sighting>,
        work: &mut Work<'_>,
        scene: &mut Scene<'_>,
    ) -> Vec<u64> {
        let mut firsts = Vec::new();
        for (received, message) in due.drain(..) {
            if message.missing > 0 {
                scene.count_loss(LossStage::Cut, 1);
                let present: Vec<&str> = message.outputs.iter().map(|output| output.id.as_str()).collect();
                if let Some(seen) = seen {
                    // The last one that is there was not read whole.
                    loss::outputs(seen.end, &present[..present.len().saturating_sub(1)], scene);
                }
            }
            let front_end = seen.filter(|s| s.direction == Direction::In).map(|s| s.process);
            firsts.extend(outputs::apply(&message, received, front_end.unwrap_or(0), &mut self.uptake, work, scene));
        }
        firsts
    }

    /// A call of the tokenizer returned.
    pub(super) fn encoded(&mut self, process: u32, entered: EventNanos, returned: EventNanos) {
        self.encodes.returned(process, entered, returned);
    }

    /// The front end decodes a message.
    pub(super) fn decodes(
        &mut self,
        process: u32,
        thread: u32,
        at: EventNanos,
        work: &mut Work<'_>,
        scene: &mut Scene<'_>,
    ) {
        if let Some((engine, stamp)) = self.uptake.next(process) {
            work.steps.front_end_has(process, engine, stamp, at);
        }
        taken_up(&self.uptake.decodes(process, thread, at), scene);
    }

    /// The front end reads its clock, with its stack at `stack`.
    pub(super) fn reads_clock(&mut self, process: u32, thread: u32, at: EventNanos, stack: u32, scene: &mut Scene<'_>) {
        taken_up(&self.uptake.reads_clock(process, thread, at, stack), scene);
    }

    /// Calls of the front ends' functions may have been lost.
    pub(super) fn calls_lost(&mut self) {
        self.uptake.lost();
    }

    /// Messages of which it is not known any more when they were taken up, since the last call.
    pub(super) fn take_given_up(&mut self) -> u64 {
        self.uptake.take_given_up()
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: EventNanos) {
        self.encodes.expire(now);
    }

    pub(super) fn process_ended(&mut self, process: u32) {
        self.encodes.ended(process);
        self.uptake.ended(process);
    }
}

fn abort(at: EventNanos, ids: &[String], scene: &mut Scene<'_>) {
    for id in ids {
        let Some(key) = scene.requests.generations.key_of(id) else { continue };
        if let Some(generation) = scene.requests.generations.get_mut(key) {
            generation.abort(at);
            scene.requests.settled(key);
            if !scene.requests.generations.has_lead(key) {
                scene.requests.join().cancelled(key, false);
            }
        }
    }
}

/// The front end got to the first output of these requests then.
fn taken_up(taken_up: &TakenUp, scene: &mut Scene<'_>) {
    for (firsts, at) in taken_up {
        for key in firsts {
            if let Some(generation) = scene.requests.generations.get_mut(*key) {
                generation.taken_up = Some(*at);
            }
        }
    }
}

impl Generation {
    /// Whether this engine runs it, as far as is known before its first output.
    pub(super) fn may_be_of(&self, engine: u32) -> bool {
        self.first.is_none() || self.engine == engine
    }
}

#[cfg(test)]
#[path = "engine_side_tests.rs"]
mod tests;
