//! The pure core: inputs in, outputs out. Owns all state; no clock, no I/O, no locks, one thread.
//!
//! Enters: [`Input`]s in time order. Leaves: [`Output`]s. The same inputs give the same outputs. Bounded: what exceeds a limit
//! is finished early, marked, and counted.

mod about;
mod batches;
mod connections;
mod cuda;
mod decoder;
mod encodes;
mod engine_side;
mod exchanges;
mod finish;
mod generations;
mod http_side;
mod in_flight;
mod join;
mod leave;
mod loss;
mod outputs;
mod place;
mod requests;
mod scene;
mod slots;
mod steps;
mod uptake;
pub mod view;

use self::about::About;
pub use self::connections::Answer;
use self::connections::Connections;
use self::cuda::Cuda;
pub use self::decoder::Parsed;
use self::engine_side::{EngineSide, Sighting};
use self::finish::Finish;
use self::http_side::{HttpSide, Place};
use self::requests::Requests;
use self::scene::Scene;
use self::steps::{Steps, Work};
use crate::decode::{
    self,
    http::{Piece, RequestHead},
};
use crate::engine::{self, ENGINES, Engine};
use crate::input::{Event, EventNanos, Fact, Function, Holder, Input, LossStage, What};
use crate::model::exchange::Ending;
use crate::model::step::Step;
use crate::output::{Metric, Output, Verdict};

/// Limits that a user may set, and what the source can see.
#[derive(Debug, Clone)]
pub struct Config {
    /// Hard cap of spans a trace.
    pub max_spans: usize,
    /// The source shows closes and disconnects. Without them, an exchange whose engine requests were all cancelled and that
    /// then stays quiet counts as left by its client.
    pub closes_visible: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_spans: 2000, closes_visible: true }
    }
}

/// What a core holds until it is whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of messages whose end has not come.
    pub messages: usize,
    /// Bytes of requests that are open.
    pub requests: usize,
    /// How many are followed.
    pub connections: usize,
}

/// Turns ordered inputs into outputs: tells each to the rooms that it concerns, in one order.
#[derive(Debug)]
pub struct Core {
    /// Whose messages and ids these are.
    engine: &'static dyn Engine,
    about: About,
    connections: Connections,
    requests: Requests,
    http: HttpSide,
    messages: EngineSide,
    steps: Steps,
    cuda: Cuda,
    finish: Finish,
    /// The newest event's time.
    now: EventNanos,
}

/// The rooms of a core, each by itself, for one input.
struct Rooms<'a> {
    http: &'a mut HttpSide,
    messages: &'a mut EngineSide,
    finish: &'a mut Finish,
    work: Work<'a>,
    scene: Scene<'a>,
}

impl Core {
    pub fn new(config: Config) -> Self {
        Self {
            engine: ENGINES[0],
            about: About::default(),
            connections: Connections::default(),
            requests: Requests::default(),
            http: HttpSide::default(),
            messages: EngineSide::default(),
            steps: Steps::default(),
            cuda: Cuda::default(),
            finish: Finish::new(config),
            now: 0,
        }
    }

    fn rooms<'a>(&'a mut self, out: &'a mut Vec<Output>) -> Rooms<'a> {
        Rooms {
            http: &mut self.http,
            messages: &mut self.messages,
            finish: &mut self.finish,
            work: Work { steps: &mut self.steps, cuda: &mut self.cuda },
            scene: Scene {
                now: self.now,
                engine: self.engine,
                about: &mut self.about,
                connections: &mut self.connections,
                requests: &mut self.requests,
                out,
            },
        }
    }

    /// From here on the answers of its decoders are kept, for a recording; see [`Self::take_answers`].
    pub fn record(&mut self) {
        self.connections.record();
    }

    /// What the decoders said since the last call, in order. Of a request that does not generate, nothing of its head: nobody reads it.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        let mut answers = self.connections.take_answers();
        for answer in &mut answers {
            let Answer::Parsed(parsed) = answer else { continue };
            for event in parsed.http.iter_mut().chain(&mut parsed.lost_http) {
                if let decode::http::What::RequestHead(head) = &mut event.what
                    && self.engine.operation(&head.method, &head.path).is_none()
                {
                    *head = RequestHead::default();
                }
            }
        }
        answers
    }

    /// Takes one input of a recording: nothing is decoded, these are the answers of then.
    pub fn replay(&mut self, input: Input, answers: Vec<Answer>, out: &mut Vec<Output>) {
        self.connections.follow(answers);
        self.push(input, out);
    }

    /// Where a recording and this core did not fit each other, so far.
    pub fn unanswered(&self) -> u64 {
        self.connections.unanswered()
    }

    /// Spans over the hard cap of their trace, so far.
    pub fn spans_dropped(&self) -> u64 {
        self.finish.spans_dropped()
    }

    /// Takes one input; what it completes is appended to `out`. Inputs must be in time order (see [`crate::order`]).
    pub fn push(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Event(event) => {
                self.now = self.now.max(event.at);
                self.event(event, out);
            }
            Input::Fact(fact) => {
                match &fact {
                    Fact::Server(server) => self.engine = engine::by_name(&server.engine),
                    Fact::Parent { tgid, parent } => self.cuda.parent(*tgid, *parent),
                    Fact::Kernel { function, name } => self.cuda.named(*function, name),
                    Fact::Caller { process, address, library } => self.cuda_caller(*process, *address, library),
                    _ => {}
                }
                self.about.fact(fact);
            }
            Input::Tick(at) => self.now = self.now.max(at),
            Input::Lost(lost) => {
                self.now = self.now.max(lost.at);
                if matches!(lost.stage, LossStage::RareRing | LossStage::Queue | LossStage::Decode) {
                    self.cuda_lost();
                }
                let Rooms { http, messages, mut scene, .. } = self.rooms(out);
                loss::told(lost, http, messages, &mut scene);
            }
            Input::Relieve(holders) => self.relieve(&holders, out),
            // Counted, or told, at the entrance.
            Input::Delivered(_) | Input::Gpus(_) => {}
        }
        out.extend(self.about.news().map(Output::Metric));
        out.extend(self.about.take_met().map(|process| Output::Process(Box::new(process))));
        let Rooms { finish, mut work, mut scene, .. } = self.rooms(out);
        finish.settle_touched(&mut work, &mut scene);
        if finish.is_due(scene.now) {
            self.sweep(out);
        }
    }

    fn event(&mut self, event: Event, out: &mut Vec<Output>) {
        let Event { at, process, what, thread } = event;
        let Rooms { http, messages, mut work, mut scene, .. } = self.rooms(out);
        match what {
            What::Data { end, direction, len, bytes, starts, offset } => {
                let piece = Piece { len, bytes: &bytes, starts };
                self.data(Sighting { at, process, end, direction }, offset, piece, out);
            }
            What::Opened { end } => {
                http.close(end, at, None, Ending::Unseen, &mut scene);
                scene.connect(end, process, true);
            }
            What::PeerClosed { end } => http_side::peer_closed(end, at, &mut scene),
            What::Blocked { end } => http_side::blocked(end, |blocked| blocked.begins(at), &mut scene),
            What::Unblocked { end } => http_side::blocked(end, |blocked| blocked.ends(at), &mut scene),
            What::Closed { end, moved } => http.close(end, at, moved, Ending::ServerClosed, &mut scene),
            What::Call { function: Function::Encode, entered, .. } => messages.encoded(process, entered, at),
            What::Call { function: Function::Decode, .. } => {
                messages.decodes(process, thread, at, &mut work, &mut scene);
            }
            What::Call { function: Function::Clock, stack, .. } => {
                messages.reads_clock(process, thread, at, stack, &mut scene);
            }
            What::Cuda(seen) => self.cuda(at, process, thread, *seen, out),
            What::Forked { child } => self.cuda.parent(child, process),
            What::Executed | What::Mapped => {}
            What::Exited => self.exited(process, at, out),
        }
    }

    fn data(&mut self, seen: Sighting, offset: Option<u64>, piece: Piece<'_>, out: &mut Vec<Output>) {
        let Sighting { at, process, end, direction } = seen;
        let Rooms { http, messages, mut work, mut scene, .. } = self.rooms(out);
        if scene.connections.get(end).is_none() {
            scene.connect(end, process, false);
        }
        let Some(mut parsed) = scene.connections.push(end, direction, offset, piece, scene.engine) else { return };
        if let Some(speaks) = parsed.speaks {
            scene.out.push(Output::Verdict(Verdict { end, speaks }));
        }
        let place = Place { at, process, end };
        loss::shown(http, place, direction, &mut parsed, &mut scene);
        for message in parsed.messages.drain(..) {
            messages.message(seen, message, &mut work, &mut scene);
        }
        http.events(place, &mut parsed.http, &mut scene);
        if scene.connections.was_relieved() {
            scene.count_loss(LossStage::Evicted, 1);
        }
    }

    /// What is held until something is whole.
    pub fn held(&self) -> Held {
        Held {
            messages: self.connections.held_bytes(),
            requests: self.requests.held_bytes(),
            connections: self.connections.len(),
        }
    }

    /// What holds them, and how many each; in no order.
    pub fn holders(&self) -> impl Iterator<Item = (usize, Holder)> {
        let connections = self.connections.holders().map(|(held, end)| (held, Holder::Connection(end)));
        connections.chain(self.requests.holders().map(|(held, key)| (held, Holder::Request(key))))
    }

    /// These let go of what they hold: messages are cut there, requests leave early.
    fn relieve(&mut self, holders: &[Holder], out: &mut Vec<Output>) {
        let end = |holder: &Holder| if let Holder::Connection(end) = holder { Some(*end) } else { None };
        let ends: Vec<_> = holders.iter().filter_map(end).collect();
        let Rooms { http, finish, mut work, mut scene, .. } = self.rooms(out);
        if !ends.is_empty() {
            loss::let_go(&ends, http, &mut scene);
        }
        for holder in holders {
            if let Holder::Request(key) = holder {
                finish.let_go(*key, &mut work, &mut scene);
            }
        }
    }

    fn exited(&mut self, process: u32, at: EventNanos, out: &mut Vec<Output>) {
        let Rooms { http, messages, work, mut scene, .. } = self.rooms(out);
        for end in scene.connections.of(process) {
            http.close(end, at, None, Ending::ServerExited, &mut scene);
        }
        let gone = scene.about.exited(process);
        scene.requests.over(at, |g| {
            let ran_it = g.engine_process == process || (g.first.is_some() && gone.engines.contains(&g.engine));
            (process != 0 && (g.process == process || ran_it)) || gone.was_last_engine
        });
        messages.process_ended(process);
        work.steps.front_end_ended(process);
        for engine in gone.engines {
            work.steps.engine_ended(engine);
        }
        self.cuda_exited(process, at, out);
    }

    /// Fires the timers of every room.
    fn sweep(&mut self, out: &mut Vec<Output>) {
        let Rooms { messages, mut work, mut scene, .. } = self.rooms(out);
        scene.count_loss(LossStage::Evicted, messages.take_given_up());
        messages.release(scene.now, &mut work, &mut scene);
        work.settle(scene.now, &mut scene);
        self.steps_leave(false, out);
        let Rooms { messages, finish, mut work, mut scene, .. } = self.rooms(out);
        if finish.is_slow_due(scene.now) {
            finish.slow_sweep(&mut work, &mut scene);
            messages.expire(scene.now);
        }
        finish.sweep(&mut work, &mut scene);
        self.cuda_sweep(out);
    }

    /// The stream is over: what is open is emitted, marked incomplete.
    pub fn finish(&mut self, out: &mut Vec<Output>) {
        while self.finish_part(out) {}
    }

    /// As [`Self::finish`], a part of it; true while there is more. Thousands may be open, and their trees take their room.
    pub fn finish_part(&mut self, out: &mut Vec<Output>) -> bool {
        let Rooms { messages, mut work, mut scene, .. } = self.rooms(out);
        messages.release(EventNanos::MAX, &mut work, &mut scene);
        work.settle(EventNanos::MAX, &mut scene);
        self.steps_leave(true, out);
        let Rooms { finish, mut work, mut scene, .. } = self.rooms(out);
        if finish.part(&mut work, &mut scene) {
            return true;
        }
        self.cuda_finish(out);
        false
    }

    /// Steps that are over leave, once it is known what their threads called, or at the end.
    fn steps_leave(&mut self, is_end: bool, out: &mut Vec<Output>) {
        while let Some(step) = self.steps.next_over(self.now, is_end) {
            self.step_leaves(&step, out);
        }
    }

    /// A step leaves, with what its threads called. Where nothing says when it began, its first call stands for that.
    fn step_leaves(&mut self, step: &Step, out: &mut Vec<Output>) {
        let first_call = if step.start.is_none() { self.first_call(step) } else { None };
        let step = &Step { start: step.start.or(first_call), ..*step };
        let edges = (step.start.unwrap_or(step.end), step.end);
        let engine = step.reference.engine;
        let mut cuda = self.cuda_step(step, edges);
        if let Some(cuda) = &mut cuda {
            self.requests.generations.share(self.steps.served(step.reference), cuda);
            // Without its start the step does not leave.
            if step.start.is_some() {
                let labels = self.about.labels(engine);
                out.push(Output::Metric(Metric::CudaGap { labels, seconds: cuda.gap_ns as f64 / 1e9 }));
                cuda.begins_with_call = first_call.is_some();
                self.calls_of_step(engine, edges, step.ids(self.about.run), cuda, out);
            }
        }
        let Rooms { work, mut scene, .. } = self.rooms(out);
        work.steps.leave(step, cuda, &mut scene);
    }

    fn count_loss(&self, stage: LossStage, count: u64, out: &mut Vec<Output>) {
        loss::count(self.now, stage, count, out);
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
