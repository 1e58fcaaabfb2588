use super::*;
use crate::core::connections::Answer;
use crate::core::scene::tests::Ground;
use crate::engine::ENGINES;

const API: u32 = 7;
const END: End = End(70);

/// A connection of an API process, and what its HTTP side makes of it.
struct Stage {
    http: HttpSide,
    ground: Ground,
}

impl Stage {
    fn new() -> Self {
        let mut stage = Self { http: HttpSide::default(), ground: Ground::default() };
        stage.ground.scene().connect(END, API, true);
        stage
    }

    /// Events of one call at `at`, each of a request of the connection.
    fn call(&mut self, at: EventNanos, events: &[(u64, What)]) {
        let event = |(request, what): &(u64, What)| HttpEvent { request: *request, what: what.clone() };
        let mut events = events.iter().map(event).collect();
        self.http.events(Place { at, process: API, end: END }, &mut events, &mut self.ground.scene());
    }

    /// A request read in one call at `at`, with the id that its client chose.
    fn request(&mut self, at: EventNanos, nth: u64, id: Option<&str>) {
        let head = RequestHead {
            method: "POST".into(),
            path: "/v1/completions".into(),
            request_id: id.map(str::to_owned),
            ..RequestHead::default()
        };
        let fields = RequestFields::default();
        self.call(
            at,
            &[(nth, What::Started { place: 0 }), (nth, What::RequestHead(head)), (nth, What::RequestComplete(fields))],
        );
    }

    fn close(&mut self, at: EventNanos) {
        self.http.close(END, at, None, Ending::ServerClosed, &mut self.ground.scene());
    }

    /// The open exchanges, in order.
    fn exchanges(&self) -> Vec<&Exchange> {
        self.ground.requests.exchanges.iter().map(|(_, exchange)| exchange).collect()
    }

    fn endings(&self) -> Vec<Option<Ending>> {
        self.exchanges().iter().map(|exchange| exchange.ending.map(|(_, ending)| ending)).collect()
    }
}

fn head(status: u16) -> What {
    What::ResponseHead { status, stream: true }
}

/// A piece of a stream that carries words.
fn words(id: &str) -> What {
    What::Chunk(ResponseFields { id: Some(id.into()), content: true, texts: 1, ..ResponseFields::default() })
}

#[test]
fn a_request_goes_from_its_first_byte_to_its_last() {
    // starts 10 ─ head 11 ─ whole 12 ─ response 20 ─ words 21 ─ whole 30
    let mut stage = Stage::new();
    let post = RequestHead { method: "POST".into(), path: "/v1/completions".into(), ..RequestHead::default() };
    stage.call(10, &[(0, What::Started { place: 2 })]);
    assert!(stage.exchanges().is_empty(), "it may be anything yet");
    stage.call(11, &[(0, What::RequestHead(post))]);
    stage.call(12, &[(0, What::RequestComplete(RequestFields::default()))]);
    stage.call(20, &[(0, head(200))]);
    stage.call(21, &[(0, words("cmpl-a"))]);
    let exchange = stage.exchanges()[0];
    assert_eq!((exchange.started, exchange.place, exchange.complete, exchange.status), (10, 2, Some(12), Some(200)));
    assert_eq!(
        (exchange.response_id.as_deref(), exchange.first_content, exchange.ending),
        (Some("cmpl-a"), Some(21), None)
    );
    stage.call(30, &[(0, What::Complete(None))]);
    assert_eq!(stage.exchanges()[0].ending, Some((30, Ending::Complete)));
    assert_eq!(stage.ground.requests.exchanges.next_touched(), Some(1));
    stage.close(40);
    assert_eq!(stage.exchanges()[0].ending, Some((30, Ending::Complete)), "its slot is free");
}

#[test]
fn what_does_not_generate_is_nobody_s() {
    let mut stage = Stage::new();
    let get = RequestHead { method: "GET".into(), path: "/health".into(), ..RequestHead::default() };
    stage.call(10, &[(0, What::Started { place: 0 }), (0, What::RequestHead(get))]);
    stage.call(11, &[(0, head(200)), (0, What::Complete(None))]);
    stage.close(12);
    assert_eq!((stage.exchanges().len(), stage.ground.losses()), (0, vec![]));
}

#[test]
fn a_pipelined_request_waits_for_the_answer_to_the_one_before() {
    // request 0 (10) · request 1 (11) ─ answer to 0 (40)
    let mut stage = Stage::new();
    stage.request(10, 0, None);
    stage.request(11, 1, None);
    stage.call(40, &[(0, head(200)), (0, What::Complete(None))]);
    assert_eq!(stage.exchanges().iter().map(|e| e.ready()).collect::<Vec<_>>(), [Some(10), Some(40)]);
}

#[test]
fn an_end_that_was_not_seen_is_counted_and_dated_back_to_the_last_write() {
    let mut stage = Stage::new();
    stage.request(10, 0, None);
    stage.call(20, &[(0, head(200))]);
    stage.call(50, &[(0, What::EndUnseen)]);
    let exchange = stage.exchanges()[0];
    assert_eq!((exchange.ending, exchange.noticed), (Some((20, Ending::Unseen)), 50));
    assert_eq!(stage.ground.losses(), [(LossStage::HttpEnd, 1)]);
}

#[test]
fn a_close_ends_what_is_open_by_whose_doing_it_was() {
    // request (10) ─ … ─ close (90), with in between:
    let ended = |between: &dyn Fn(&mut Stage)| {
        let mut stage = Stage::new();
        stage.request(10, 0, None);
        between(&mut stage);
        stage.close(90);
        stage.endings()
    };
    assert_eq!(ended(&|_| {}), [Some(Ending::ServerClosed)]);
    assert_eq!(ended(&|stage| peer_closed(END, 50, &mut stage.ground.scene())), [Some(Ending::Disconnected)]);
    assert_eq!(ended(&|stage| stage.http.edges_lost(10)), [Some(Ending::Unseen)], "the client's leaving may be lost");
    assert_eq!(ended(&|stage| stage.http.edges_lost(9)), [Some(Ending::ServerClosed)], "that was before it began");
    assert_eq!(ended(&|stage| in_doubt(END, &mut stage.ground.scene())), [Some(Ending::Unseen)]);
}

#[test]
fn a_response_that_shows_a_later_request_s_id_is_that_one_s_to_the_end_of_its_call() {
    // requests a, b ─ the answer to a is lost whole ─ head, words with b's id, end: taken for a's ─ the next call is as it says
    let mut stage = Stage::new();
    stage.ground.connections.follow(vec![Answer::Rebound(Some(Vec::new()))]);
    stage.request(10, 0, Some("a"));
    stage.request(11, 1, Some("b"));
    stage.call(20, &[(0, head(200))]);
    stage.call(21, &[(0, words("cmpl-b")), (0, words("cmpl-b"))]);
    let status = |stage: &Stage| stage.exchanges().iter().map(|e| (e.status, e.content_writes)).collect::<Vec<_>>();
    assert_eq!(status(&stage), [(None, 0), (Some(200), 2)]);
    stage.call(22, &[(0, head(500))]);
    assert_eq!(status(&stage), [(Some(500), 0), (Some(200), 2)]);
}

#[test]
fn a_rebound_response_is_forgotten_with_its_connection() {
    // as before, but the words come with the close ─ the descriptor's number is used again
    let mut stage = Stage::new();
    let late = crate::core::Parsed {
        http: vec![HttpEvent { request: 0, what: words("cmpl-b") }],
        ..crate::core::Parsed::default()
    };
    stage.ground.connections.remove(END);
    stage.ground.connections.follow(vec![Answer::Parsed(late), Answer::Rebound(Some(Vec::new()))]);
    stage.ground.scene().connect(END, API, true);
    stage.request(10, 0, Some("a"));
    stage.request(11, 1, Some("b"));
    stage.close(20);
    assert_eq!(stage.exchanges()[1].response_id.as_deref(), Some("cmpl-b"));
    stage.ground.scene().connect(END, API, true);
    stage.request(30, 0, Some("c"));
    stage.request(31, 1, Some("d"));
    stage.call(40, &[(0, head(200))]);
    assert_eq!(stage.exchanges().iter().map(|e| e.status).collect::<Vec<_>>()[2..], [Some(200), None]);
}

#[test]
fn a_piece_of_a_stream_that_comes_late_tells_no_time_between_tokens() {
    // an engine that shows its HTTP side alone: words at 50, 30 (late), 60, then at both ends of time
    let mut stage = Stage::new();
    stage.ground.engine = ENGINES[1];
    stage.request(10, 0, None);
    for at in [50, 30, 60, u64::MAX, 0] {
        stage.call(at, &[(0, words("cmpl-a"))]);
    }
    let times = stage.ground.metrics().into_iter().filter_map(|metric| match metric {
        Metric::Tokens { inter_token, .. } => Some(*inter_token),
        _ => None,
    });
    let ns = |ns: u64| Some(ns as f64 / 1e9);
    assert_eq!(times.collect::<Vec<_>>(), [None, ns(30), ns(u64::MAX - 60), None]);
}

#[test]
fn what_is_written_says_how_long_it_took_since_it_was_received() {
    // output received 20 ─ written 25 ─ written again 30 (nothing new) ─ received 40 ─ written 44
    use crate::model::generation::{Generation, StepRef, TokensAt};
    let mut stage = Stage::new();
    stage.request(10, 0, Some("a"));
    let ids = ENGINES[0].identify("cmpl-a-0-0123abcd", None);
    let mut generation = Generation::new("cmpl-a-0-0123abcd".into(), ids, 15);
    generation.added = Some(15);
    let key = stage.ground.requests.insert(generation);
    stage.ground.requests.join().by_id(key);
    let received = |stage: &mut Stage, at| {
        let step = StepRef { engine: 0, stamp: 0 };
        if let Some(generation) = stage.ground.requests.generations.get_mut(key) {
            generation.last = Some(TokensAt { at, received: at, tokens: 1, step });
        }
    };
    received(&mut stage, 20);
    stage.call(25, &[(0, words("cmpl-a"))]);
    stage.call(30, &[(0, words("cmpl-a"))]);
    received(&mut stage, 40);
    stage.call(44, &[(0, words("cmpl-a"))]);
    assert_eq!(stage.exchanges()[0].detokenize_total, 5 + 4);
}

/// A write on the connection was refused, or took all again.
fn write(stage: &mut Stage, at: EventNanos, is_whole: bool) {
    let change = |blocked: &mut Blocked| if is_whole { blocked.ends(at) } else { blocked.begins(at) };
    super::blocked(END, change, &mut stage.ground.scene());
}

/// Nanoseconds and times that each response's client took no more, in the order of the requests.
fn blocked(stage: &Stage) -> Vec<Option<(u64, u64)>> {
    let seen = |exchange: &&Exchange| exchange.blocked.seen().map(|(seconds, n)| ((seconds * 1e9).round() as u64, n));
    stage.exchanges().iter().map(seen).collect()
}

#[test]
fn a_refused_write_counts_for_the_response_under_way_and_no_other() {
    // two requests on the connection ─ a: refused 20, whole 30 ─ a is whole 31 │ b: refused 40 ─ whole with its last bytes 50
    let mut stage = Stage::new();
    stage.request(10, 0, None);
    stage.request(11, 1, None);
    write(&mut stage, 20, false);
    write(&mut stage, 30, true);
    stage.call(31, &[(0, head(200)), (0, What::Complete(None))]);
    write(&mut stage, 40, false);
    stage.call(50, &[(1, head(200)), (1, What::Complete(None))]);
    write(&mut stage, 51, true);
    assert_eq!(blocked(&stage), [Some((10, 1)), Some((10, 1))]);
}

#[test]
fn a_client_that_leaves_is_no_more_waited_for_and_lost_records_are_no_time() {
    // refused 20 ─ the connection is closed 25 │ another: refused 40 ─ records are lost ─ whole 90
    let mut stage = Stage::new();
    stage.request(10, 0, None);
    write(&mut stage, 20, false);
    stage.close(25);
    assert_eq!(blocked(&stage), [Some((5, 1))]);
    let mut stage = Stage::new();
    stage.request(10, 0, None);
    write(&mut stage, 40, false);
    stage.ground.requests.exchanges.edges_lost();
    write(&mut stage, 90, true);
    assert_eq!(blocked(&stage), [Some((0, 1))]);
}

#[test]
fn what_is_written_to_a_connection_without_a_request_counts_for_nobody() {
    // a request that does not generate is answered first
    let mut stage = Stage::new();
    let get = RequestHead { method: "GET".into(), path: "/metrics".into(), ..RequestHead::default() };
    stage.call(10, &[(0, What::Started { place: 0 }), (0, What::RequestHead(get))]);
    stage.request(11, 1, None);
    write(&mut stage, 20, false);
    write(&mut stage, 30, true);
    assert_eq!(blocked(&stage), [None]);
}

#[test]
fn what_is_held_of_refused_writes_is_given_back_with_the_request() {
    // refused ─ whole, 32 times, for which there is room then ─ refused ─ the connection is closed, which needs more
    let mut stage = Stage::new();
    stage.request(1, 0, None);
    let before = stage.ground.requests.exchanges.held_bytes();
    for at in 0..32 {
        write(&mut stage, 10 + at * 2, false);
        write(&mut stage, 11 + at * 2, true);
    }
    let exchanges = &stage.ground.requests.exchanges;
    let all: usize = exchanges.iter().map(|(_, exchange)| exchange.held_bytes()).sum();
    assert!(exchanges.held_bytes() > before && exchanges.held_bytes() == all);
    // Its end ends a last one.
    write(&mut stage, 90, false);
    stage.close(95);
    let exchanges = &stage.ground.requests.exchanges;
    let all: usize = exchanges.iter().map(|(_, exchange)| exchange.held_bytes()).sum();
    assert_eq!(exchanges.held_bytes(), all);
}
