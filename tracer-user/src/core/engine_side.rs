//! The engine side: requests, cancellations and outputs on the ZMTP connections, each seen at both ends and counted once.
//!
//! Enters: an engine's messages as they are sighted, calls of the front end's functions. Leaves: engine requests that begin, learn
//! something and end, and what their steps gave. Invariant: an output counts once, when the front end has it.

use super::encodes::Encodes;
use super::in_flight::InFlight;
use super::scene::Scene;
use super::steps::Work;
use super::uptake::{TakenUp, Uptake};
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
        let mut due = std::mem::take(&mut self.due);
        self.in_flight.sighted(at, end, direction, message, &mut due);
        let firsts = self.apply_due(&mut due, Some(seen), work, scene);
        self.due = due;
        if direction == Direction::In {
            self.uptake.arrived(process, stamped, firsts);
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
    pub(super) fn decodes(&mut self, process: u32, thread: u32, at: EventNanos, scene: &mut Scene<'_>) {
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
mod tests {
    use super::*;
    use crate::core::scene::tests::Ground;
    use crate::engine::RequestOutput;
    use crate::input::Fact;
    use crate::output::Output;

    const API: u32 = 1;
    const ENGINE: u32 = 2;
    const MS: EventNanos = 1_000_000;

    /// The two ends of an engine's connections, and what the engine side makes of them.
    #[derive(Default)]
    struct Stage {
        messages: EngineSide,
        ground: Ground,
    }

    impl Stage {
        /// A message is seen at the API server's end, or at the engine's, as it leaves or arrives.
        fn seen(&mut self, at: EventNanos, process: u32, direction: Direction, message: EngineMessage) {
            let end = End(u64::from(process));
            if self.ground.connections.get(end).is_none() {
                self.ground.scene().connect(end, process, true);
            }
            self.ground.now = at;
            let (mut work, mut scene) = self.ground.all();
            self.messages.message(Sighting { at, process, end, direction }, message, &mut work, &mut scene);
        }

        fn release(&mut self, at: EventNanos) {
            self.ground.now = at;
            let (mut work, mut scene) = self.ground.all();
            self.messages.release(at, &mut work, &mut scene);
        }

        /// Tokens of the engine requests, in the order in which they came.
        fn tokens(&self) -> Vec<u64> {
            self.ground.requests.generations.iter().map(|(_, g)| g.output_tokens).collect()
        }
    }

    fn add(id: &str, arrival: f64) -> EngineMessage {
        EngineMessage::Add(Add { id: id.into(), arrival: Some(arrival), ..Add::default() })
    }

    /// A step of engine 0 gave one token for each, stamped in seconds.
    fn outputs(stamp: Option<f64>, ids: &[&str]) -> EngineMessage {
        let output = |id: &&str| RequestOutput { id: (*id).into(), tokens: 1, ..RequestOutput::default() };
        let outputs = ids.iter().map(output).collect();
        EngineMessage::Outputs(Outputs { outputs, timestamp: stamp, ..Outputs::default() })
    }

    #[test]
    fn an_engine_request_is_one_at_both_of_its_ends() {
        // sent 10 ─ arrives 12
        let mut stage = Stage::default();
        stage.seen(10, API, Direction::Out, add("a-0123abcd", 1.0));
        stage.seen(12, ENGINE, Direction::In, add("a-0123abcd", 1.0));
        let all: Vec<_> = stage.ground.requests.generations.iter().map(|(_, g)| g).collect();
        let [generation] = all[..] else { panic!("{all:?}") };
        assert_eq!((generation.added, generation.process, generation.engine_process), (Some(10), API, ENGINE));
    }

    #[test]
    fn an_engine_that_hears_of_a_request_that_has_left_makes_no_second_one() {
        // sent 10 ─ leaves 20 ─ the engine has it 30 · the same id with another arrival is another request
        let mut stage = Stage::default();
        stage.seen(10, API, Direction::Out, add("a-0123abcd", 1.0));
        let requests = &mut stage.ground.requests;
        requests.generations.key_of("a-0123abcd").map(|key| requests.generations.remove(key, &mut requests.index));
        stage.seen(30, ENGINE, Direction::In, add("a-0123abcd", 1.0));
        assert_eq!(stage.tokens(), [] as [u64; 0]);
        stage.seen(40, ENGINE, Direction::In, add("a-0123abcd", 2.0));
        assert_eq!(stage.tokens(), [0]);
    }

    #[test]
    fn an_id_that_a_client_uses_again_is_another_request() {
        // sent, cancelled ─ sent again, with another arrival
        let mut stage = Stage::default();
        for arrival in [1.0, 2.0] {
            stage.seen(10, API, Direction::Out, add("a-0123abcd", arrival));
            stage.seen(20, API, Direction::Out, EngineMessage::Abort(vec!["a-0123abcd".into()]));
        }
        assert_eq!(stage.tokens(), [0, 0]);
    }

    #[test]
    fn what_is_cancelled_takes_no_more_outputs() {
        // sent ─ output ─ cancelled ─ output, which the front end drops
        let mut stage = Stage::default();
        stage.seen(10, API, Direction::Out, add("a-0123abcd", 1.0));
        stage.seen(20, API, Direction::In, outputs(Some(1.0), &["a-0123abcd"]));
        stage.seen(30, API, Direction::Out, EngineMessage::Abort(vec!["a-0123abcd".into()]));
        stage.seen(40, API, Direction::In, outputs(Some(2.0), &["a-0123abcd"]));
        assert_eq!(stage.tokens(), [1]);
        assert_eq!(stage.ground.requests.generations.unclaimed().count(), 1, "it waits to be claimed");
    }

    #[test]
    fn an_output_counts_once_and_one_that_never_arrives_when_it_is_overdue() {
        // leaves 1 ms ─ arrives 2 ms · leaves 3 ms ─ … ─ 250 ms later
        let mut stage = Stage::default();
        stage.seen(MS, ENGINE, Direction::Out, outputs(Some(1.0), &["a-0123abcd"]));
        assert_eq!(stage.tokens(), [] as [u64; 0]);
        stage.seen(2 * MS, API, Direction::In, outputs(Some(1.0), &["a-0123abcd"]));
        stage.seen(3 * MS, ENGINE, Direction::Out, outputs(Some(2.0), &["a-0123abcd"]));
        stage.release(252 * MS);
        assert_eq!(stage.tokens(), [1]);
        stage.release(253 * MS);
        assert_eq!(stage.tokens(), [2]);
    }

    #[test]
    fn what_the_coordinator_hears_counts_for_nobody() {
        let mut stage = Stage::default();
        stage.ground.about.fact(Fact::Process { tgid: 9, role: Role::Coordinator });
        stage.seen(MS, ENGINE, Direction::Out, outputs(Some(1.0), &["a-0123abcd"]));
        stage.seen(2 * MS, 9, Direction::In, outputs(Some(1.0), &["a-0123abcd"]));
        stage.release(900 * MS);
        assert_eq!(stage.tokens(), [] as [u64; 0]);
    }

    #[test]
    fn an_engine_that_dies_ends_what_it_may_have_run() {
        // a: of engine 0 · b: of engine 1 · c: gave nothing yet ─ engine 0 says that it is dead
        let mut stage = Stage::default();
        for id in ["a-0123abcd", "b-0123abcd", "c-0123abcd"] {
            stage.seen(10, API, Direction::Out, add(id, 1.0));
        }
        let EngineMessage::Outputs(of_other) = outputs(Some(1.0), &["b-0123abcd"]) else { return };
        let other = EngineMessage::Outputs(Outputs { engine: 1, ..of_other });
        stage.seen(20, 5, Direction::In, other);
        stage.seen(30, API, Direction::In, outputs(Some(1.0), &["a-0123abcd"]));
        stage.seen(40, API, Direction::In, EngineMessage::Dead);
        let over: Vec<bool> = stage.ground.requests.generations.iter().map(|(_, g)| g.settled()).collect();
        assert_eq!(over, [true, false, true]);
    }

    #[test]
    fn a_message_that_was_cut_marks_those_that_are_not_in_what_was_read() {
        // a, b, c run ─ of a step's message a was read, b in part, c not at all
        let mut stage = Stage::default();
        for id in ["a-0123abcd", "b-0123abcd", "c-0123abcd"] {
            stage.seen(10, API, Direction::Out, add(id, 1.0));
        }
        let EngineMessage::Outputs(whole) = outputs(None, &["a-0123abcd", "b-0123abcd"]) else { return };
        stage.seen(20, API, Direction::In, EngineMessage::Outputs(Outputs { missing: 2, ..whole }));
        let lost: Vec<bool> = stage.ground.requests.generations.iter().map(|(_, g)| g.lost).collect();
        assert_eq!((lost, stage.ground.losses()), (vec![false, true, true], vec![(LossStage::Cut, 1)]));
    }

    #[test]
    fn stamps_and_counts_of_any_size_break_nothing() {
        use crate::engine::{LifeEvent, LifeEventKind, SchedulerStats};
        let hostile = [0.0, -1.0, 1e300, -1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let mut stage = Stage::default();
        for (n, (stamp, at)) in hostile.iter().flat_map(|stamp| [(*stamp, 0), (*stamp, u64::MAX)]).enumerate() {
            let id = format!("{}-0123abcd", n % 3);
            stage.seen(at, API, Direction::Out, add(&id, stamp));
            let event = |kind| LifeEvent { kind, at: stamp };
            let output = RequestOutput {
                id,
                tokens: u64::MAX,
                events: vec![event(LifeEventKind::Queued), event(LifeEventKind::Scheduled)],
                prompt_tokens: Some(u64::MAX),
                ..RequestOutput::default()
            };
            let all = u64::MAX;
            let stats =
                SchedulerStats { running: all, waiting: all, kv_cache_usage: stamp, ..SchedulerStats::default() };
            let outputs = vec![output.clone(), output];
            let message = Outputs { outputs, stats: Some(stats), timestamp: Some(stamp), ..Outputs::default() };
            stage.seen(at, API, Direction::In, EngineMessage::Outputs(message));
            let (mut work, mut scene) = stage.ground.all();
            work.settle(at, &mut scene);
        }
        assert_eq!(stage.tokens(), [u64::MAX; 3]);
        assert!(stage.ground.out.iter().any(|output| matches!(output, Output::Step(_))));
    }
}
