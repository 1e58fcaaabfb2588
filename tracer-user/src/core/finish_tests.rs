use super::*;
use crate::core::exchanges::tests::completion;
use crate::core::scene::tests::Ground;
use crate::engine::ENGINES;
use crate::input::cuda::{Seen, Sums};
use crate::model::generation::{Phase, StepRef, TokensAt};
use crate::output::{FinishReason, Output};

/// What is open, and its timers.
struct Stage {
    finish: Finish,
    ground: Ground,
}

impl Stage {
    fn new() -> Self {
        Self::seeing(true)
    }

    /// Closes are seen, or not.
    fn seeing(closes_visible: bool) -> Self {
        let config = Config { closes_visible, ..Config::default() };
        Self { finish: Finish::new(config), ground: Ground::default() }
    }

    /// A request that was read whole at `at`, and how it ended.
    fn exchange(&mut self, at: EventNanos, ending: Option<(EventNanos, Ending)>) -> u64 {
        let key = self.ground.requests.key();
        let mut exchange = completion(at);
        exchange.ending = ending;
        self.ground.requests.begin(key, exchange);
        if ending.is_some() {
            self.ground.requests.exchanges.touch_ended(key);
        }
        key
    }

    /// An engine request of it, sent at `at`.
    fn generation(&mut self, exchange: Option<u64>, at: EventNanos, phase: Phase) -> u64 {
        let id = format!("cmpl-{at}-0-0123abcd");
        let ids = ENGINES[0].identify(&id, None);
        let mut generation = Generation::new(id.as_str().into(), ids, at);
        generation.process = 7;
        generation.added = Some(at);
        let key = self.ground.requests.insert(generation);
        if let Some(exchange) = exchange {
            self.ground.requests.generations.claimed(key, exchange);
            self.ground.requests.exchanges.change(exchange, |exchange| exchange.generations.push(key));
        }
        if let Some(generation) = self.ground.requests.generations.get_mut(key) {
            generation.phase = phase;
            if generation.settled() {
                self.ground.requests.settled(key);
            }
        }
        key
    }

    /// All timers at `at`: the outcomes and the missing parts of what left, since the last call.
    fn at(&mut self, at: EventNanos) -> Vec<(&'static str, String)> {
        self.ground.now = at;
        let (mut work, mut scene) = self.ground.all();
        self.finish.settle_touched(&mut work, &mut scene);
        self.finish.slow_sweep(&mut work, &mut scene);
        self.finish.sweep(&mut work, &mut scene);
        self.left()
    }

    fn left(&mut self) -> Vec<(&'static str, String)> {
        let left = self.ground.out.drain(..).filter_map(|output| match output {
            Output::Access(record) => Some((record.outcome.name(), record.incomplete.to_string())),
            _ => None,
        });
        left.collect()
    }
}

const OVER: Phase = Phase::Over { at: 3 * SECOND, reason: FinishReason::Length };

#[test]
fn engine_requests_of_an_exchange_that_ended_have_five_seconds_to_settle() {
    // sent 2 s ─ response whole 10 s ─ 15 s: nothing ─ then it is let go, marked
    let mut stage = Stage::new();
    let exchange = stage.exchange(SECOND, Some((10 * SECOND, Ending::Complete)));
    stage.generation(Some(exchange), 2 * SECOND, Phase::Producing);
    assert_eq!(stage.at(15 * SECOND), []);
    let left = stage.at(15 * SECOND + 1);
    assert_eq!(left.len(), 1);
    assert!(left[0].1.contains("records_lost"), "{left:?}");
    assert_eq!(stage.at(90 * SECOND), [], "once");
}

#[test]
fn an_exchange_whose_engine_requests_are_settled_leaves_at_once() {
    let mut stage = Stage::new();
    let exchange = stage.exchange(SECOND, Some((10 * SECOND, Ending::Complete)));
    stage.generation(Some(exchange), 2 * SECOND, OVER);
    assert_eq!(stage.at(10 * SECOND).len(), 1);
}

#[test]
fn an_exchange_without_engine_requests_waits_half_a_second_for_one() {
    // response whole 10 s ─ 10.5 s: nothing ─ then it leaves alone
    let mut stage = Stage::new();
    stage.exchange(SECOND, Some((10 * SECOND, Ending::Complete)));
    assert_eq!(stage.at(10 * SECOND + SECOND / 2), []);
    let left = stage.at(10 * SECOND + SECOND / 2 + 1);
    assert_eq!(
        left.iter().map(|(outcome, missing)| (*outcome, missing.contains("engine_side_unseen"))).collect::<Vec<_>>(),
        [("stop", true)]
    );
}

#[test]
fn one_that_needs_no_engine_request_waits_for_none() {
    // refused with a 400 · left before it was whole · by an engine whose messages are not read
    let mut stage = Stage::new();
    let refused = stage.exchange(SECOND, Some((10 * SECOND, Ending::Complete)));
    stage.ground.requests.exchanges.change(refused, |exchange| exchange.status = Some(400));
    let left = stage.exchange(SECOND, Some((10 * SECOND, Ending::Disconnected)));
    stage.ground.requests.exchanges.change(left, |exchange| exchange.complete = None);
    assert_eq!(stage.at(10 * SECOND).len(), 2);
    stage.ground.engine = ENGINES[1];
    stage.exchange(SECOND, Some((10 * SECOND, Ending::Complete)));
    assert_eq!(stage.at(10 * SECOND).len(), 1);
}

#[test]
fn an_end_that_was_not_seen_counts_from_when_it_was_noticed() {
    // last written 10 s ─ noticed 30 s ─ 35 s: nothing ─ then it is let go
    let mut stage = Stage::new();
    let exchange = stage.exchange(SECOND, Some((10 * SECOND, Ending::Unseen)));
    stage.ground.requests.exchanges.change(exchange, |exchange| exchange.noticed = 30 * SECOND);
    stage.generation(Some(exchange), 2 * SECOND, Phase::Producing);
    assert_eq!(stage.at(35 * SECOND), []);
    assert_eq!(stage.at(35 * SECOND + 1).iter().map(|(outcome, _)| *outcome).collect::<Vec<_>>(), ["unknown"]);
}

#[test]
fn a_settled_engine_request_waits_two_seconds_where_no_exchange_could_be_its() {
    // sent 2 s, over ─ 4 s: nothing ─ then it leaves on its own
    let mut stage = Stage::new();
    stage.generation(None, 2 * SECOND, OVER);
    assert_eq!(stage.at(4 * SECOND), []);
    let left = stage.at(4 * SECOND + 1);
    assert!(left.len() == 1 && left[0].1.contains("http_side_unseen"), "{left:?}");
}

#[test]
fn and_a_minute_where_one_could() {
    // request whole 1 s, its response showed no id yet · sent 2 s, over ─ 62 s: nothing ─ then it leaves
    let mut stage = Stage::new();
    stage.exchange(SECOND, None);
    stage.generation(None, 2 * SECOND, OVER);
    assert_eq!(stage.at(62 * SECOND), []);
    assert_eq!(stage.at(62 * SECOND + 1).len(), 1);
}

#[test]
fn where_closes_are_not_seen_quiet_after_all_was_cancelled_is_the_clients_leaving() {
    // sent 2 s, cancelled 10 s ─ 15 s: it left, as of 10 s; where closes are seen nothing says so
    for (closes_visible, left) in [(false, vec!["abort"]), (true, vec![])] {
        let mut stage = Stage::seeing(closes_visible);
        let exchange = stage.exchange(SECOND, None);
        stage.generation(Some(exchange), 2 * SECOND, Phase::Aborted { at: 10 * SECOND });
        assert_eq!(stage.at(15 * SECOND - 1), []);
        let outcomes: Vec<_> = stage.at(15 * SECOND).iter().map(|(outcome, _)| *outcome).collect();
        assert_eq!(outcomes, left);
    }
}

#[test]
fn a_cancelled_engine_request_is_tried_again_for_a_client_that_was_seen_leaving_since() {
    // request whole 1 s ─ sent 2 s ─ cancelled 3 s ─ the client is seen leaving 3.5 s ─ the next look joins them
    let mut stage = Stage::new();
    let exchange = stage.exchange(SECOND, None);
    stage.generation(None, 2 * SECOND, Phase::Aborted { at: 3 * SECOND });
    stage.ground.requests.exchanges.change(exchange, |exchange| {
        exchange.disconnected = Some(7 * SECOND / 2);
        exchange.close(7 * SECOND / 2, Ending::ServerClosed);
    });
    stage.ground.requests.exchanges.client_left(exchange);
    stage.ground.requests.exchanges.touch_ended(exchange);
    let left = stage.at(7 * SECOND / 2);
    assert_eq!(
        left.iter().map(|(outcome, missing)| (*outcome, missing.contains("side_unseen"))).collect::<Vec<_>>(),
        [("abort", false)]
    );
}

#[test]
fn a_response_whose_end_was_missed_is_over_after_a_minute_and_counted() {
    // engine request over 3 s ─ last written 10 s ─ 70 s
    let mut stage = Stage::new();
    let exchange = stage.exchange(SECOND, None);
    stage.generation(Some(exchange), 2 * SECOND, OVER);
    stage.ground.requests.exchanges.change(exchange, |exchange| exchange.last_write = Some(10 * SECOND));
    assert_eq!(stage.at(70 * SECOND - 1), []);
    stage.ground.now = 70 * SECOND;
    let (mut work, mut scene) = stage.ground.all();
    stage.finish.slow_sweep(&mut work, &mut scene);
    stage.finish.sweep(&mut work, &mut scene);
    assert_eq!(stage.ground.losses(), [(LossStage::HttpEnd, 1)]);
    assert_eq!(stage.left().iter().map(|(outcome, _)| *outcome).collect::<Vec<_>>(), ["unknown"]);
}

#[test]
fn a_request_waits_for_the_last_step_that_it_was_in_where_cuda_is_seen() {
    // last output stamped 10 s ─ response whole 10 s ─ 10.3 s: the step may not have left yet
    let mut core = crate::core::Core::new(Config::default());
    core.cuda(1, 9, 9, Seen::Burst(Sums { first: 1, last: 1, launches: 1, ..Sums::default() }), &mut Vec::new());
    let mut stage = Stage::new();
    stage.ground.cuda = core.cuda;
    let exchange = stage.exchange(SECOND, Some((10 * SECOND, Ending::Complete)));
    let key = stage.generation(Some(exchange), 2 * SECOND, OVER);
    let step = StepRef { engine: 0, stamp: 0 };
    if let Some(generation) = stage.ground.requests.generations.get_mut(key) {
        generation.last = Some(TokensAt { at: 10 * SECOND, received: 10 * SECOND, tokens: 1, step });
    }
    assert_eq!(stage.at(10 * SECOND + 3 * SECOND / 10), []);
    assert_eq!(stage.at(10 * SECOND + 3 * SECOND / 10 + 1).len(), 1);
}

#[test]
fn the_oldest_leave_early_where_too_many_are_open() {
    // 65,537 requests and as many engine requests without one: one of each goes, and is counted
    let mut stage = Stage::new();
    for at in 0..=MAX_OPEN as u64 {
        stage.exchange(SECOND + at, None);
        stage.generation(None, 2 * SECOND + at, Phase::Producing);
    }
    let (mut work, mut scene) = stage.ground.all();
    stage.finish.evict(&mut work, &mut scene);
    assert_eq!(stage.ground.losses(), [(LossStage::Evicted, 1), (LossStage::Evicted, 1)]);
    assert_eq!((stage.ground.requests.exchanges.len(), stage.ground.requests.generations.len()), (MAX_OPEN, MAX_OPEN));
    assert!(stage.ground.requests.exchanges.get(1).is_none() && stage.ground.requests.generations.get(2).is_none());
}

#[test]
fn at_the_end_all_that_is_open_leaves_part_by_part() {
    // 300 requests: one is whole and has ended, one is still coming in, of which nothing is known ─ one engine request alone
    let mut stage = Stage::new();
    stage.exchange(SECOND, Some((10 * SECOND, Ending::Complete)));
    let coming = stage.exchange(SECOND, None);
    stage.ground.requests.exchanges.change(coming, |exchange| exchange.complete = None);
    for _ in 2..300 {
        stage.exchange(SECOND, None);
    }
    stage.generation(None, 2 * SECOND, OVER);
    let part = |stage: &mut Stage| {
        let (mut work, mut scene) = stage.ground.all();
        let is_more = stage.finish.part(&mut work, &mut scene);
        let traces = stage.ground.out.drain(..).filter(|output| matches!(output, Output::Trace(_))).count();
        (is_more, traces)
    };
    assert_eq!((part(&mut stage), part(&mut stage)), ((true, PART - 1), (false, 300 - PART + 1)));
}

#[test]
fn timers_fire_every_50_ms_and_once_a_second_and_at_the_end_of_time() {
    let mut finish = Finish::new(Config::default());
    let due: Vec<bool> = [0, 49, 50, 99, 100].map(|ms| finish.is_due(ms * 1_000_000)).into();
    assert_eq!(due, [true, false, true, false, true]);
    let slow: Vec<bool> = [0, 999, 1000].map(|ms| finish.is_slow_due(ms * 1_000_000)).into();
    assert_eq!(slow, [true, false, true]);
    assert!(finish.is_due(u64::MAX) && finish.is_slow_due(u64::MAX));
}
