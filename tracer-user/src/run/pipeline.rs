//! The one thread's state: a core a server, each behind its own sorter.
//!
//! Enters: everything that a run is told, through [`Pipeline::push`] and nothing else, so that these inputs are the whole
//! nondeterminism of a run, of several servers too. Leaves: outputs, and verdicts on connections for the source. An input goes to
//! the server that is named, else to the one whose process caused it; what concerns no process goes to all. Refused: an event of a
//! process that belongs to no server; it is counted. Pure: no clock, no I/O.

use std::collections::HashMap;

use crate::core::view::View;
use crate::core::{Config, Core};
use crate::input::{End, EventNanos, Fact, Input, LossStage, Lost, What};
use crate::order::Order;
use crate::output::{Output, Verdict};

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
    outputs: Vec<Output>,
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
            outputs: Vec::new(),
        }
    }

    /// Takes an input; `server` (an index) names whose it is. A fact that is told of a server by name counts before what is still
    /// held back for order.
    pub fn push(&mut self, server: Option<usize>, input: Input) {
        match (input, server) {
            (Input::Delivered(delivered), _) => self.outputs.push(Output::Delivered(delivered)),
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
                None => {
                    self.outputs.push(Output::Lost(Lost { at: event.at, count: 1, stage: LossStage::Unclassified }));
                }
            },
            (input, None) => {
                if let Input::Lost(lost) = input {
                    self.outputs.push(Output::Lost(lost));
                }
                (0..self.servers.len()).for_each(|server| self.push_to(server, input.clone()));
            }
        }
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
        if let Some((_, core)) = self.servers.get_mut(server) {
            core.push(Input::Fact(fact), &mut self.outputs);
        }
    }

    fn push_to(&mut self, server: usize, input: Input) {
        let Some((order, core)) = self.servers.get_mut(server) else { return };
        order.push(input, &mut self.ordered);
        for input in self.ordered.drain(..) {
            meet(&mut self.first, &input);
            let said = self.outputs.len();
            core.push(input, &mut self.outputs);
            for output in self.outputs.get(said..).unwrap_or_default() {
                if let Output::Verdict(verdict) = output
                    && let Some(from) = self.first.get(&verdict.end)
                {
                    self.verdicts.push((*verdict, *from));
                }
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
        for (order, core) in &mut self.servers {
            order.finish(&mut self.ordered);
            for input in self.ordered.drain(..) {
                core.push(input, &mut self.outputs);
            }
            if core.finish_part(&mut self.outputs) {
                return true;
            }
        }
        false
    }

    /// What is open now at each server.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.servers.iter().map(|(_, core)| core.view())
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

/// Keeps the time of the first event of each connection.
fn meet(first: &mut HashMap<End, EventNanos>, input: &Input) {
    let Input::Event(event) = input else { return };
    match event.what {
        What::Opened { end } => {
            first.insert(end, event.at);
        }
        What::Data { end, .. } | What::PeerClosed { end } => {
            first.entry(end).or_insert(event.at);
        }
        What::Closed { end, .. } => {
            first.remove(&end);
        }
        What::Exited => first.retain(|end, _| (end.0 >> 32) as u32 != event.process),
        _ => {}
    }
}
