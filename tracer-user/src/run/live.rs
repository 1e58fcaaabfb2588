//! Follows running servers until the user, the clock or the servers end it.
//!
//! Enters: servers as discovery found them, an attached session. Leaves: inputs for the run, and what a user should hear. Processes
//! that come later are found by looking again while something forks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use super::{Ended, Run};
use crate::attach::Target;
use crate::attach::libraries::Probed;
use crate::discover::{self, ServerProcesses};
use crate::engine;
use crate::input::{Event, EventNanos, Fact, Input, Role, What};
use crate::proc::Proc;
use crate::source::ring;
use crate::source::session::Session;

/// How long an input may be late. Both rings are drained before each tick, so what is late by more than the time between
/// entering a program and submitting its record is rare; a drain of a full ring takes less than this.
pub const LAG_NS: EventNanos = 20_000_000;

/// How often processes that came later are looked for, while some may still be on their way to their title and their
/// sockets: a vLLM engine takes up to two minutes.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const LOOK_FOR: Duration = Duration::from_mins(3);
/// How often the targets are looked at, in case an exit was lost.
const CHECK_ALIVE_EVERY: Duration = Duration::from_secs(1);
/// How soon a signal is noticed; ticks come more often.
const PATIENCE: Duration = Duration::from_millis(50);

/// Why a trace is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoppedBy {
    User,
    Time,
    Target,
    /// The recording that was asked for cannot go on.
    Recording,
}

/// A run on running servers.
#[derive(Debug)]
pub struct Live {
    servers: Vec<ServerProcesses>,
    session: Session,
    run: Run,
    /// Processes with a role of their own that have not ended.
    alive: BTreeSet<u32>,
    /// When a process of the targets last came or changed its image.
    forked: Option<Instant>,
    next_look: Instant,
    next_check: Instant,
}

/// Workers carry no request, and their threads wake every 10 ms: only their life is followed.
pub fn targets_of(found: &ServerProcesses) -> Vec<Target> {
    found.processes.iter().map(|process| Target { tgid: process.pid, capture: process.role != Role::Worker }).collect()
}

/// The processes whose end is the server's.
fn followed(found: &ServerProcesses) -> impl Iterator<Item = u32> {
    found.processes.iter().filter(|process| process.role != Role::Other).map(|process| process.pid)
}

impl Live {
    /// Tells the run what is known of the servers.
    pub fn new(servers: Vec<ServerProcesses>, session: Session, mut run: Run) -> Self {
        let anchor = ring::clock_anchor();
        let mut alive = BTreeSet::new();
        for (index, found) in servers.iter().enumerate() {
            for fact in found.facts().into_iter().chain([anchor.clone()]) {
                run.push(Some(index), Input::Fact(fact));
            }
            alive.extend(followed(found));
        }
        // Born while this attached: nobody saw it.
        for (parent, child) in session.adopted() {
            let what = What::Forked { child: *child };
            run.push(None, Input::Event(Event { at: ring::monotonic_ns(), process: *parent, thread: *parent, what }));
        }
        let forked = (!session.adopted().is_empty()).then(Instant::now);
        let now = Instant::now();
        Self { servers, session, run, alive, forked, next_look: now, next_check: now + CHECK_ALIVE_EVERY }
    }

    pub fn servers(&self) -> &[ServerProcesses] {
        &self.servers
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Probes the libraries of the servers' processes; gives what a user should know.
    pub fn probe_libraries(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (index, found) in self.servers.iter().enumerate() {
            if !engine::by_name(&found.server.engine).has_messages() {
                continue;
            }
            let processes: Vec<(u32, Role)> =
                found.processes.iter().map(|process| (process.pid, process.role)).collect();
            let attached = self.session.attach_libraries(&processes);
            for Probed { family, process, .. } in attached.probed {
                self.run.push(Some(index), Input::Fact(Fact::Probed { tgid: process, probe: family.probe }));
            }
            warnings.extend(attached.warnings);
        }
        warnings
    }

    /// Feeds the run with what came next, and waits for it for a moment; why the trace is over, once it is. `warn`: hears what a user
    /// should know.
    pub fn turn(
        &mut self,
        stop: &AtomicBool,
        deadline: Option<Instant>,
        warn: &mut impl FnMut(&str),
    ) -> Option<StoppedBy> {
        match self.session.inputs().recv_timeout(PATIENCE) {
            Ok(batch) => {
                for input in batch {
                    self.take(input);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The reader is gone, which only a bug can do; what was seen is still worth flushing.
            Err(RecvTimeoutError::Disconnected) => return Some(StoppedBy::Target),
        }
        for (verdict, from) in self.run.verdicts() {
            self.session.tell(verdict, from);
        }
        self.run.export();
        let now = Instant::now();
        if stop.load(Relaxed) {
            return Some(StoppedBy::User);
        }
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Some(StoppedBy::Time);
        }
        if now >= self.next_check {
            self.next_check = now + CHECK_ALIVE_EVERY;
            self.alive.retain(|pid| Proc::this().exists(pid));
        }
        if self.alive.is_empty() {
            return Some(StoppedBy::Target);
        }
        if self.run.has_recording_failed() {
            return Some(StoppedBy::Recording);
        }
        if now >= self.next_look && self.forked.is_some_and(|at| now - at < LOOK_FOR) {
            self.next_look = now + LOOK_EVERY;
            self.look_again();
            self.probe_libraries().iter().for_each(|what| warn(what));
        }
        None
    }

    fn take(&mut self, input: Input) {
        if let Input::Event(event) = &input {
            match event.what {
                What::Exited => {
                    self.alive.remove(&event.process);
                    self.session.ended(event.process);
                }
                What::Forked { .. } | What::Executed => {
                    let now = Instant::now();
                    self.forked = Some(now);
                    if self.next_look < now {
                        self.next_look = now + LOOK_EVERY;
                    }
                }
                _ => {}
            }
        }
        self.run.push(None, input);
    }

    /// Looks at the servers again: a process that came later gets its role.
    fn look_again(&mut self) {
        for (index, known) in self.servers.iter_mut().enumerate() {
            let Ok(found) = discover::server(known.server.pid) else { continue };
            if found.server.start_ticks != known.server.start_ticks {
                continue;
            }
            let roles = |of: &ServerProcesses| -> BTreeSet<(u32, Role)> {
                of.processes.iter().map(|process| (process.pid, process.role)).collect()
            };
            for (tgid, role) in roles(&found).difference(&roles(known)) {
                self.run.push(Some(index), Input::Fact(Fact::Process { tgid: *tgid, role: *role }));
                self.session.set_target(Target { tgid: *tgid, capture: *role != Role::Worker });
            }
            if found.server != known.server {
                self.run.push(Some(index), Input::Fact(Fact::Server(Arc::clone(&found.server))));
            }
            self.alive.extend(followed(&found));
            *known = found;
        }
    }

    /// Detaches and flushes.
    pub fn finish(self) -> Ended {
        let Self { session, mut run, .. } = self;
        session.detach(|batch| {
            for input in batch {
                run.push(None, input);
            }
            run.export();
        });
        run.finish(false)
    }
}
