//! The one thread's state: a core a server, each behind its own sorter.
//!
//! Enters: everything that a source says, through [`Pipeline::push`] and nothing else, so that these inputs are the whole
//! nondeterminism of a run, of several servers too; or everything that a recording kept of such a run, through [`Pipeline::replay`]: the
//! same inputs as the cores took them then, behind the sorters, with what the decoders made of their bytes. A run has one or the other.
//! Leaves: outputs, and verdicts on connections for the source. An input goes to
//! the server that is named, else to the one whose process caused it; what concerns no process goes to all. Refused: an event of a
//! process that belongs to no server; it is counted. Pure: no clock, no I/O. Bounded: what the cores hold, by [`super::budget`], and what
//! the sorters hold back, of all servers together.

use std::collections::{HashMap, VecDeque};

use super::budget::Budget;
use crate::core::view::View;
use crate::core::{Config, Core};
use crate::input::{End, Event, EventNanos, Fact, Input, LossStage, Lost, What};
use crate::order::{self, Order};
use crate::output::{Output, Verdict};
use crate::recording::Entry;

/// Cores, and the way to each.
#[derive(Debug)]
pub struct Pipeline {
    servers: Vec<(Order, Core)>,
    /// Which server a process belongs to.
    of_process: HashMap<u32, usize>,
    /// When the first event of each open connection was: tells the source which of a number's lifetimes a verdict is on.
    first: HashMap<End, EventNanos>,
    verdicts: Vec<(Verdict, EventNanos)>,
    ordered: Vec<Input>,
    /// What a sorter held back at the end and no core has yet.
    rest: VecDeque<Input>,
    outputs: Vec<Output>,
    tape: Option<Tape>,
    budget: Budget,
    /// Bytes that the sorters hold back.
    held_back: usize,
}

/// Connections whose first event is remembered: as many as a core follows; over that nothing is told of them.
const MAX_FIRST: usize = 114_688;
/// Inputs that are handed over in one part of the end.
const PART: usize = 16;

/// What is kept for a recording.
#[derive(Debug)]
struct Tape {
    /// With the bytes, and so without what they were decoded to.
    raw: bool,
    entries: Vec<Entry>,
}

impl Pipeline {
    /// `lag`: how much later than others of its time an input may come, ns.
    pub fn new(servers: usize, lag: EventNanos, config: &Config) -> Self {
        let servers = (0..servers).map(|_| (Order::new(lag), Core::new(config.clone()))).collect();
        Self {
            servers,
            of_process: HashMap::new(),
            first: HashMap::new(),
            verdicts: Vec::new(),
            ordered: Vec::new(),
            rest: VecDeque::new(),
            outputs: Vec::new(),
            tape: None,
            budget: Budget::default(),
            held_back: 0,
        }
    }

    /// From here on what happens is kept for a recording, until [`Self::take_entries`]. `raw`: with the bytes of the streams.
    pub fn record(&mut self, raw: bool) {
        self.tape = Some(Tape { raw, entries: Vec::new() });
        if !raw {
            self.servers.iter_mut().for_each(|(_, core)| core.record());
        }
    }

    /// What happened since the last call.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        self.tape.as_mut().map(|tape| std::mem::take(&mut tape.entries)).unwrap_or_default()
    }

    /// Takes an entry of a recording: as it was taken then, in the order of then. `raw`: its bytes are decoded.
    pub fn replay(&mut self, entry: Entry, raw: bool) {
        match entry {
            Entry::Input { server, input, answers } => {
                if let Some((_, core)) = self.servers.get_mut(server as usize) {
                    let held = core.held();
                    if raw {
                        core.push(input, &mut self.outputs);
                    } else {
                        core.replay(input, answers, &mut self.outputs);
                    }
                    self.budget.moved(held, core.held());
                    if self.budget.is_over_recorded() {
                        self.relieve();
                    }
                }
            }
            Entry::Delivered(delivered) => self.outputs.push(Output::Delivered(delivered)),
            Entry::Gpus(gpus) => self.outputs.push(Output::Gpus(gpus)),
            Entry::Lost(lost) => self.outputs.push(Output::Lost(lost)),
            Entry::Finish { server } => {
                if let Some((_, core)) = self.servers.get_mut(server as usize) {
                    core.finish_part(&mut self.outputs);
                }
            }
            // They were there, and found no room on their way to the disk.
            Entry::Missing { entries } => {
                self.outputs.push(Output::Lost(Lost { at: 0, count: entries, stage: LossStage::Queue }));
            }
            // Whoever reads the recording tells of it.
            Entry::Complete { .. } => {}
        }
    }

    /// Where a recording and the cores did not fit each other, so far.
    pub fn unanswered(&self) -> u64 {
        self.servers.iter().map(|(_, core)| core.unanswered()).sum()
    }

    fn keep(&mut self, entry: impl FnOnce() -> Entry) {
        if let Some(tape) = &mut self.tape {
            tape.entries.push(entry());
        }
    }

    /// Takes an input; `server` (an index) names whose it is. A fact that is told of a server by name counts before what is still
    /// held back for order.
    pub fn push(&mut self, server: Option<usize>, input: Input) {
        match (input, server) {
            (Input::Delivered(delivered), _) => {
                self.keep(|| Entry::Delivered(delivered));
                self.outputs.push(Output::Delivered(delivered));
            }
            (Input::Gpus(gpus), _) => {
                self.keep(|| Entry::Gpus(gpus.clone()));
                self.outputs.push(Output::Gpus(gpus));
            }
            (Input::Fact(fact), Some(server)) => self.tell(server, fact),
            (input, Some(server)) => self.push_to(server, input),
            (Input::Event(event), None) => match self.server_of(event.process) {
                Some(server) => {
                    match event.what {
                        What::Forked { child } => {
                            self.of_process.insert(child, server);
                        }
                        What::Exited => {
                            self.of_process.remove(&event.process);
                        }
                        _ => {}
                    }
                    self.push_to(server, Input::Event(event));
                }
                None => self.lost(Lost { at: event.at, count: 1, stage: LossStage::Unclassified }),
            },
            (input, None) => {
                if let Input::Lost(lost) = input {
                    self.lost(lost);
                }
                (0..self.servers.len()).for_each(|server| self.push_to(server, input.clone()));
            }
        }
    }

    fn lost(&mut self, lost: Lost) {
        self.keep(|| Entry::Lost(lost));
        self.outputs.push(Output::Lost(lost));
    }

    /// Only children of a server's processes are traced besides those it was found with; one whose birth was not seen is the only
    /// server's.
    fn server_of(&self, process: u32) -> Option<usize> {
        let only = (self.servers.len() == 1).then_some(0);
        self.of_process.get(&process).copied().or(only)
    }

    fn tell(&mut self, server: usize, fact: Fact) {
        if let Fact::Process { tgid, .. } = &fact {
            self.of_process.insert(*tgid, server);
        }
        self.push_now(server, Input::Fact(fact));
    }

    fn push_to(&mut self, server: usize, input: Input) {
        let Some((order, _)) = self.servers.get_mut(server) else { return };
        let before = order.held_bytes();
        order.push(input, &mut self.ordered);
        self.held_back = (self.held_back + order.held_bytes()).saturating_sub(before);
        self.deliver(server);
        while self.held_back > order::MAX_BYTES {
            // The sorter that holds back most; the first of equals.
            let sizes = self.servers.iter().map(|(order, _)| order.held_bytes()).enumerate();
            let Some((most, before)) = sizes.rev().max_by_key(|&(_, size)| size) else { return };
            let Some((order, _)) = self.servers.get_mut(most) else { return };
            order.release(&mut self.ordered);
            self.held_back = (self.held_back + order.held_bytes()).saturating_sub(before);
            self.deliver(most);
        }
    }

    /// Hands over what a sorter let go.
    fn deliver(&mut self, server: usize) {
        let mut ordered = std::mem::take(&mut self.ordered);
        for input in ordered.drain(..) {
            meet(&mut self.first, &input);
            let said = self.outputs.len();
            self.push_now(server, input);
            for output in self.outputs.get(said..).unwrap_or_default() {
                if let Output::Verdict(verdict) = output
                    && let Some(from) = self.first.get(&verdict.end)
                {
                    self.verdicts.push((*verdict, *from));
                }
            }
        }
        self.ordered = ordered;
    }

    /// Hands an input that is due to a core; when all hold too much by then, the largest lets go.
    fn push_now(&mut self, server: usize, input: Input) {
        self.hand(server, input);
        if self.budget.is_over() {
            self.relieve();
        }
    }

    fn hand(&mut self, server: usize, input: Input) {
        let Some((_, core)) = self.servers.get_mut(server) else { return };
        let held = core.held();
        let kept = self.tape.as_ref().map(|tape| if tape.raw { input.clone() } else { without_bytes(&input) });
        core.push(input, &mut self.outputs);
        self.budget.moved(held, core.held());
        if let (Some(tape), Some(input)) = (&mut self.tape, kept) {
            tape.entries.push(Entry::Input { server: server as u32, input, answers: core.take_answers() });
        }
    }

    fn relieve(&mut self) {
        let of = |(server, (_, core)): (usize, &(Order, Core))| {
            core.holders().map(move |(held, holder)| (held, server, holder)).collect::<Vec<_>>()
        };
        let all = self.servers.iter().enumerate().flat_map(of).collect();
        for (server, holders) in self.budget.choose(all, self.servers.len()).into_iter().enumerate() {
            if !holders.is_empty() {
                self.hand(server, Input::Relieve(holders));
            }
        }
    }

    /// What the cores have said since the last call.
    pub fn outputs(&mut self) -> &mut Vec<Output> {
        &mut self.outputs
    }

    /// What connections turned out to speak, and when their first events were.
    pub fn verdicts(&mut self) -> Vec<(Verdict, EventNanos)> {
        std::mem::take(&mut self.verdicts)
    }

    /// The stream is over: everything held and everything open goes out, part by part; true while there is more.
    pub fn finish_part(&mut self) -> bool {
        for server in 0..self.servers.len() {
            if let Some((order, _)) = self.servers.get_mut(server) {
                order.finish(&mut self.ordered);
                self.rest.extend(self.ordered.drain(..));
            }
            // What a sorter held back may be a hundred steps of a thousand requests, and each of their tokens is told of.
            let part: Vec<Input> = self.rest.drain(..self.rest.len().min(PART)).collect();
            for input in part {
                self.push_now(server, input);
            }
            if !self.rest.is_empty() {
                return true;
            }
            self.keep(|| Entry::Finish { server: server as u32 });
            let Some((_, core)) = self.servers.get_mut(server) else { continue };
            let held = core.held();
            let is_more = core.finish_part(&mut self.outputs);
            self.budget.moved(held, core.held());
            if is_more {
                return true;
            }
        }
        false
    }

    /// What is open now at each server.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.servers.iter().map(|(_, core)| core.view())
    }

    /// Bytes that the decoders hold for messages that are not whole.
    pub fn held_bytes(&self) -> usize {
        self.servers.iter().map(|(_, core)| core.held().messages).sum()
    }

    /// Spans over the hard caps of their traces, so far.
    pub fn spans_dropped(&self) -> u64 {
        self.servers.iter().map(|(_, core)| core.spans_dropped()).sum()
    }

    /// Inputs that came too late to be put in order, so far.
    pub fn late(&self) -> u64 {
        self.servers.iter().map(|(order, _)| order.late()).sum()
    }
}

/// The input as a recording keeps it that is not raw: what its bytes said is in the answers.
fn without_bytes(input: &Input) -> Input {
    match *input {
        Input::Event(Event {
            at,
            process,
            thread,
            what: What::Data { end, direction, len, bytes: _, starts, offset },
        }) => {
            let what = What::Data { end, direction, len, bytes: Vec::new(), starts, offset };
            Input::Event(Event { at, process, thread, what })
        }
        ref other => other.clone(),
    }
}

/// Keeps the time of the first event of each connection.
fn meet(first: &mut HashMap<End, EventNanos>, input: &Input) {
    let Input::Event(event) = input else { return };
    match event.what {
        What::Opened { end } if first.len() < MAX_FIRST => {
            first.insert(end, event.at);
        }
        What::Closed { end, .. } => {
            first.remove(&end);
        }
        What::Exited => first.retain(|end, _| (end.0 >> 32) as u32 != event.process),
        ref what => {
            if let Some(end) = what.end().filter(|_| first.len() < MAX_FIRST) {
                first.entry(end).or_insert(event.at);
            }
        }
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
