use std::collections::BTreeSet;

use super::*;
use crate::decode::http::RequestHead;
use crate::engine::{Identity, Operation, SchedulerStats};
use crate::input::End;
use crate::model::blocked::Blocked;
use crate::model::generation::{Phase, TokensAt};
use crate::model::lags::Lagged;
use crate::model::load::{Loads, Wait};
use crate::model::timeline::Tick;
use crate::output::FinishReason;

const SECOND: EventNanos = 1_000_000_000;
static COMPLETION: Operation =
    Operation { name: "text_completion", route: "/v1/completions", id_prefix: Some("cmpl-") };

/// Read 1–2 s, answered until 9 s.
fn exchange() -> Exchange {
    let head = RequestHead { method: "POST".into(), path: "/v1/completions".into(), ..RequestHead::default() };
    let mut exchange = Exchange::new(End(1), 7, SECOND, head, &COMPLETION);
    exchange.complete = Some(2 * SECOND);
    (exchange.status, exchange.stream) = (Some(200), Some(true));
    (exchange.first_content, exchange.last_content) = (Some(5 * SECOND), Some(9 * SECOND));
    exchange.ending = Some((9 * SECOND, Ending::Complete));
    exchange
}

/// Tokenised and sent 3 s ─ queued, scheduled 4 s ─ tokens 5, 6, 7, 8 s.
fn generation() -> Generation {
    let mut generation = Generation::new("a".into(), Identity::default(), 3 * SECOND);
    generation.added = Some(3 * SECOND);
    generation.encode = Some((2 * SECOND, 3 * SECOND));
    (generation.queued, generation.scheduled) = (Some(3 * SECOND), Some(4 * SECOND));
    generation.waits = vec![Wait { from: 3 * SECOND, to: 4 * SECOND, by_preemption: false, load: None }];
    for at in 5..=8 {
        let at = at * SECOND;
        let token = TokensAt { at, received: at, tokens: 1, step: StepRef { engine: 0, stamp: at as i64 } };
        generation.first.get_or_insert(token);
        generation.last = Some(token);
        generation.timeline.push(Tick { at, stamp: at as i64, tokens: 1, lag: 0 });
        generation.output_tokens += 1;
    }
    generation.phase = Phase::Over { at: 8 * SECOND, reason: FinishReason::Stop };
    generation
}

fn finished<'a>(exchange: Option<&'a Exchange>, generations: &'a [Generation]) -> Finished<'a> {
    Finished {
        exchange,
        generations: generations.iter().collect(),
        tokenizer_probed: true,
        cut_off: false,
        http_only: false,
    }
}

fn drawn(finished: &Finished<'_>, clock: &Clock, max_spans: usize) -> (Trace, u64) {
    build(finished, place(finished, 5), 5, clock, &Arc::default(), max_spans)
}

fn names(trace: &Trace) -> Vec<&'static str> {
    trace.spans.iter().map(|span| span.name).collect()
}

#[test]
fn parents_stand_before_their_children_and_hold_them() {
    let (exchange, generations) = (exchange(), [generation(), generation()]);
    for finished in [
        finished(Some(&exchange), &generations[..1]),
        finished(Some(&exchange), &generations),
        finished(None, &generations[..1]),
    ] {
        let (trace, dropped) = drawn(&finished, &Clock::default(), 2000);
        assert_eq!(dropped, 0);
        let mut known = BTreeSet::new();
        for span in &trace.spans {
            assert!(span.start_ns <= span.end_ns, "{}", span.name);
            if let Some(parent) = span.parent {
                assert!(known.contains(&parent), "{} stands before its parent", span.name);
                let parent = trace.spans.iter().find(|other| other.span_id == parent).expect("drawn");
                assert!(parent.start_ns <= span.start_ns && span.end_ns <= parent.end_ns, "{}", span.name);
            }
            assert!(known.insert(span.span_id), "{} twice", span.name);
        }
    }
}

#[test]
fn a_request_is_drawn_from_its_first_byte_to_its_last() {
    let (exchange, generations) = (exchange(), [generation()]);
    let (trace, _) = drawn(&finished(Some(&exchange), &generations), &Clock::default(), 2000);
    let expected = [
        span::REQUEST,
        span::PARSE,
        span::TOKENIZE,
        span::QUEUE,
        span::PREFILL,
        span::DECODE,
        span::DECODE_STEP,
        span::DECODE_STEP,
        span::DECODE_STEP,
        span::DETOKENIZE,
    ];
    assert_eq!(names(&trace), expected);
    let root = &trace.spans[0];
    assert_eq!((root.start_ns, root.end_ns, root.parent), (SECOND, 9 * SECOND, None));
    let events: Vec<_> = root.events.iter().map(|event| (event.name, event.at_ns / SECOND)).collect();
    assert_eq!(events, [(event::FIRST_CONTENT, 5), (event::FIRST_TOKEN, 5)]);
}

#[test]
fn what_is_over_the_cap_is_counted_on_the_root() {
    let (exchange, generations) = (exchange(), [generation()]);
    let finished = finished(Some(&exchange), &generations);
    let (whole, _) = drawn(&finished, &Clock::default(), 2000);
    // A cap of 0 still draws the root. With its decode phase go the steps below it, uncounted: they would not be seen alone.
    for max_spans in [0, 1, 4] {
        let (trace, dropped) = drawn(&finished, &Clock::default(), max_spans);
        assert_eq!(names(&trace), names(&whole)[..max_spans.max(1)]);
        let said = trace.spans[0].attributes.iter().find(|(key, _)| *key == attribute::SPANS_DROPPED);
        assert_eq!(said.map(|(_, value)| value.clone()), Some(int(dropped)));
    }
}

#[test]
fn the_same_request_has_the_same_ids_and_another_one_has_others() {
    let (exchange, generations) = (exchange(), [generation()]);
    let ids = |run, exchange| {
        let finished = finished(Some(exchange), &generations);
        let (trace, _) = build(&finished, place(&finished, run), run, &Clock::default(), &Arc::default(), 2000);
        trace.spans.iter().map(|span| (span.trace_id, span.span_id)).collect::<BTreeSet<_>>()
    };
    assert_eq!(ids(5, &exchange), ids(5, &exchange));
    let later = Exchange { started: SECOND + 1, ..exchange.clone() };
    assert!(ids(5, &exchange).is_disjoint(&ids(6, &exchange)) && ids(5, &exchange).is_disjoint(&ids(5, &later)));
}

#[test]
fn two_requests_of_one_remote_trace_share_it_and_no_span() {
    let mut exchange = exchange();
    exchange.head.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    let other = Exchange { end: End(2), ..exchange.clone() };
    let of = |exchange| drawn(&finished(Some(exchange), &[]), &Clock::default(), 2000).0;
    let (one, two) = (of(&exchange), of(&other));
    assert_eq!(one.spans[0].trace_id, two.spans[0].trace_id);
    assert_ne!(one.spans[0].span_id, two.spans[0].span_id);
    assert!(one.spans[0].parent.is_some() && one.spans[0].parent_is_remote);
    assert_eq!(one.merit.parent_sampled, Some(true));
}

#[test]
fn engine_times_that_are_placed_by_an_estimate_stay_inside_the_request() {
    // the offset is 2 s too large: prefill and decode would lie behind the response
    let (exchange, mut generations) = (exchange(), [generation()]);
    generations[0].encode = None;
    let mut clock = Clock::default();
    clock.set_engine_offset(1);
    let shifted = |at: &mut Option<TokensAt>| {
        if let Some(tokens) = at {
            tokens.at += 2 * SECOND;
        }
    };
    shifted(&mut generations[0].last);
    let (trace, _) = drawn(&finished(Some(&exchange), &generations), &clock, 2000);
    let decode = trace.spans.iter().find(|span| span.name == span::DECODE).expect("drawn");
    assert_eq!(decode.end_ns, 9 * SECOND);
}

#[test]
fn a_wall_clock_that_is_set_back_gives_no_negative_time() {
    // wall time 100 s ahead │ at 5 s it is set back by 60 s
    let (exchange, generations) = (exchange(), [generation()]);
    let mut clock = Clock::default();
    clock.anchor(0, 100 * SECOND);
    clock.anchor(5 * SECOND, 45 * SECOND);
    let (trace, _) = drawn(&finished(Some(&exchange), &generations), &clock, 2000);
    assert!(trace.spans.iter().all(|span| span.start_ns <= span.end_ns));
    assert!(trace.merit.seconds < 60.0, "{}", trace.merit.seconds);
}

#[test]
fn times_at_both_ends_of_the_clock_are_drawn() {
    // every time 0, every time the last there is, and backwards
    for (early, late) in [(0, 0), (u64::MAX, u64::MAX), (u64::MAX, 0), (0, u64::MAX)] {
        let (mut exchange, mut generations) = (exchange(), [generation(), generation()]);
        (exchange.started, exchange.complete) = (early, Some(late));
        exchange.ending = Some((late, Ending::Complete));
        for generation in &mut generations {
            (generation.added, generation.seen, generation.arrival) = (Some(early), late, Some(early));
            (generation.queued, generation.scheduled) = (Some(late), Some(early));
            generation.waits = vec![Wait { from: late, to: early, by_preemption: false, load: None }];
            generation.encode = Some((late, early));
            for (n, at) in [early, late, early].into_iter().enumerate() {
                generation.timeline.push(Tick { at, stamp: n as i64, tokens: u32::MAX, lag: u32::MAX });
                let step = StepRef { engine: 0, stamp: i64::MIN };
                generation.last = Some(TokensAt { at, received: late, tokens: 1, step });
            }
        }
        let mut clock = Clock::default();
        clock.anchor(late, early);
        for estimated in [0, 1] {
            clock.set_engine_offset(estimated);
            let (trace, _) = drawn(&finished(Some(&exchange), &generations), &clock, 2000);
            assert!(trace.spans.iter().all(|span| span.start_ns <= span.end_ns));
        }
    }
}

#[test]
fn a_wait_says_what_the_engine_did_meanwhile_and_the_root_how_late_the_front_end_was() {
    // step ends at 2 s: 4 run, 6 wait ─ queued 3 s ─ step at 3.5 s: the cache is full ─ scheduled 4 s
    let stats = |kv_cache_usage| SchedulerStats { running: 4, waiting: 6, kv_cache_usage, ..SchedulerStats::default() };
    let mut loads = Loads::default();
    loads.push(2 * SECOND, stats(0.5));
    loads.push(3 * SECOND + SECOND / 2, stats(1.0));
    let mut waited = generation();
    waited.waits[0].load = loads.around(&waited.waits[0]);
    waited.lagged = Some(Box::new(Lagged { first: Some(SECOND / 4), most: Some(SECOND), last: Some(SECOND / 8) }));
    let running = [attribute::QUEUE_RUNNING, attribute::QUEUE_MAX_RUNNING];
    let keys = [attribute::QUEUE_WAITING, running[0], running[1], attribute::QUEUE_KV_USAGE];
    let lags = [attribute::FIRST_LAG, attribute::MAX_LAG, attribute::LAST_LAG];
    let said = |generation: &Generation| {
        let exchange = exchange();
        let (trace, _) = drawn(&finished(Some(&exchange), std::slice::from_ref(generation)), &Clock::default(), 2000);
        let value = |name, key| {
            let span = trace.spans.iter().find(|span| span.name == name)?;
            span.attributes.iter().find(|(other, _)| *other == key).map(|(_, value)| value.clone())
        };
        (keys.map(|key| value(span::QUEUE, key)), lags.map(|key| value(span::REQUEST, key)))
    };
    let (int, float) = (|n| Some(Value::Int(n)), |x| Some(Value::Float(x)));
    assert_eq!(said(&waited), ([int(6), int(4), int(4), float(1.0)], [float(0.25), float(1.0), float(0.125)]));
    assert_eq!(said(&generation()), ([None, None, None, None], [None, None, None]), "what nobody said is left out");
}

#[test]
fn what_a_client_took_nothing_for_behind_the_last_token_is_told_apart() {
    // tokens until 8 s, the response until 9 s; no bytes taken 6 … 8.5 s
    let mut exchange = exchange();
    exchange.blocked.begins(6 * SECOND);
    exchange.blocked.ends(8 * SECOND + SECOND / 2);
    let told = |exchange: &Exchange, generations: &[Generation]| {
        let (trace, _) = drawn(&finished(Some(exchange), generations), &Clock::default(), 2000);
        let of = |key: &str| match trace.spans[0].attributes.iter().find(|(known, _)| *known == key) {
            Some((_, Value::Float(seconds))) => Some(*seconds),
            _ => None,
        };
        (of(attribute::BLOCKED), of(attribute::BLOCKED_AFTER))
    };
    assert_eq!(told(&exchange, &[generation()]), (Some(2.5), Some(0.5)));
    // Of several the last token of all counts.
    let mut longer = generation();
    longer.last = longer.last.map(|last| TokensAt { at: last.at + SECOND / 4, ..last });
    assert_eq!(told(&exchange, &[generation(), longer]), (Some(2.5), Some(0.25)));
    assert_eq!(told(&exchange, &[]), (Some(2.5), None), "when the last token came is not known");
    exchange.blocked = Blocked::default();
    assert_eq!(told(&exchange, &[generation()]), (None, None));
}
