use super::*;
use crate::decode::http::RequestHead;
use crate::engine::{Identity, Operation};
use crate::input::End;
use crate::model::beams::Beams;
use crate::model::generation::{Phase, StepRef, TokensAt};

const SECOND: EventNanos = 1_000_000_000;
static COMPLETION: Operation =
    Operation { name: "text_completion", route: "/v1/completions", id_prefix: Some("cmpl-") };
const STOP: Phase = Phase::Over { at: 8 * SECOND, reason: FinishReason::Stop };
const LENGTH: Phase = Phase::Over { at: 8 * SECOND, reason: FinishReason::Length };
const ERROR: Phase = Phase::Over { at: 8 * SECOND, reason: FinishReason::Error };
const ABORTED: Phase = Phase::Aborted { at: 8 * SECOND };

/// Read 1–2 s, over at 9 s as `ending` says.
fn exchange(status: Option<u16>, ending: Option<Ending>) -> Exchange {
    let mut exchange = Exchange::new(End(1), 7, SECOND, RequestHead::default(), &COMPLETION);
    exchange.complete = Some(2 * SECOND);
    exchange.status = status;
    exchange.ending = ending.map(|ending| (9 * SECOND, ending));
    exchange
}

/// Arrived 2 s ─ sent 3 s ─ queued 3 s ─ scheduled 4 s ─ tokens 5, 8 s.
fn generation(phase: Phase) -> Generation {
    let ids = Identity { external: "cmpl-a-0".into(), client: "cmpl-a".into(), ..Identity::default() };
    let mut generation = Generation::new("cmpl-a-0-0123abcd".into(), ids, 3 * SECOND);
    (generation.added, generation.arrival) = (Some(3 * SECOND), Some(2 * SECOND));
    (generation.queued, generation.scheduled) = (Some(3 * SECOND), Some(4 * SECOND));
    let token = |at| TokensAt { at, received: at, tokens: 1, step: StepRef { engine: 0, stamp: 0 } };
    (generation.first, generation.last) = (Some(token(5 * SECOND)), Some(token(8 * SECOND)));
    (generation.prompt_tokens, generation.cached_tokens, generation.output_tokens) = (Some(5), Some(1), 2);
    generation.phase = phase;
    generation
}

/// One that is another in something.
fn with(mut generation: Generation, change: impl FnOnce(&mut Generation)) -> Generation {
    change(&mut generation);
    generation
}

/// … tokenised 2–3 s.
fn tokens() -> Generation {
    with(generation(STOP), |g| g.encode = Some((2 * SECOND, 3 * SECOND)))
}

fn finished<'a>(exchange: Option<&'a Exchange>, generations: &'a [Generation]) -> Finished<'a> {
    let generations = generations.iter().collect();
    Finished { exchange, generations, tokenizer_probed: false, cut_off: false, http_only: false }
}

fn outcome(exchange: Option<&Exchange>, phases: &[Phase]) -> Option<Outcome> {
    let generations: Vec<Generation> = phases.iter().map(|phase| generation(*phase)).collect();
    finished(exchange, &generations).outcome()
}

#[test]
fn how_a_request_ended_is_said_by_its_response_before_its_engine_requests() {
    // The response was written whole: its status, then what the engine said.
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::Complete))), &[STOP]), Some(Outcome::Stop));
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::Complete))), &[STOP, LENGTH]), Some(Outcome::Length));
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::Complete))), &[LENGTH, ERROR]), Some(Outcome::Error));
    assert_eq!(outcome(Some(&exchange(Some(400), Some(Ending::Complete))), &[STOP]), Some(Outcome::Rejected));
    assert_eq!(outcome(Some(&exchange(Some(503), Some(Ending::Complete))), &[STOP]), Some(Outcome::Error));
    assert_eq!(
        outcome(Some(&exchange(Some(200), Some(Ending::Complete))), &[ABORTED]),
        Some(Outcome::Stop),
        "a stop string"
    );
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::Complete))), &[]), Some(Outcome::Stop));
    // The client left, whatever the engine did.
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::Disconnected))), &[STOP]), Some(Outcome::Abort));
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::Cancelled))), &[ABORTED]), Some(Outcome::Abort));
    // The server closed, or ended.
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::ServerClosed))), &[STOP]), Some(Outcome::Error));
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::ServerExited))), &[STOP]), Some(Outcome::Error));
    // The end was not seen.
    assert_eq!(outcome(Some(&exchange(Some(200), Some(Ending::Unseen))), &[STOP]), Some(Outcome::Unknown));
    assert_eq!(outcome(Some(&exchange(Some(404), Some(Ending::Unseen))), &[]), Some(Outcome::Rejected));
    // Not over; and without its HTTP side.
    assert_eq!(outcome(Some(&exchange(Some(200), None)), &[STOP]), None);
    assert_eq!(outcome(None, &[ABORTED]), Some(Outcome::Abort));
    assert_eq!(outcome(None, &[STOP, Phase::Producing]), None);
}

#[test]
fn what_is_missing_is_said() {
    let missing = |exchange: Option<Exchange>, generations: &[Generation]| {
        finished(exchange.as_ref(), generations).incomplete().to_string()
    };
    let whole = || Some(exchange(Some(200), Some(Ending::Complete)));
    assert_eq!(missing(whole(), &[tokens()]), "");
    assert_eq!(missing(whole(), &[generation(STOP)]), "tokenizing_unseen");
    assert_eq!(missing(None, &[tokens()]), "http_side_unseen");
    assert_eq!(missing(whole(), &[]), "engine_side_unseen");
    assert_eq!(missing(Some(exchange(Some(400), Some(Ending::Complete))), &[]), "", "it never got there");
    assert_eq!(missing(whole(), &[with(tokens(), |g| g.added = None)]), "attached_late");
    assert_eq!(missing(whole(), &[with(tokens(), |g| g.queued = None)]), "engine_events_unseen");
    assert_eq!(missing(whole(), &[with(tokens(), |g| g.lost = true)]), "records_lost");
    assert_eq!(missing(Some(exchange(Some(200), Some(Ending::Unseen))), &[tokens()]), "response_end_unseen");
    let cancelled = with(tokens(), |g| (g.first, g.last, g.phase) = (None, None, ABORTED));
    let left = Some(exchange(None, Some(Ending::Disconnected)));
    assert_eq!(missing(left, &[cancelled]), "cancelled_before_first_output");
}

#[test]
fn the_samples_of_a_prompt_share_its_tokens() {
    // two samples of prompt 0, one of prompt 1
    let other = Identity { external: "cmpl-a-1".into(), ..Identity::default() };
    let generations = [generation(STOP), generation(STOP), with(generation(STOP), |g| g.identity = other)];
    let exchange = exchange(Some(200), Some(Ending::Complete));
    let finished = finished(Some(&exchange), &generations);
    assert_eq!(
        (finished.prompt_tokens(), finished.cached_tokens(), finished.output_tokens()),
        (Some(10), Some(2), Some(6))
    );
}

#[test]
fn times_are_from_what_the_front_end_and_the_engine_said() {
    // read 1 ─ whole 2 ─ tokenised 2–3 ─ queued 3 ─ scheduled 4 ─ tokens 5, 8 ─ written 8.5 ─ over 9
    let mut exchange = exchange(Some(200), Some(Ending::Complete));
    exchange.last_content = Some(17 * SECOND / 2);
    let generations = [tokens()];
    let finished = finished(Some(&exchange), &generations);
    let seconds = finished.seconds();
    assert_eq!((seconds.parse, seconds.tokenize, seconds.queue), (Some(0.0), Some(1.0), Some(1.0)));
    assert_eq!((seconds.prefill, seconds.decode, seconds.detokenize), (Some(1.0), Some(3.0), Some(0.5)));
    assert_eq!((seconds.ttft, seconds.ttft_engine, seconds.e2e), (Some(4.0), Some(3.0), Some(8.0)));
    assert_eq!(finished.time_per_output_token(), Some(4.0));
}

#[test]
fn a_count_is_compared_only_where_both_are_the_same_thing() {
    // the response says 3 tokens, 2 were counted
    let differs = |change: &dyn Fn(&mut Exchange, &mut Generation)| {
        let mut exchange = exchange(Some(200), Some(Ending::Complete));
        exchange.usage = Usage { completion_tokens: Some(3), ..Usage::default() };
        let mut generation = generation(STOP);
        change(&mut exchange, &mut generation);
        finished(Some(&exchange), &[generation]).usage_differs()
    };
    assert!(differs(&|_, _| {}));
    assert!(!differs(&|exchange, _| exchange.usage.completion_tokens = Some(2)));
    assert!(!differs(&|exchange, _| exchange.ending = Some((9, Ending::Unseen))));
    assert!(!differs(&|_, generation| generation.added = None), "its start was not seen");
    assert!(!differs(&|_, generation| generation.phase = ABORTED));
    assert!(!differs(&|_, generation| generation.beams = Some(Box::default())));
}

#[test]
fn a_beam_search_ends_as_its_response_says() {
    let mut exchange = exchange(Some(200), Some(Ending::Complete));
    let generations = [with(generation(LENGTH), |g| g.beams = Some(Box::default()))];
    let reasons = |exchange: &Exchange| {
        let finished = finished(Some(exchange), &generations);
        (finished.outcome(), finished.finish_reasons())
    };
    assert_eq!(reasons(&exchange), (Some(Outcome::Stop), vec![FinishReason::Stop]));
    exchange.by_length = true;
    assert_eq!(reasons(&exchange), (Some(Outcome::Length), vec![FinishReason::Length]));
}

#[test]
fn counts_of_any_size_and_times_that_go_backwards_are_told_or_left_out() {
    let (all, ids) = (u64::MAX, Identity { external: "other".into(), ..Identity::default() });
    let mut beams = Box::<Beams>::default();
    (beams.output_tokens, beams.preemptions) = (all, all);
    let one = with(generation(STOP), |g| {
        (g.prompt_tokens, g.output_tokens, g.preemptions) = (Some(all), all, all);
        (g.arrival, g.added, g.scheduled, g.beams) = (Some(all), Some(0), Some(all), Some(beams));
    });
    let generations = [with(one.clone(), |g| g.identity = ids), one];
    let mut exchange = exchange(Some(200), Some(Ending::Complete));
    (exchange.started, exchange.complete) = (all, Some(all));
    let finished = finished(Some(&exchange), &generations);
    assert_eq!(
        (finished.prompt_tokens(), finished.output_tokens(), finished.preemptions()),
        (Some(all), Some(all), Some(all))
    );
    let seconds = finished.seconds();
    assert_eq!(
        (seconds.e2e, seconds.ttft, seconds.prefill, seconds.tokenize, seconds.parse),
        (None, None, None, None, None)
    );
    assert!(finished.access(TraceId([1; 16]), SpanId([1; 8]), &Clock::default(), &Server::default()).is_some());
}
