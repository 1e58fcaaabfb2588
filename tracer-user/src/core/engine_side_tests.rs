use super::*;
use crate::core::scene::tests::Ground;
use crate::engine::RequestOutput;
use crate::input::Fact;
use crate::model::lags::Lagged;
use crate::model::load::Wait;
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
fn a_front_end_that_stands_still_is_behind_its_engine() {
    // a gives a token in the steps at 1.0, 1.1, 1.2 s ─ received 1 ms later each ─ got to at 1.001, 1.401, 1.402 s
    let mut stage = Stage::default();
    let decodes = |stage: &mut Stage, at| {
        let (mut work, mut scene) = stage.ground.all();
        stage.messages.decodes(API, API, at, &mut work, &mut scene);
    };
    decodes(&mut stage, 1);
    for stamp in [1_000, 1_100, 1_200] {
        stage.seen((stamp + 1) * MS, API, Direction::In, outputs(Some(stamp as f64 / 1e3), &["a-0123abcd"]));
        if stamp == 1_000 {
            decodes(&mut stage, 1_001 * MS);
        }
    }
    for at in [1_401, 1_402] {
        decodes(&mut stage, at * MS);
    }
    let mut generation = stage.ground.requests.generations.of_id("a-0123abcd").cloned().expect("it is open");
    stage.ground.steps.look_back(&mut generation);
    let lagged = Lagged { first: Some(MS), most: Some(301 * MS), last: Some(202 * MS) };
    assert_eq!(generation.lagged.as_deref(), Some(&lagged));
    stage.ground.steps.front_end_ended(API);
    stage.ground.steps.look_back(&mut generation);
    assert_eq!(generation.lagged, None);
}

#[test]
fn what_an_engine_sends_late_its_front_end_is_not_behind_with() {
    // a gives a token in the steps at 1.0, 1.1, 1.2 s ─ sent at 1.0, 1.1 and, the engine stood still, 3.2 s ─ received 1 ms later each
    let mut stage = Stage::default();
    for (stamp, sent) in [(1.0, 1_000), (1.1, 1_100), (1.2, 3_200)] {
        stage.seen(sent * MS, ENGINE, Direction::Out, outputs(Some(stamp), &["a-0123abcd"]));
        stage.seen((sent + 1) * MS, API, Direction::In, outputs(Some(stamp), &["a-0123abcd"]));
    }
    let mut generation = stage.ground.requests.generations.of_id("a-0123abcd").cloned().expect("it is open");
    stage.ground.steps.look_back(&mut generation);
    let lagged = Lagged { first: Some(MS), most: Some(MS), last: Some(MS) };
    assert_eq!(generation.lagged.as_deref(), Some(&lagged));
}

#[test]
fn what_too_many_front_ends_and_engines_leave_untold_is_counted() {
    // 1,024 front ends have had a token of engine 0 ─ another one's request, which waited at engine 0, then one at engine 256
    let mut stage = Stage::default();
    stage.seen(MS, API, Direction::In, outputs(Some(1.0), &["a-0123abcd"]));
    let mut generation = stage.ground.requests.generations.of_id("a-0123abcd").cloned().expect("it is open");
    generation.waits = vec![Wait { from: 1, to: 2, by_preemption: false, load: None }];
    let steps = &mut stage.ground.steps;
    steps.front_end_ended(API);
    assert_eq!(steps.look_back(&mut generation), 0);
    (0..1_025).for_each(|front_end| steps.front_end_has(1_000 + front_end, 0, 1, 2));
    assert_eq!(steps.look_back(&mut generation), 1, "how far its front end was behind");
    generation.engine = 256;
    assert_eq!(steps.look_back(&mut generation), 2, "and what it waited behind");
}

#[test]
fn where_the_engine_s_clock_is_an_estimate_nobody_is_behind() {
    let mut stage = Stage::default();
    stage.ground.about.fact(Fact::EngineClock { offset_ns: 7 });
    stage.seen(MS, API, Direction::In, outputs(Some(1.0), &["a-0123abcd"]));
    let mut generation = stage.ground.requests.generations.of_id("a-0123abcd").cloned().expect("it is open");
    stage.ground.steps.look_back(&mut generation);
    assert_eq!(generation.lagged, None);
}

#[test]
fn a_stamp_from_the_future_is_when_it_came() {
    // stamped ten thousand years from now, received at 2 and 4 ms: the first step is over by the second
    let mut stage = Stage::default();
    for at in [2 * MS, 4 * MS, 60 * MS] {
        stage.seen(at, API, Direction::In, outputs(Some(3e11 + at as f64), &["a-0123abcd"]));
    }
    let ends = stage.ground.out.iter().filter_map(|output| match output {
        Output::Step(step) => Some(step.end_ns),
        _ => None,
    });
    let ends: Vec<u64> = ends.collect();
    assert!(!ends.is_empty() && ends.iter().all(|end| *end <= 60 * MS), "{ends:?}");
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
        let stats = SchedulerStats { running: all, waiting: all, kv_cache_usage: stamp, ..SchedulerStats::default() };
        let outputs = vec![output.clone(), output];
        let message = Outputs { outputs, stats: Some(stats), timestamp: Some(stamp), ..Outputs::default() };
        stage.seen(at, API, Direction::In, EngineMessage::Outputs(message));
        let (mut work, mut scene) = stage.ground.all();
        work.settle(at, &mut scene);
    }
    assert_eq!(stage.tokens(), [u64::MAX; 3]);
    assert!(stage.ground.out.iter().any(|output| matches!(output, Output::Step(_))));
}
