//! Clients that read too slowly: writes that the kernel refuses, one by one, in a crowd, and what a request's trace says of them.

use inferspan::attach::loader::Options;
use inferspan::input::{Direction, End, LossStage, What};
use inferspan_tests::live::{Fixture, Trace, may_trace};

const SLOW_READER: &str = env!("CARGO_BIN_EXE_slow-reader");

fn trace(call: &str, connections: usize) -> (Fixture, Trace) {
    let mut fixture = Fixture::start(SLOW_READER, &[call, &connections.to_string()]);
    let trace = Trace::of(&mut fixture, &Options::default());
    for stage in LossStage::ALL {
        assert_eq!(trace.lost(stage), 0, "nothing is lost at {}", stage.name());
    }
    (fixture, trace)
}

/// When it began (`true`) and ended that writes to `of` were refused, in order.
fn changes(trace: &Trace, of: End) -> Vec<(u64, bool)> {
    let change = |what: &What| match *what {
        What::Blocked { end } if end == of => Some(true),
        What::Unblocked { end } if end == of => Some(false),
        _ => None,
    };
    let mut found: Vec<_> = trace.events().filter_map(|event| Some((event.at, change(&event.what)?))).collect();
    found.sort_unstable();
    found
}

/// Times of the payload that the server wrote to `of`, with the bytes.
fn written(trace: &Trace, of: End) -> Vec<(u64, u64)> {
    let data = |what: &What| match *what {
        What::Data { end, direction: Direction::Out, len, .. } if end == of => Some(len),
        _ => None,
    };
    let mut found: Vec<_> = trace.events().filter_map(|event| Some((event.at, data(&event.what)?))).collect();
    found.sort_unstable();
    found
}

#[test]
fn a_client_that_takes_no_more_is_told_of_once_when_it_begins_and_once_when_it_ends() {
    if !may_trace("a_client_that_takes_no_more_is_told_of_once_when_it_begins_and_once_when_it_ends") {
        return;
    }
    // a part is taken, perhaps another ─ 98 times or more nothing ─ the client reads all ─ whole, whole
    for call in ["write", "sendto", "writev", "sendmsg"] {
        let (fixture, trace) = trace(call, 2);
        for server in ["server0", "server1"] {
            let end = fixture.end(server);
            let changes = changes(&trace, end);
            let [(began, true), (ended, false)] = changes[..] else { panic!("{call}: {changes:?}") };
            let written = written(&trace, end);
            let whole = written.iter().rev().take(2).map(|(at, len)| (*at, *len)).collect::<Vec<_>>();
            let [(_, 10), (freed, 10)] = whole[..] else { panic!("{call}: {written:?}") };
            assert!(began <= written[0].0, "{call}: it begins with the first write, of which a part is taken");
            assert!(
                ended <= freed && written[written.len() - 3].0 < ended,
                "{call}: it ends with the first that is taken whole"
            );
        }
    }
}

#[test]
fn a_call_whose_end_would_not_be_seen_begins_nothing() {
    if !may_trace("a_call_whose_end_would_not_be_seen_begins_nothing") {
        return;
    }
    let (fixture, trace) = trace("sendmmsg", 1);
    let end = fixture.end("server0");
    assert!(written(&trace, end).len() >= 3, "its bytes are seen");
    assert_eq!(changes(&trace, end), []);
}

#[test]
fn who_is_no_client_is_not_told_of() {
    if !may_trace("who_is_no_client_is_not_told_of") {
        return;
    }
    let (fixture, trace) = trace("unix", 1);
    let end = fixture.end("server0");
    assert!(written(&trace, end).len() >= 3, "its bytes are seen");
    assert_eq!(changes(&trace, end), []);
}

#[test]
fn a_thousand_clients_that_take_no_more_are_two_thousand_records() {
    if !may_trace("a_thousand_clients_that_take_no_more_are_two_thousand_records") {
        return;
    }
    // 100,000 writes, almost all refused
    let (_, trace) = trace("write", 1_000);
    let count = |is: fn(&What) -> bool| trace.events().filter(|event| is(&event.what)).count();
    assert_eq!(count(|what| matches!(what, What::Blocked { .. })), 1_000);
    assert_eq!(count(|what| matches!(what, What::Unblocked { .. })), 1_000);
}
