//! The one thread's state: a core a server, each behind its own sorter, and the exporters they share.
//!
//! Enters: inputs of all traced processes. Leaves: what the cores say, to the exporters. An input goes to the core of the
//! server whose process caused it; what concerns no process goes to all.

use std::collections::HashMap;

use crate::core::{Config, Core};
use crate::export::{Sinks, Summary};
use crate::input::{EventNanos, Fact, Input, What};
use crate::order::Order;
use crate::output::Output;

/// How long an input may be late. Both rings are drained before each tick, so what is late by more than the time between
/// entering a program and submitting its record is rare; a drain of a full ring takes less than this.
const LAG_NS: EventNanos = 20_000_000;

pub(super) struct Pipeline {
    cores: Vec<(Order, Core)>,
    /// Which core a process belongs to.
    of_process: HashMap<u32, usize>,
    sinks: Sinks,
    ordered: Vec<Input>,
    outputs: Vec<Output>,
}

impl Pipeline {
    pub(super) fn new(servers: usize, sinks: Sinks) -> Self {
        let cores = (0..servers).map(|_| (Order::new(LAG_NS), Core::new(Config::default()))).collect();
        Self { cores, of_process: HashMap::new(), sinks, ordered: Vec::new(), outputs: Vec::new() }
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
                // Only children of a server's processes are traced besides those it was found with.
                let server = self.of_process.get(&process).copied().unwrap_or(0);
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

    fn push_to(&mut self, server: usize, input: Input) {
        let Some((order, core)) = self.cores.get_mut(server) else { return };
        order.push(input, &mut self.ordered);
        for input in self.ordered.drain(..) {
            core.push(input, &mut self.outputs);
        }
    }

    /// Hands on what the cores have said.
    pub(super) fn export(&mut self) {
        if !self.outputs.is_empty() {
            self.sinks.push(&mut self.outputs);
        }
    }

    /// The stream is over: everything held and everything open goes out.
    pub(super) fn finish(mut self) -> (Summary, u64) {
        let mut late = 0;
        for (order, core) in &mut self.cores {
            order.finish(&mut self.ordered);
            for input in self.ordered.drain(..) {
                core.push(input, &mut self.outputs);
            }
            core.finish(&mut self.outputs);
            late += order.late();
        }
        self.sinks.push(&mut self.outputs);
        (self.sinks.finish(), late)
    }
}
