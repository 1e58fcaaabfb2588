//! The pure core: inputs in, outputs out. Owns all state; no clock, no I/O, no locks, one thread.
//!
//! Enters: [`Input`]s in time order. Leaves: [`Output`]s. The same inputs give the same outputs. Bounded: what exceeds a limit
//! is finished early, marked, and counted.

mod beams;
mod connection;
mod engine_side;
mod finish;
mod http_side;
mod in_flight;
mod join;
mod loss;
mod uptake;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use self::connection::{Connection, Parsed};
use self::engine_side::Sighting;
use self::http_side::Place;
use self::in_flight::InFlight;
use self::join::Index;
use self::uptake::Uptake;
use crate::clock::Clock;
use crate::decode::http::Piece;
use crate::engine::vllm::Vllm;
use crate::engine::{Engine, Outputs};
use crate::input::{End, Event, EventNanos, Fact, Function, Input, LossStage, Role, Server, What};
use crate::model::exchange::{Ending, Exchange};
use crate::model::generation::Generation;
use crate::model::ids;
use crate::model::step::{Step, Steps};
use crate::output::{Labels, Metric, Output, Verdict};

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
/// Connections that are followed; over that new ones are not (a descriptor table has 1,048,576 at most).
const MAX_CONNECTIONS: usize = 262_144;
/// encode() calls of a process that wait for their request.
const MAX_ENCODES: usize = 1_024;
/// Ids of finished generations that are remembered, so that an output after the end makes no new one.
const MAX_RECENT: usize = 8_192;
/// Bytes of messages that are not whole, of all connections: 1,024 front ends' first output messages.
const MAX_HELD: usize = 24 << 20;
/// How often open requests are looked over, ns of event time.
const SWEEP_EVERY: EventNanos = 50_000_000;

/// One call of the tokenizer.
#[derive(Debug, Clone, Copy)]
struct Encode {
    entered: EventNanos,
    returned: EventNanos,
    used: bool,
}

/// Turns ordered inputs into outputs.
#[derive(Debug)]
pub struct Core {
    config: Config,
    clock: Clock,
    server: Arc<Server>,
    run: u64,
    /// The model label while the server's name for it is not known.
    learned_model: Option<Arc<str>>,
    labels: BTreeMap<u32, Labels>,
    /// The name under which the model's series went over to their own, once.
    model_told: bool,
    model_news: Option<Metric>,
    engine: Vllm,
    roles: BTreeMap<u32, Role>,
    /// The process that sends an engine's outputs.
    engine_processes: BTreeMap<u32, u32>,
    tokenizer_probed: HashSet<u32>,
    connections: HashMap<End, Connection>,
    /// Bytes that connections hold for messages that are not whole.
    held: usize,
    exchanges: BTreeMap<u64, Exchange>,
    /// Exchanges that ended and are not finished.
    ended: BTreeSet<u64>,
    /// Exchanges whose client left before their response showed an id.
    left: BTreeSet<u64>,
    generations: BTreeMap<u64, Generation>,
    generation_of: HashMap<Arc<str>, u64>,
    /// Generations that are over and belong to no exchange yet.
    unclaimed: BTreeSet<u64>,
    index: Index,
    /// Beam searches by their id: the engine request that stands for each; and whom the others belong to.
    searches: HashMap<String, u64>,
    lead_of: BTreeMap<u64, u64>,
    recent: HashSet<Arc<str>>,
    recent_order: VecDeque<Arc<str>>,
    steps: BTreeMap<u32, Steps>,
    encodes: BTreeMap<u32, VecDeque<Encode>>,
    in_flight: InFlight,
    uptake: Uptake,
    /// Scratch of messages that count now.
    due: Vec<(EventNanos, Outputs)>,
    /// A response that turned out to answer another request of its connection: the rest of its events is that one's.
    rebound: Option<(End, u64, u64)>,
    /// Exchanges that something happened to since they were last looked at.
    touched: Vec<u64>,
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
            clock: Clock::default(),
            server: Arc::new(Server::default()),
            run: ids::run_identity(&Server::default()),
            learned_model: None,
            labels: BTreeMap::new(),
            model_told: false,
            model_news: None,
            engine: Vllm,
            roles: BTreeMap::new(),
            engine_processes: BTreeMap::new(),
            tokenizer_probed: HashSet::new(),
            connections: HashMap::new(),
            held: 0,
            exchanges: BTreeMap::new(),
            ended: BTreeSet::new(),
            left: BTreeSet::new(),
            generations: BTreeMap::new(),
            generation_of: HashMap::new(),
            unclaimed: BTreeSet::new(),
            index: Index::default(),
            searches: HashMap::new(),
            lead_of: BTreeMap::new(),
            recent: HashSet::new(),
            recent_order: VecDeque::new(),
            steps: BTreeMap::new(),
            encodes: BTreeMap::new(),
            in_flight: InFlight::default(),
            uptake: Uptake::default(),
            due: Vec::new(),
            rebound: None,
            touched: Vec::new(),
            edges_lost_at: None,
            next_key: 0,
            now: 0,
            next_sweep: 0,
            next_slow_sweep: 0,
            spans_dropped: 0,
        }
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
            Input::Fact(fact) => self.fact(fact),
            Input::Tick(at) => self.now = self.now.max(at),
            Input::Lost(lost) => self.lost(lost, out),
            // Counted at the entrance.
            Input::Delivered(_) => {}
        }
        out.extend(self.model_news.take().map(Output::Metric));
        self.settle_touched(out);
        if self.now >= self.next_sweep {
            self.sweep(out);
            self.next_sweep = self.now + SWEEP_EVERY;
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
            What::Call { function: Function::Encode, entered } => {
                let encodes = self.encodes.entry(process).or_default();
                if encodes.len() == MAX_ENCODES {
                    encodes.pop_front();
                }
                encodes.push_back(Encode { entered, returned: at, used: false });
            }
            What::Call { function: Function::Decode, .. } => {
                for key in self.uptake.decodes(process, thread) {
                    Self::taken_up(&mut self.generations, *key, at);
                }
            }
            What::Call { function: Function::Clock, .. } => {
                for key in self.uptake.reads_clock(process, thread) {
                    Self::taken_up(&mut self.generations, key, at);
                }
            }
            What::Forked { .. } | What::Executed => {}
            What::Exited => self.exited(process, at, out),
        }
    }

    /// The front end got to the request's first output.
    fn taken_up(generations: &mut BTreeMap<u64, Generation>, key: u64, at: EventNanos) {
        if let Some(generation) = generations.get_mut(&key) {
            generation.taken_up = Some(at);
        }
    }

    fn fact(&mut self, fact: Fact) {
        match fact {
            Fact::Server(server) => {
                self.run = ids::run_identity(&server);
                self.server = server;
                self.model_may_be_known();
            }
            Fact::Process { tgid, role } => {
                self.roles.insert(tgid, role);
            }
            Fact::Clock { event_ns, unix_ns } => self.clock.anchor(event_ns, unix_ns),
            Fact::EngineClock { offset_ns } => self.clock.set_engine_offset(offset_ns),
            Fact::TokenizerProbed { tgid } => {
                self.tokenizer_probed.insert(tgid);
            }
        }
    }

    fn exited(&mut self, process: u32, at: EventNanos, out: &mut Vec<Output>) {
        let mut ends: Vec<End> =
            self.connections.iter().filter(|(_, c)| c.process == process).map(|(&end, _)| end).collect();
        ends.sort_unstable();
        for end in ends {
            self.close(end, at, None, Ending::ServerExited, out);
        }
        let role = self.roles.remove(&process);
        let engines: BTreeSet<u32> =
            self.engine_processes.iter().filter(|(_, of)| **of == process).map(|(&engine, _)| engine).collect();
        let was_last = role == Some(Role::Engine) && !self.roles.values().any(|&role| role == Role::Engine);
        self.generations_over(at, |g| {
            let ran_it = g.engine_process == process || (g.first.is_some() && engines.contains(&g.engine));
            (process != 0 && (g.process == process || ran_it)) || was_last
        });
        self.engine_processes.retain(|_, of| *of != process);
        self.encodes.remove(&process);
        self.uptake.ended(process);
        self.tokenizer_probed.remove(&process);
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// The labels of an engine's series; made once for each name of the model.
    fn labels(&self, engine: u32) -> Labels {
        if let Some(labels) = self.labels.get(&engine) {
            return labels.clone();
        }
        let model = self.model_name().unwrap_or_else(|| Arc::from("unknown"));
        Labels { server: Arc::from(self.server.instance()), model, engine }
    }

    fn model_name(&self) -> Option<Arc<str>> {
        if self.server.model.is_empty() {
            self.learned_model.clone()
        } else {
            Some(Arc::from(self.server.model.as_str()))
        }
    }

    /// The server's facts or the traffic said the model's name, perhaps.
    fn model_may_be_known(&mut self) {
        self.labels.clear();
        if let Some(model) = self.model_name().filter(|_| !self.model_told) {
            self.model_told = true;
            self.model_news = Some(Metric::ModelKnown { server: Arc::from(self.server.instance()), model });
        }
    }

    fn emit_step(&self, step: &Step, out: &mut Vec<Output>) {
        if let Some(step) = step.leave(&self.server, self.run, &self.clock) {
            let seconds = (step.end_ns - step.start_ns) as f64 / 1e9;
            let labels = self.labels(step.engine);
            out.push(Output::Metric(Metric::Step { labels, seconds }));
            out.push(Output::Step(Box::new(step)));
        }
    }

    fn data(&mut self, seen: Sighting, offset: Option<u64>, piece: Piece<'_>, out: &mut Vec<Output>) {
        let Sighting { at, process, end, direction } = seen;
        if !self.connections.contains_key(&end) {
            self.connect(end, process, false, out);
        }
        let Some(connection) = self.connections.get_mut(&end) else { return };
        let mut parsed = Parsed::default();
        let held = connection.held_bytes();
        connection.push(direction, offset, piece, &mut parsed);
        self.held = (self.held + connection.held_bytes()).saturating_sub(held);
        if let Some(speaks) = parsed.speaks {
            out.push(Output::Verdict(Verdict { end, speaks }));
        }
        let place = Place { at, process, end };
        self.losses(place, direction, &mut parsed, out);
        for message in parsed.messages.drain(..) {
            let message = self.engine.decode(&message);
            self.engine_message(seen, message, out);
        }
        for event in parsed.http.drain(..) {
            self.http_event(place, event, out);
        }
        self.rebound = None;
        if self.held > MAX_HELD {
            self.drop_largest(out);
        }
    }

    fn connect(&mut self, end: End, process: u32, from_start: bool, out: &mut Vec<Output>) {
        if self.connections.len() < MAX_CONNECTIONS {
            self.connections.insert(end, Connection::new(process, from_start));
        } else {
            self.count_loss(LossStage::Connections, 1, out);
        }
    }
}
