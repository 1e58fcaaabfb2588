//! The one thread's state: a core a server, each behind its own sorter, and the exporters they share.
//!
//! Enters: inputs of all traced processes. Leaves: what the cores say, to the exporters, and their verdicts on
//! connections, to the source. An input goes to the core of the server whose process caused it; what concerns no process goes
//! to all. Refused: an event of a process that belongs to no server; it is counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::core::{Config, Core};
use crate::export::{Sinks, Summary};
use crate::input::{End, EventNanos, Fact, Input, LossStage, What};
use crate::order::Order;
use crate::output::{Output, Verdict};
use crate::telemetry::Telemetry;

/// How long an input may be late. Both rings are drained before each tick, so what is late by more than the time between
/// entering a program and submitting its record is rare; a drain of a full ring takes less than this.
const LAG_NS: EventNanos = 20_000_000;

pub(super) struct Pipeline {
    cores: Vec<(Order, Core)>,
    /// Which core a process belongs to.
    of_process: HashMap<u32, usize>,
    sinks: Sinks,
    telemetry: Arc<Telemetry>,
    /// When the first event of each open connection was: tells the source which of a number's lifetimes a verdict is on.
    first: HashMap<End, EventNanos>,
    verdicts: Vec<(Verdict, EventNanos)>,
    ordered: Vec<Input>,
    outputs: Vec<Output>,
}

impl Pipeline {
    pub(super) fn new(servers: usize, max_spans: usize, sinks: Sinks, telemetry: Arc<Telemetry>) -> Self {
        let config = Config { max_spans, ..Config::default() };
        let cores = (0..servers).map(|_| (Order::new(LAG_NS), Core::new(config.clone()))).collect();
        Self {
            cores,
            of_process: HashMap::new(),
            sinks,
            telemetry,
            first: HashMap::new(),
            verdicts: Vec::new(),
            ordered: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// Tells `server` (an index) a fact, before anything that is still held back for order.
    pub(super) fn tell(&mut self, server: usize, fact: Fact) {
        if let Fact::Process { tgid, .. } = &fact {
            self.of_process.insert(*tgid, server);
        }
        if let Some((_, core)) = self.cores.get_mut(server) {
            core.push(Input::Fact(fact), &mut self.outputs);
        }
    }

    /// Takes an input of the source.
    pub(super) fn push(&mut self, input: Input) {
        let process = match &input {
            Input::Event(event) => Some(event.process),
            Input::Fact(_) | Input::Tick(_) | Input::Lost(_) => None,
        };
        match process {
            None => (0..self.cores.len()).for_each(|server| self.push_to(server, input.clone())),
            Some(process) => {
                // Only children of a server's processes are traced besides those it was found with; one whose birth was not
                // seen is the only server's.
                let only = (self.cores.len() == 1).then_some(0);
                let Some(server) = self.of_process.get(&process).copied().or(only) else {
                    self.telemetry.add_lost(LossStage::Unclassified, 1);
                    return;
                };
                if let Input::Event(event) = &input {
                    match event.what {
                        What::Forked { child } => {
                            self.of_process.insert(child, server);
                        }
                        What::Exited => {
                            self.of_process.remove(&process);
                        }
                        _ => {}
                    }
                }
                self.push_to(server, input);
            }
        }
    }

    /// `child` belongs to the server of `parent`.
    pub(super) fn adopt(&mut self, parent: u32, child: u32) {
        if let Some(server) = self.of_process.get(&parent) {
            self.of_process.insert(child, *server);
        }
    }

    /// What connections turned out to speak, and when their first events were.
    pub(super) fn verdicts(&mut self) -> Vec<(Verdict, EventNanos)> {
        std::mem::take(&mut self.verdicts)
    }

    fn push_to(&mut self, server: usize, input: Input) {
        let Some((order, core)) = self.cores.get_mut(server) else { return };
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

    /// Hands on what the cores have said.
    pub(super) fn export(&mut self) {
        self.count_dropped();
        self.outputs.retain(|output| !matches!(output, Output::Verdict(_)));
        if !self.outputs.is_empty() {
            self.sinks.push(&mut self.outputs);
        }
    }

    /// Spans over the hard caps of their traces, as the cores count them.
    fn count_dropped(&self) {
        let dropped = self.cores.iter().map(|(_, core)| core.spans_dropped()).sum();
        self.telemetry.spans_dropped_limit.store(dropped, Relaxed);
    }

    /// The stream is over: everything held and everything open goes out.
    pub(super) fn finish(mut self) -> (Summary, u64) {
        let mut late = 0;
        for (order, core) in &mut self.cores {
            order.finish(&mut self.ordered);
            for input in self.ordered.drain(..) {
                core.push(input, &mut self.outputs);
            }
            while core.finish_part(&mut self.outputs) {
                self.outputs.retain(|output| !matches!(output, Output::Verdict(_)));
                self.sinks.push(&mut self.outputs);
            }
            late += order.late();
        }
        self.count_dropped();
        self.outputs.retain(|output| !matches!(output, Output::Verdict(_)));
        self.sinks.push(&mut self.outputs);
        (self.sinks.finish(), late)
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
