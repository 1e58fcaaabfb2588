use super::*;
use crate::decode::http::{HttpEvent, What as Http};
use crate::decode::json::{RequestFields, ResponseFields};
use crate::engine::{Add, EngineMessage, FinishReason, Outputs, RequestOutput, SchedulerStats};
use crate::input::cuda::{Seen, Sums};
use crate::input::{Direction, End, Role};
use crate::output::{AccessRecord, EngineStep, Outcome};

const API: u32 = 1;
const ENGINE: u32 = 2;
const CLIENT: End = End(70);
const MS: EventNanos = 1_000_000;

/// A core, and what it said.
struct Story {
    core: Core,
    out: Vec<Output>,
}

impl Story {
    fn new() -> Self {
        let mut story = Self { core: Core::new(Config::default()), out: Vec::new() };
        story.fact(Fact::Process { tgid: API, role: Role::Api });
        story.fact(Fact::Process { tgid: ENGINE, role: Role::Engine });
        story
    }

    fn fact(&mut self, fact: Fact) {
        self.core.replay(Input::Fact(fact), Vec::new(), &mut self.out);
    }

    fn event(&mut self, at: EventNanos, process: u32, what: What, answers: Vec<Answer>) {
        let event = Event { at, process, thread: process, what };
        self.core.replay(Input::Event(event), answers, &mut self.out);
    }

    /// Bytes on a connection of a process, which said this.
    fn says(&mut self, at: EventNanos, process: u32, end: End, direction: Direction, parsed: Parsed) {
        let what = What::Data { end, direction, len: 1, bytes: Vec::new(), starts: true, offset: None };
        self.event(at, process, what, vec![Answer::Parsed(parsed)]);
    }

    fn http(&mut self, at: EventNanos, direction: Direction, events: Vec<Http>) {
        let http = events.into_iter().map(|what| HttpEvent { request: 0, what }).collect();
        self.says(at, API, CLIENT, direction, Parsed { http, ..Parsed::default() });
    }

    fn message(&mut self, at: EventNanos, process: u32, direction: Direction, message: EngineMessage) {
        let end = End(u64::from(process) << 8);
        self.says(at, process, end, direction, Parsed { messages: vec![message], ..Parsed::default() });
    }

    /// Read, whole.
    fn request(&mut self, at: EventNanos) {
        let head = RequestHead { method: "POST".into(), path: "/v1/completions".into(), ..RequestHead::default() };
        let fields = RequestFields::default();
        let events = vec![Http::Started { place: 0 }, Http::RequestHead(head), Http::RequestComplete(fields)];
        self.http(at, Direction::In, events);
    }

    /// A step gave a token for `a`, the last one or not.
    fn token(&mut self, at: EventNanos, finish: Option<FinishReason>) {
        let output = RequestOutput { id: "cmpl-a-0-0123abcd".into(), tokens: 1, finish, ..RequestOutput::default() };
        let stats = SchedulerStats { running: 1, ..SchedulerStats::default() };
        let (outputs, timestamp) = (vec![output], Some(at as f64 / 1e9));
        let message = Outputs { outputs, timestamp, stats: Some(stats), ..Outputs::default() };
        self.message(at, ENGINE, Direction::Out, EngineMessage::Outputs(message.clone()));
        self.message(at, API, Direction::In, EngineMessage::Outputs(message));
    }

    fn sent(&mut self, at: EventNanos) {
        let add = Add { id: "cmpl-a-0-0123abcd".into(), ..Add::default() };
        self.message(at, API, Direction::Out, EngineMessage::Add(add));
    }

    fn tick(&mut self, at: EventNanos) {
        self.core.replay(Input::Tick(at), Vec::new(), &mut self.out);
    }

    fn records(&self) -> Vec<&AccessRecord> {
        self.out.iter().filter_map(|output| if let Output::Access(it) = output { Some(&**it) } else { None }).collect()
    }

    fn steps(&self) -> Vec<&EngineStep> {
        self.out.iter().filter_map(|output| if let Output::Step(it) = output { Some(&**it) } else { None }).collect()
    }
}

#[test]
fn a_request_is_told_by_both_of_its_sides_and_leaves_once() {
    // request 10 ─ sent 20 ─ tokens 30, 40 (the last) ─ response 50, its id in it
    let mut story = Story::new();
    story.request(10 * MS);
    story.sent(20 * MS);
    story.token(30 * MS, None);
    story.token(40 * MS, Some(FinishReason::Length));
    assert!(story.records().is_empty());
    let fields = ResponseFields { id: Some("cmpl-a".into()), content: true, ..ResponseFields::default() };
    let head = Http::ResponseHead { status: 200, stream: false };
    story.http(50 * MS, Direction::Out, vec![head, Http::Complete(Some(fields))]);
    story.tick(20_000 * MS);
    let records = story.records();
    let [record] = records[..] else { panic!("{records:?}") };
    assert_eq!((record.outcome, record.output_tokens, record.status), (Outcome::Length, Some(2), Some(200)));
    assert_eq!((story.core.unanswered(), story.core.view().open().count()), (0, 0));
    // The second step began when the first one ended; nothing says when that one began.
    let steps: Vec<(u64, usize)> = story.steps().iter().map(|step| (step.requests, step.batch.len())).collect();
    assert_eq!(steps, [(1, 1)]);
}

#[test]
fn a_front_end_that_ends_takes_its_requests_along() {
    // request 10 ─ sent 20 ─ the API server's process ends 30
    let mut story = Story::new();
    story.request(10 * MS);
    story.sent(20 * MS);
    let answers = vec![Answer::Parsed(Parsed::default()), Answer::Parsed(Parsed::default())];
    story.event(30 * MS, API, What::Exited, answers);
    story.tick(1_000 * MS);
    assert_eq!(story.records().iter().map(|record| record.outcome).collect::<Vec<_>>(), [Outcome::Error]);
    assert_eq!(story.core.unanswered(), 0);
}

#[test]
fn an_engine_that_ends_takes_its_row_along_and_fails_what_it_ran() {
    let mut story = Story::new();
    story.sent(20 * MS);
    story.token(30 * MS, None);
    assert_eq!(
        story.core.view().engines().map(|row| (row.process, row.tokens)).collect::<Vec<_>>(),
        [(Some(ENGINE), 1)]
    );
    story.event(40 * MS, ENGINE, What::Exited, vec![Answer::Parsed(Parsed::default())]);
    assert_eq!(story.core.view().engines().count(), 0);
    story.tick(10_000 * MS);
    assert_eq!(story.records().iter().map(|record| record.outcome).collect::<Vec<_>>(), [Outcome::Error]);
}

#[test]
fn a_step_leaves_with_what_was_called_in_it_300_ms_after_its_end() {
    // tokens 10, 20, 30 ─ three launches at 15 ─ 320 ms: nothing ─ 321 ms and 50 ms for the look
    let mut story = Story::new();
    story.sent(5 * MS);
    let burst = Sums { first: 15 * MS, last: 15 * MS, launches: 3, ..Sums::default() };
    story.token(10 * MS, None);
    story.event(16 * MS, ENGINE, What::Cuda(Box::new(Seen::Burst(burst))), Vec::new());
    story.token(20 * MS, None);
    story.token(30 * MS, None);
    story.tick(320 * MS);
    assert!(story.steps().is_empty());
    story.tick(371 * MS);
    let steps = story.steps();
    let launches = |step: &&EngineStep| step.cuda.as_ref().map(|cuda| cuda.launches);
    assert_eq!(steps.iter().map(launches).collect::<Vec<_>>(), [Some(3), Some(0)]);
    let gaps = story.out.iter().filter(|output| matches!(output, Output::Metric(Metric::CudaGap { .. })));
    assert_eq!(gaps.count(), 2);
    let share = story.core.requests.generations.iter().filter_map(|(_, g)| Some(g.cuda.as_ref()?.launches));
    assert_eq!(share.collect::<Vec<_>>(), [3.0]);
}

#[test]
fn the_head_of_a_request_that_does_not_generate_is_not_kept_for_a_recording() {
    let mut core = Core::new(Config::default());
    core.record();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes();
    let bytes = request("/secret");
    let data = What::Data {
        end: CLIENT,
        direction: Direction::In,
        len: bytes.len() as u64,
        bytes,
        starts: true,
        offset: None,
    };
    let event = Event { at: 1, process: API, thread: API, what: data };
    core.push(Input::Event(event), &mut Vec::new());
    let answers = core.take_answers();
    assert!(!answers.is_empty() && !format!("{answers:?}").contains("secret"), "{answers:?}");
}

#[test]
fn an_input_from_before_the_newest_one_does_not_turn_time_back() {
    let mut story = Story::new();
    story.tick(50 * MS);
    story.request(10 * MS);
    story.tick(20 * MS);
    assert_eq!(story.core.view().now(), 50 * MS);
}
