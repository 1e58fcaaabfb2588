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
mod loss;
mod place;
mod uptake;
pub mod view;

use std::collections::{BTreeMap, VecDeque};

use self::about::About;
use self::batches::Batches;
pub use self::connections::Answer;
use self::connections::Connections;
use self::cuda::Cuda;
pub use self::decoder::Parsed;
use self::encodes::Encodes;
use self::engine_side::Sighting;
use self::exchanges::Exchanges;
use self::generations::Generations;
use self::http_side::Place;
use self::in_flight::InFlight;
use self::join::{Index, Join};
use self::uptake::{TakenUp, Uptake};
use crate::decode::{
    self,
    http::{Piece, RequestHead},
};
use crate::engine::{self, ENGINES, Engine, Outputs};
use crate::input::{End, Event, EventNanos, Fact, Function, Input, LossStage, What};
use crate::model::exchange::Ending;
use crate::model::generation::Generation;
use crate::model::step::{Step, Steps};
use crate::model::tree;
use crate::output::{EngineStep, Metric, Output, SpanId, TraceId, Verdict};

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

/// Open exchanges, and open generations; over that the oldest are finished early.
const MAX_OPEN: usize = 65_536;
/// How often open requests are looked over, ns of event time.
const SWEEP_EVERY: EventNanos = 50_000_000;

/// Turns ordered inputs into outputs.
#[derive(Debug)]
pub struct Core {
    config: Config,
    /// Whose messages and ids these are.
    engine: &'static dyn Engine,
    about: About,
    connections: Connections,
    exchanges: Exchanges,
    generations: Generations,
    index: Index,
    encodes: Encodes,
    steps: BTreeMap<u32, Steps>,
    in_flight: InFlight,
    uptake: Uptake,
    cuda: Cuda,
    batches: Batches,
    /// Steps that are over, in the order of their ends, of engines that use CUDA: what their threads called last is not told yet.
    ended_steps: VecDeque<Step>,
    /// Scratch of messages that count now.
    due: Vec<(EventNanos, Outputs)>,
    /// A response that turned out to answer another request of its connection: the rest of its events is that one's.
    rebound: Option<(End, u64, u64)>,
    /// When records of opened and closed connections were last lost.
    edges_lost_at: Option<EventNanos>,
    next_key: u64,
    now: EventNanos,
    next_sweep: EventNanos,
    next_slow_sweep: EventNanos,
    spans_dropped: u64,
}

impl Core {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            engine: ENGINES[0],
            about: About::default(),
            connections: Connections::default(),
            exchanges: Exchanges::default(),
            generations: Generations::default(),
            index: Index::default(),
            encodes: Encodes::default(),
            steps: BTreeMap::new(),
            in_flight: InFlight::default(),
            uptake: Uptake::default(),
            cuda: Cuda::default(),
            batches: Batches::default(),
            ended_steps: VecDeque::new(),
            due: Vec::new(),
            rebound: None,
            edges_lost_at: None,
            next_key: 0,
            now: 0,
            next_sweep: 0,
            next_slow_sweep: 0,
            spans_dropped: 0,
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
        self.spans_dropped
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
            Input::Lost(lost) => self.lost(lost, out),
            // Counted at the entrance.
            Input::Delivered(_) => {}
        }
        out.extend(self.about.news().map(Output::Metric));
        out.extend(self.about.take_met().map(|process| Output::Process(Box::new(process))));
        self.settle_touched(out);
        if self.now >= self.next_sweep {
            let given_up = self.uptake.take_given_up();
            self.count_loss(LossStage::Evicted, given_up, out);
            self.sweep(out);
            self.cuda_sweep(out);
            self.next_sweep = self.now.saturating_add(SWEEP_EVERY);
        }
    }

    fn event(&mut self, event: Event, out: &mut Vec<Output>) {
        let Event { at, process, what, thread } = event;
        match what {
            What::Data { end, direction, len, bytes, starts, offset } => {
                let piece = Piece { len, bytes: &bytes, starts };
                self.data(Sighting { at, process, end, direction }, offset, piece, out);
            }
            What::Opened { end } => {
                self.close(end, at, None, Ending::Unseen, out);
                self.connect(end, process, true, out);
            }
            What::PeerClosed { end } => self.peer_closed(end, at),
            What::Closed { end, moved } => self.close(end, at, moved, Ending::ServerClosed, out),
            What::Call { function: Function::Encode, entered, .. } => {
                self.encodes.returned(process, entered, at);
            }
            What::Call { function: Function::Decode, .. } => {
                let taken_up = self.uptake.decodes(process, thread, at);
                self.taken_up(&taken_up);
            }
            What::Call { function: Function::Clock, stack, .. } => {
                let taken_up = self.uptake.reads_clock(process, thread, at, stack);
                self.taken_up(&taken_up);
            }
            What::Cuda(seen) => self.cuda(at, process, thread, *seen, out),
            What::Forked { child } => self.cuda.parent(child, process),
            What::Executed | What::Mapped => {}
            What::Exited => self.exited(process, at, out),
        }
    }

    /// The front end got to the first output of these requests then.
    fn taken_up(&mut self, taken_up: &TakenUp) {
        for (firsts, at) in taken_up {
            for key in firsts {
                if let Some(generation) = self.generations.get_mut(*key) {
                    generation.taken_up = Some(*at);
                }
            }
        }
    }

    fn exited(&mut self, process: u32, at: EventNanos, out: &mut Vec<Output>) {
        for end in self.connections.of(process) {
            self.close(end, at, None, Ending::ServerExited, out);
        }
        let gone = self.about.exited(process);
        self.generations_over(at, |g| {
            let ran_it = g.engine_process == process || (g.first.is_some() && gone.engines.contains(&g.engine));
            (process != 0 && (g.process == process || ran_it)) || gone.was_last_engine
        });
        self.encodes.ended(process);
        self.uptake.ended(process);
        self.cuda_exited(process, at, out);
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    fn join(&mut self) -> Join<'_> {
        Join { exchanges: &mut self.exchanges, generations: &mut self.generations, index: &mut self.index }
    }

    fn step_is_over(&mut self, step: Step, out: &mut Vec<Output>) {
        if self.cuda.is_seen_at(step.reference.engine) {
            self.ended_steps.push_back(step);
        } else {
            self.emit_step(&step, out);
        }
    }

    fn emit_step(&mut self, step: &Step, out: &mut Vec<Output>) {
        let first_call = if step.start.is_none() { self.first_call(step) } else { None };
        let step = &Step { start: step.start.or(first_call), ..*step };
        let edges = (step.start.unwrap_or(step.end), step.end);
        let cuda = self.cuda_step(step, edges);
        let batch = self.batches.take(step.reference);
        if let Some(cuda) = &cuda {
            self.generations.share(&batch.keys, cuda);
        }
        if let Some(mut step) = step.leave(&self.about.server, self.about.run, &self.about.clock) {
            if let Some(mut cuda) = cuda {
                let labels = self.about.labels(step.engine);
                out.push(Output::Metric(Metric::CudaGap { labels, seconds: cuda.gap_ns as f64 / 1e9 }));
                cuda.begins_with_call = first_call.is_some();
                self.calls_of_step(step.engine, edges, (step.trace_id, step.span_id), &mut cuda, out);
                step.cuda = Some(cuda);
            }
            (step.prefill_tokens, step.decode_tokens) = (batch.prefill_tokens, batch.decode_tokens);
            let roots = batch.keys.iter().filter_map(|key| self.root_of(*key));
            step.batch = roots.take(EngineStep::MAX_LINKS).collect();
            let seconds = (step.end_ns - step.start_ns) as f64 / 1e9;
            let labels = self.about.labels(step.engine);
            // Where its first call stands for its start, it is longer than that.
            if first_call.is_none() {
                out.push(Output::Metric(Metric::Step { labels, seconds }));
            }
            out.push(Output::Step(Box::new(step)));
        }
    }

    /// The root span of an engine request's tree, where it is known already.
    fn root_of(&self, key: u64) -> Option<(TraceId, SpanId)> {
        let exchange = |generation: &Generation| self.exchanges.get(generation.exchange?);
        self.generations.get(key).and_then(exchange).map_or_else(
            || self.batches.root_of(key),
            |exchange| {
                let place = tree::place_of(exchange, self.about.run);
                Some((place.trace_id, place.root_id))
            },
        )
    }

    fn data(&mut self, seen: Sighting, offset: Option<u64>, piece: Piece<'_>, out: &mut Vec<Output>) {
        let Sighting { at, process, end, direction } = seen;
        if self.connections.get(end).is_none() {
            self.connect(end, process, false, out);
        }
        let Some(mut parsed) = self.connections.push(end, direction, offset, piece, self.engine) else { return };
        if let Some(speaks) = parsed.speaks {
            out.push(Output::Verdict(Verdict { end, speaks }));
        }
        let place = Place { at, process, end };
        self.losses(place, direction, &mut parsed, out);
        for message in parsed.messages.drain(..) {
            self.engine_message(seen, message, out);
        }
        for event in parsed.http.drain(..) {
            self.http_event(place, event, out);
        }
        self.rebound = None;
        if self.connections.relieve() {
            self.count_loss(LossStage::Evicted, 1, out);
        }
    }

    fn connect(&mut self, end: End, process: u32, from_start: bool, out: &mut Vec<Output>) {
        if !self.connections.open(end, process, from_start) {
            self.count_loss(LossStage::Connections, 1, out);
        }
    }
}
