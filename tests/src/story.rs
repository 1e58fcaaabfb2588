//! A made-up timeline of one API process and its engine, told call by call, and what the pipeline makes of it.
//!
//! Enters: what happens, in order; every call takes 1 ms. Leaves: what the pipeline said. HTTP bytes are written as a server and its
//! clients write them, engine messages are vLLM 0.32's own layout.

use inferspan::core::Config;
use inferspan::core::view::View;
use inferspan::input::{Direction, End, Event, Fact, Function, Input, LossStage, Lost, Role, Server, What};
use inferspan::run::pipeline::Pipeline;

use crate::pipeline::Made;
use inferspan_demo_engine::wire::{
    Add, Output as Produced, Outputs, Prefill, QUEUED, SCHEDULED, Sampling, encode_abort,
};

/// The API server's process, the engine's, and the engine's connection at the API server.
pub const API: u32 = 100;
pub const ENGINE: u32 = 200;
const TO_ENGINE: u64 = 1;
const FROM_ENGINE: u64 = 2;
/// Event time and the engine's clock are one, and start here, ns.
const START: u64 = 1_000_000_000_000;
/// The wall clock then, ns.
const WALL: u64 = 1_795_000_000_000_000_000;
const STEP: u64 = 1_000_000;

/// A client's connection at the API server.
pub fn connection(n: u64) -> End {
    End(u64::from(API) << 32 | (100 + n))
}

/// The timeline so far.
#[derive(Debug)]
pub struct Story {
    pipeline: Pipeline,
    now: u64,
    /// All that it was told.
    told: Vec<Input>,
    moved: std::collections::BTreeMap<(End, Direction), u64>,
}

impl Default for Story {
    fn default() -> Self {
        let mut story = Self {
            // Told in order, so nothing is held back.
            pipeline: Pipeline::new(1, 0, &Config::default()),
            now: START,
            told: Vec::new(),
            moved: std::collections::BTreeMap::new(),
        };
        let server = Server {
            service: "vllm".into(),
            model: "tiny".into(),
            engine: "vllm".into(),
            pid: API,
            ..Server::default()
        };
        story.input(Input::Fact(Fact::Clock { event_ns: START, unix_ns: WALL }));
        story.input(Input::Fact(Fact::Server(server.into())));
        story.input(Input::Fact(Fact::Process { tgid: API, role: Role::Api }));
        story.input(Input::Fact(Fact::Process { tgid: ENGINE, role: Role::Engine }));
        story
    }
}

impl Story {
    pub fn input(&mut self, input: Input) {
        self.told.push(input.clone());
        self.pipeline.push(Some(0), input);
    }

    /// All that was told, as another server of the host would have caused it: with `shift` added to its process ids.
    pub fn told_elsewhere(&self, shift: u32) -> Vec<Input> {
        self.told.iter().map(|input| shifted(input, shift)).collect()
    }

    /// Seconds on the engine's clock.
    pub fn seconds(&self) -> f64 {
        self.now as f64 / 1e9
    }

    pub fn event(&mut self, process: u32, what: What) {
        self.now += STEP;
        let event = Event { at: self.now, process, thread: process, what };
        self.input(Input::Event(event));
    }

    /// Nothing happens for so many ms.
    pub fn quiet(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(50) {
            self.now += 50 * STEP;
            self.input(Input::Tick(self.now));
        }
    }

    pub fn open(&mut self, end: End) {
        self.event(API, What::Opened { end });
    }

    pub fn close(&mut self, end: End) {
        self.event(API, What::Closed { end, moved: None });
    }

    pub fn client_leaves(&mut self, end: End) {
        self.event(API, What::PeerClosed { end });
    }

    /// One call, seen whole.
    pub fn call(&mut self, end: End, direction: Direction, bytes: &[u8]) {
        self.piece(end, direction, bytes.len() as u64, bytes, true);
    }

    /// A piece of a call, of which the first bytes are there.
    pub fn piece(&mut self, end: End, direction: Direction, len: u64, bytes: &[u8], starts: bool) {
        let bytes = bytes.to_vec();
        self.event(API, What::Data { end, direction, len, bytes, starts, offset: None });
    }

    /// A call of which the source counts the bytes; `seen` or lost.
    pub fn counted(&mut self, end: End, direction: Direction, bytes: &[u8], seen: bool) {
        let moved = self.moved.entry((end, direction)).or_default();
        let offset = *moved;
        *moved += bytes.len() as u64;
        if seen {
            let (len, bytes) = (bytes.len() as u64, bytes.to_vec());
            self.event(API, What::Data { end, direction, len, bytes, starts: true, offset: Some(offset) });
        } else {
            self.now += STEP;
        }
    }

    pub fn request(&mut self, end: End, bytes: &[u8]) {
        self.call(end, Direction::In, bytes);
    }

    pub fn respond(&mut self, end: End, bytes: &[u8]) {
        self.call(end, Direction::Out, bytes);
    }

    fn engine(&mut self, fd: u64, direction: Direction, frames: &[Vec<u8>]) {
        let end = End(u64::from(API) << 32 | fd);
        self.call(end, direction, &zmtp(frames));
    }

    /// The API server tokenises for 1 ms.
    pub fn encode(&mut self) {
        let entered = self.now;
        self.event(API, What::Call { function: Function::Encode, entered, stack: 0 });
    }

    /// The API server's main thread enters a function that is probed.
    pub fn enters(&mut self, function: Function) {
        let entered = self.now + STEP;
        self.event(API, What::Call { function, entered, stack: 0 });
    }

    /// The API server sends an engine request.
    pub fn add(&mut self, engine_id: &str, prompt: u32, max_tokens: u32) {
        let external_id = inferspan::engine::vllm::ids::external_of(engine_id).to_owned();
        let add = Add {
            request_id: engine_id.to_owned(),
            external_id,
            prompt: (0..prompt).collect(),
            sampling: Some(Sampling { max_tokens, output_kind: 1, ..Sampling::default() }),
            arrival: (self.now - START + WALL) as f64 / 1e9,
            client_index: 0,
        };
        self.engine(TO_ENGINE, Direction::Out, &add.encode());
    }

    pub fn abort(&mut self, ids: &[&str]) {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        self.engine(TO_ENGINE, Direction::Out, &encode_abort(&ids));
    }

    /// A step's message: (engine id, tokens, finish reason, is the first).
    pub fn outputs(&mut self, outputs: &[(&str, usize, Option<u8>, bool)]) {
        let frames = self.message(outputs);
        self.engine(FROM_ENGINE, Direction::In, &frames);
    }

    /// The frames of such a message.
    pub fn message(&self, outputs: &[(&str, usize, Option<u8>, bool)]) -> Vec<Vec<u8>> {
        let now = self.seconds();
        let outputs = outputs
            .iter()
            .map(|&(id, tokens, finish, first)| Produced {
                request_id: id.to_owned(),
                tokens: vec![7; tokens],
                finish,
                events: if first { vec![(QUEUED, now - 0.002), (SCHEDULED, now - 0.001)] } else { Vec::new() },
                prefill: first.then(|| Prefill { prompt_tokens: 5, ..Prefill::default() }),
                ..Produced::default()
            })
            .collect();
        Outputs { outputs, stats: Some(inferspan_demo_engine::wire::Stats::default()), timestamp: now, utility: None }
            .encode()
    }

    /// Where the API server receives the engine's messages.
    pub fn from_engine(&self) -> End {
        End(u64::from(API) << 32 | FROM_ENGINE)
    }

    /// What is open now.
    ///
    /// # Panics
    /// Never: it has a server.
    pub fn view(&self) -> View<'_> {
        self.pipeline.views().next().expect("its one server")
    }

    /// What was made of it, 8 s later.
    pub fn made(&mut self) -> Made {
        self.quiet(8_000);
        Made::of(std::mem::take(self.pipeline.outputs()), self.pipeline.spans_dropped())
    }
}

impl Story {
    /// So much was lost at `stage`, now, as the source tells.
    pub fn lose(&mut self, stage: LossStage, count: u64) {
        self.now += STEP;
        self.input(Input::Lost(Lost { at: self.now, count, stage }));
    }

    /// The server closes the connection; the source counts what moved on it.
    pub fn close_counted(&mut self, end: End) {
        let moved = |direction| self.moved.get(&(end, direction)).copied().unwrap_or(0);
        let moved = Some((moved(Direction::In), moved(Direction::Out)));
        self.event(API, What::Closed { end, moved });
    }

    /// The tracer is stopped: what was made of it.
    pub fn stopped(&mut self) -> Made {
        while self.pipeline.finish_part() {}
        Made::of(std::mem::take(self.pipeline.outputs()), self.pipeline.spans_dropped())
    }
}

fn shifted(input: &Input, shift: u32) -> Input {
    let at = |end: &mut End| end.0 += u64::from(shift) << 32;
    let mut input = input.clone();
    match &mut input {
        Input::Event(event) => {
            event.process += shift;
            event.thread += shift;
            match &mut event.what {
                What::Data { end, .. }
                | What::Opened { end }
                | What::PeerClosed { end }
                | What::Closed { end, .. }
                | What::Blocked { end }
                | What::Unblocked { end } => at(end),
                What::Forked { child } => *child += shift,
                _ => {}
            }
        }
        Input::Fact(Fact::Process { tgid, .. } | Fact::Probed { tgid, .. }) => *tgid += shift,
        Input::Fact(Fact::Server(server)) => {
            let pid = server.pid + shift;
            *server = Server { pid, ..(**server).clone() }.into();
        }
        _ => {}
    }
    input
}

/// The last event of a streamed completion: a token, and that it is over by length.
pub fn last(id: &str) -> Vec<u8> {
    chunk(&format!("data: {{\"id\":\"cmpl-{id}\",\"choices\":[{{\"text\":\"x\",\"finish_reason\":\"length\"}}]}}\n\n"))
}

/// The mark at the end of a stream.
pub fn done() -> Vec<u8> {
    chunk("data: [DONE]\n\n")
}

pub use inferspan_demo_engine::zmtp::framed as zmtp;

/// A request to `path`; `id` is its `X-Request-Id`.
pub fn post(path: &str, id: Option<&str>, body: &str) -> Vec<u8> {
    let id = id.map(|id| format!("X-Request-Id: {id}\r\n")).unwrap_or_default();
    format!("POST {path} HTTP/1.1\r\nHost: a\r\n{id}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The head of a streamed response.
pub const STREAM: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
/// The end of a chunked body.
pub const END: &[u8] = b"0\r\n\r\n";

/// A chunk with these lines in it.
pub fn chunk(lines: &str) -> Vec<u8> {
    format!("{:x}\r\n{lines}\r\n", lines.len()).into_bytes()
}

/// A whole JSON response.
pub fn json(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\r\n{body}", body.len())
        .into_bytes()
}
