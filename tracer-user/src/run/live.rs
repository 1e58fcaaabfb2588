//! Follows running servers until the user, the clock or the servers end it.
//!
//! Enters: servers as discovery found them, an attached session. Leaves: inputs for the run, and what a user should hear. Processes
//! that come later are found by looking again while something forks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use super::naming::Naming;
use super::stop::Stop;
use super::{Ended, Run};
use crate::attach::libraries::Probed;
use crate::attach::{Level, Target};
use crate::core::view::View;
use crate::discover::{self, ServerProcesses};
use crate::engine;
use crate::gpu::Watch;
use crate::input::{Event, EventNanos, Fact, Input, Role, What};
use crate::proc::Proc;
use crate::source::ring;
use crate::source::session::{Attachment, Session};

/// How long an input may be late. Both rings are drained before each tick, so what is late by more than the time between
/// entering a program and submitting its record is rare; a drain of a full ring takes less than this.
pub const LAG_NS: EventNanos = 20_000_000;

/// How often processes that came later are looked for, while some may still be on their way to their title and their
/// sockets: an engine takes up to two minutes.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const LOOK_FOR: Duration = Duration::from_mins(3);
/// How often the targets are looked at, in case an exit was lost.
const CHECK_ALIVE_EVERY: Duration = Duration::from_secs(1);
/// How often what is open is shown to those who ask for it: a picture of 8,192 requests takes some milliseconds.
const SHOW_EVERY: Duration = Duration::from_millis(500);
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
    /// Whoever read the lines is gone.
    Reader,
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
    next_show: Instant,
    /// Processes that have mapped a library since theirs were looked at.
    mapped: BTreeSet<u32>,
    naming: Naming,
    gpus: Option<Watch>,
}

/// Workers carry no request, and their threads wake every 10 ms: only their life, and what they map, is followed.
pub fn target_of(process: u32, role: Role, level: Level) -> Target {
    Target { tgid: process, capture: role != Role::Worker, libraries: level >= Level::Steps }
}

pub fn targets_of(found: &ServerProcesses, level: Level) -> impl Iterator<Item = Target> {
    found.processes.iter().map(move |process| target_of(process.pid, process.role, level))
}

/// It is no inference server: only what it does with CUDA is followed.
pub fn is_bare(found: &ServerProcesses) -> bool {
    found.server.engine.is_empty()
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
        let next_check = now + CHECK_ALIVE_EVERY;
        let (mapped, naming) = (BTreeSet::new(), Naming::default());
        Self {
            servers,
            session,
            run,
            alive,
            forked,
            next_look: now,
            next_check,
            next_show: now,
            mapped,
            naming,
            gpus: None,
        }
    }

    /// From here on the run is told what the GPUs' driver says.
    pub fn watch_gpus(&mut self) {
        self.gpus = Some(Watch::start());
    }

    pub fn servers(&self) -> &[ServerProcesses] {
        &self.servers
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// As [`Session::uses_events`].
    pub fn uses_events(&mut self) -> bool {
        self.session.uses_events()
    }

    /// As [`Run::views`].
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.run.views()
    }

    /// Probes the libraries of the servers' processes; gives what a user should know.
    pub fn probe_libraries(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        for index in 0..self.servers.len() {
            let processes = self.servers[index].processes.iter().map(|process| (process.pid, process.role));
            let processes: Vec<(u32, Role)> = processes.collect();
            warnings.extend(self.probe(index, &processes));
        }
        warnings
    }

    /// Probes the libraries of some processes of a server.
    fn probe(&mut self, server: usize, processes: &[(u32, Role)]) -> Vec<String> {
        let has_messages = engine::by_name(&self.servers[server].server.engine).has_messages();
        let attached = self.session.attach_libraries(processes, has_messages);
        if self.session.level() >= Level::Steps {
            for (process, _) in processes {
                self.naming.maps(*process);
                self.naming.names_at(*process, self.session.names_at(*process).offset);
            }
        }
        for Probed { family, process, .. } in attached.probed {
            self.run.push(Some(server), Input::Fact(Fact::Probed { tgid: process, probe: family.probe }));
        }
        attached.warnings
    }

    /// Probes what processes have mapped since they were looked at. A child that nobody knows yet is its only server's, of no role.
    fn probe_mapped(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        for process in std::mem::take(&mut self.mapped) {
            let known = self.servers.iter().enumerate().find_map(|(index, found)| {
                let its = found.processes.iter().find(|its| its.pid == process)?;
                Some((index, its.role))
            });
            if let Some((server, role)) = known.or_else(|| (self.servers.len() == 1).then_some((0, Role::Other))) {
                warnings.extend(self.probe(server, &[(process, role)]));
            }
        }
        warnings
    }

    /// Feeds the run with what came next, and waits for it for a moment; why the trace is over, once it is. `warn`: hears what a user
    /// should know.
    pub fn turn(&mut self, stop: &Stop, deadline: Option<Instant>, warn: &mut impl FnMut(&str)) -> Option<StoppedBy> {
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
        self.probe_mapped().iter().for_each(|what| warn(what));
        for fact in self.naming.found() {
            self.run.push(None, Input::Fact(fact));
        }
        if let Some(gpus) = self.gpus.as_mut().and_then(Watch::news) {
            self.run.push(None, Input::Gpus(gpus.map(Arc::new)));
        }
        for (verdict, from) in self.run.verdicts() {
            self.session.tell(verdict, from);
        }
        self.run.export();
        self.run.take_unsaid().iter().for_each(|what| warn(what));
        let now = Instant::now();
        if stop.is_asked_for() {
            return Some(StoppedBy::User);
        }
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Some(StoppedBy::Time);
        }
        if stop.takes_reopen() {
            self.run.reopen();
        }
        if now >= self.next_check {
            self.next_check = now + CHECK_ALIVE_EVERY;
            if self.run.is_unread() {
                return Some(StoppedBy::Reader);
            }
            self.alive.retain(|pid| Proc::this().exists(pid));
        }
        if now >= self.next_show {
            self.next_show = now + SHOW_EVERY;
            self.run.show_now();
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
        // What is said of a function comes behind it.
        let mut named = None;
        if let Input::Event(event) = &input {
            match &event.what {
                What::Exited => {
                    self.alive.remove(&event.process);
                    self.session.ended(event.process);
                    self.naming.ended(event.process);
                }
                What::Mapped => {
                    self.mapped.insert(event.process);
                }
                What::Cuda(seen) => named = self.naming.meet(event.process, seen),
                What::Forked { .. } | What::Executed => {
                    if event.what == What::Executed {
                        // Its libraries are others now.
                        self.session.ended(event.process);
                        self.naming.ended(event.process);
                    }
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
        if let Some(fact) = named {
            self.run.push(None, Input::Fact(fact));
        }
    }

    /// Looks at the servers again: a process that came later gets its role.
    fn look_again(&mut self) {
        for (index, known) in self.servers.iter_mut().enumerate() {
            let pid = known.server.pid;
            let found = if is_bare(known) { discover::process_tree(pid) } else { discover::server(pid) };
            let Ok(found) = found else { continue };
            if found.server.start_ticks != known.server.start_ticks {
                continue;
            }
            let roles = |of: &ServerProcesses| -> BTreeSet<(u32, Role)> {
                of.processes.iter().map(|process| (process.pid, process.role)).collect()
            };
            for (tgid, role) in roles(&found).difference(&roles(known)) {
                self.run.push(Some(index), Input::Fact(Fact::Process { tgid: *tgid, role: *role }));
                let parent = found.processes.iter().find(|process| process.pid == *tgid).map(|process| process.parent);
                if let Some(parent) = parent {
                    self.run.push(Some(index), Input::Fact(Fact::Parent { tgid: *tgid, parent }));
                }
                self.session.set_target(target_of(*tgid, *role, self.session.level()));
            }
            for rank in found.ranks().filter(|rank| !known.ranks().any(|other| other == *rank)) {
                self.run.push(Some(index), Input::Fact(rank));
            }
            if found.server != known.server {
                self.run.push(Some(index), Input::Fact(Fact::Server(Arc::clone(&found.server))));
            }
            self.alive.extend(followed(&found));
            *known = found;
        }
    }

    /// Detaches and flushes; gives what is still attached, to be dropped.
    pub fn finish(self) -> (Ended, Attachment) {
        let Self { session, mut run, mut naming, .. } = self;
        let attachment = session.detach(|batch| {
            for input in batch {
                let named = match &input {
                    Input::Event(Event { what: What::Cuda(seen), process, .. }) => naming.meet(*process, seen),
                    _ => None,
                };
                run.push(None, input);
                if let Some(fact) = named {
                    run.push(None, Input::Fact(fact));
                }
            }
            run.export();
        });
        for fact in naming.last() {
            run.push(None, Input::Fact(fact));
        }
        (run.finish(false), attachment)
    }
}
