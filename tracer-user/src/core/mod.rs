//! The pure core: inputs in, outputs out. Owns all state; no clock, no I/O, no locks, one thread.
//!
//! Enters: [`Input`]s in time order. Leaves: [`Output`]s. The same inputs give the same outputs. Bounded: what exceeds a limit
//! is finished early, marked, and counted.

mod connection;
mod engine_side;
mod finish;
mod http_side;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use self::connection::Connection;
use crate::clock::Clock;
use crate::engine::vllm::Vllm;
use crate::engine::{Engine, Outputs};
use crate::input::{Direction, End, Event, EventNanos, Fact, Function, Input, Lost, Role, Server, What};
use crate::model::exchange::Exchange;
use crate::model::generation::Generation;
use crate::model::ids;
use crate::model::step::{Step, Steps};
use crate::output::{Labels, Metric, Output};

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
/// How often open requests are looked over, ns of event time.
const SWEEP_EVERY: EventNanos = 50_000_000;

/// Counts of what the core met and could not use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Places where a ZMTP stream lost its framing.
    pub desyncs: u64,
    /// Requests finished early because too many were open.
    pub evicted: u64,
    /// Spans over the hard cap of their trace.
    pub spans_dropped: u64,
    /// Connections not followed because there were too many.
    pub connections_ignored: u64,
}

/// One call of the tokenizer.
#[derive(Debug, Clone, Copy)]
struct Encode {
    entered: EventNanos,
    returned: EventNanos,
    used: bool,
}

/// An output message that was seen leaving the engine and not yet arriving at a front end.
#[derive(Debug)]
struct InFlight {
    sent: EventNanos,
    from: End,
    message: Outputs,
    key: u64,
}

/// Whether the receiving ends of output messages are seen too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receivers {
    /// None was seen yet; messages are held a moment for one.
    Unknown,
    /// They are: an output counts when the front end has it.
    Seen,
    /// They are not (a log of the engine's side only): an output counts when it leaves.
    Unseen,
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
    engine: Vllm,
    roles: BTreeMap<u32, Role>,
    tokenizer_probed: HashSet<u32>,
    connections: HashMap<End, Connection>,
    exchanges: BTreeMap<u64, Exchange>,
    generations: BTreeMap<u64, Generation>,
    generation_of: HashMap<Arc<str>, u64>,
    recent: HashSet<Arc<str>>,
    recent_order: VecDeque<Arc<str>>,
    steps: BTreeMap<u32, Steps>,
    encodes: BTreeMap<u32, VecDeque<Encode>>,
    in_flight: VecDeque<InFlight>,
    receivers: Receivers,
    seen_messages: HashSet<u64>,
    seen_order: VecDeque<u64>,
    /// Exchanges that something happened to since they were last looked at.
    touched: Vec<u64>,
    next_key: u64,
    now: EventNanos,
    next_sweep: EventNanos,
    oddities: Oddities,
}

impl Core {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            clock: Clock::default(),
            server: Arc::new(Server::default()),
            run: ids::run_identity(&Server::default()),
            learned_model: None,
            engine: Vllm,
            roles: BTreeMap::new(),
            tokenizer_probed: HashSet::new(),
            connections: HashMap::new(),
            exchanges: BTreeMap::new(),
            generations: BTreeMap::new(),
            generation_of: HashMap::new(),
            recent: HashSet::new(),
            recent_order: VecDeque::new(),
            steps: BTreeMap::new(),
            encodes: BTreeMap::new(),
            in_flight: VecDeque::new(),
            receivers: Receivers::Unknown,
            seen_messages: HashSet::new(),
            seen_order: VecDeque::new(),
            touched: Vec::new(),
            next_key: 0,
            now: 0,
            next_sweep: 0,
            oddities: Oddities::default(),
        }
    }

    /// What was met and could not be used, so far.
    pub fn oddities(&self) -> Oddities {
        let desyncs = self.connections.values().map(Connection::desyncs).sum::<u64>();
        Oddities { desyncs: self.oddities.desyncs + desyncs, ..self.oddities }
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
            Input::Lost(lost) => self.lost(lost),
        }
        self.settle_touched(out);
        if self.now >= self.next_sweep {
            self.sweep(out);
            self.next_sweep = self.now + SWEEP_EVERY;
        }
    }

    fn event(&mut self, event: Event, out: &mut Vec<Output>) {
        let Event { at, process, what, thread: _ } = event;
        match what {
            What::Data { end, direction, len, bytes, .. } => self.data(at, process, end, direction, len, &bytes, out),
            What::Opened { end } => {
                self.close(end, at, out);
                self.connect(end, process);
            }
            What::PeerClosed { end } => self.peer_closed(end, at),
            What::Closed { end, .. } => self.close(end, at, out),
            What::Call { function: Function::Encode, entered } => {
                let encodes = self.encodes.entry(process).or_default();
                if encodes.len() == MAX_ENCODES {
                    encodes.pop_front();
                }
                encodes.push_back(Encode { entered, returned: at, used: false });
            }
            What::Forked { .. } | What::Executed => {}
            What::Exited => self.exited(process, at, out),
        }
    }

    fn fact(&mut self, fact: Fact) {
        match fact {
            Fact::Server(server) => {
                self.run = ids::run_identity(&server);
                self.server = server;
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

    /// Records are missing: everything open may be hit.
    fn lost(&mut self, lost: Lost) {
        self.now = self.now.max(lost.at);
        for connection in self.connections.values_mut() {
            connection.doubt();
        }
        for exchange in self.exchanges.values_mut() {
            exchange.lost = true;
        }
        for generation in self.generations.values_mut() {
            generation.lost = true;
        }
    }

    fn exited(&mut self, process: u32, at: EventNanos, out: &mut Vec<Output>) {
        let mut ends: Vec<End> =
            self.connections.iter().filter(|(_, c)| c.process == process).map(|(&end, _)| end).collect();
        ends.sort_unstable();
        for end in ends {
            self.close(end, at, out);
        }
        let engines = self.roles.values().filter(|&&role| role == Role::Engine).count();
        if self.roles.remove(&process) == Some(Role::Engine) && engines == 1 {
            self.engine_died(at);
        }
        self.encodes.remove(&process);
        self.tokenizer_probed.remove(&process);
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    fn labels(&self, engine: u32) -> Labels {
        let model = if self.server.model.is_empty() {
            self.learned_model.clone().unwrap_or_else(|| Arc::from("unknown"))
        } else {
            Arc::from(self.server.model.as_str())
        };
        Labels { server: Arc::from(self.server.instance()), model, engine }
    }

    fn emit_step(&self, step: &Step, out: &mut Vec<Output>) {
        if let Some(step) = step.leave(&self.server, self.run, &self.clock) {
            let seconds = (step.end_ns - step.start_ns) as f64 / 1e9;
            let labels = self.labels(step.engine);
            out.push(Output::Metric(Metric::Step { labels, seconds }));
            out.push(Output::Step(Box::new(step)));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call's facts; a struct would be built only to be taken apart")]
    fn data(
        &mut self,
        at: EventNanos,
        process: u32,
        end: End,
        direction: Direction,
        len: u64,
        bytes: &[u8],
        out: &mut Vec<Output>,
    ) {
        if !self.connections.contains_key(&end) {
            self.connect(end, process);
        }
        let Some(connection) = self.connections.get_mut(&end) else { return };
        let mut parsed = connection::Parsed::default();
        connection.push(direction, len, bytes, &mut parsed);
        for message in parsed.messages.drain(..) {
            let message = self.engine.decode(&message);
            self.engine_message(at, process, end, direction, message, out);
        }
        for event in parsed.http.drain(..) {
            self.http_event(at, process, end, event);
        }
    }

    fn connect(&mut self, end: End, process: u32) {
        if self.connections.len() < MAX_CONNECTIONS {
            self.connections.insert(end, Connection::new(process));
        } else {
            self.oddities.connections_ignored += 1;
        }
    }
}
