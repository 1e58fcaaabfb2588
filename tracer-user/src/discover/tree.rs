//! From processes to servers: which process is a server's first, and which belong to it.
//!
//! Pure. Enters: every process of the host with what its title and command line say ([`Seen`]), and answers to two
//! questions that need a closer look ([`Look`]). Leaves: first processes and their descendants. Invariant: every process
//! of a server has the same first process. A server is recognised by evidence, not by the name of a binary: an engine's titles,
//! its command lines, or its library together with ZeroMQ's threads. A wrapper (`timeout`, a shell, `tini`) is not
//! part of the server below it. Refused: a worker whose engine is gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::process::{Launch, Program, Title};
use crate::input::Role;
use crate::proc::text::Stat;

/// Processes of one server that are looked at; a server has tens, so more is a fork bomb below it.
pub(super) const SERVER_PROCESSES_MAX: usize = 4096;

/// One process as the first pass over `/proc` sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub stat: Stat,
    pub title: Option<Title>,
    pub program: Program,
}

/// Questions about a process that cost more than its own two lines.
pub(super) trait Look {
    /// It listens on TCP, or has ZeroMQ's threads.
    fn talks(&self, pid: u32) -> bool;
    /// It has a library of an engine's mapped and ZeroMQ's threads: a server in a Python program of the user's own.
    fn runs_engine(&self, pid: u32) -> bool;
}

/// All processes, by PID, with the children of each.
#[derive(Debug, Default)]
pub(super) struct Forest {
    seen: BTreeMap<u32, Seen>,
    children: BTreeMap<u32, Vec<u32>>,
}

impl Forest {
    pub(super) fn new(processes: impl IntoIterator<Item = Seen>) -> Self {
        let seen: BTreeMap<u32, Seen> = processes.into_iter().map(|process| (process.stat.pid, process)).collect();
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for process in seen.values() {
            if let Some(parent) = parent_of(&seen, process.stat.pid) {
                children.entry(parent).or_default().push(process.stat.pid);
            }
        }
        Self { seen, children }
    }

    pub(super) fn get(&self, pid: u32) -> Option<&Seen> {
        self.seen.get(&pid)
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.seen.keys().copied()
    }

    /// The first process of the server that `pid` belongs to: the topmost of `pid` and its ancestors that is a server's.
    pub(super) fn root_of(&self, pid: u32, look: &dyn Look) -> Option<u32> {
        let root = self.lineage(pid).into_iter().filter(|&pid| self.is_servers(pid, look)).last()?;
        self.carries_requests(root).then_some(root)
    }

    /// The first processes of all servers.
    pub(super) fn roots(&self, look: &dyn Look) -> BTreeSet<u32> {
        let evident = self.seen.values().filter(|seen| seen.title.is_some() || !matches!(seen.program, Program::Other));
        evident.filter_map(|seen| self.root_of(seen.stat.pid, look)).collect()
    }

    /// The first processes of the servers below `pid`, which is none itself.
    pub(super) fn roots_below(&self, pid: u32, look: &dyn Look) -> BTreeSet<u32> {
        self.descend(pid).into_iter().filter_map(|below| self.root_of(below, look)).collect()
    }

    /// `pid` and everything below it: parents before children, siblings by PID.
    pub(super) fn descend(&self, pid: u32) -> Vec<u32> {
        let mut out = Vec::new();
        let mut known = BTreeSet::new();
        let mut pending = vec![pid];
        while let Some(pid) = pending.pop() {
            if out.len() == SERVER_PROCESSES_MAX || !known.insert(pid) {
                continue;
            }
            out.push(pid);
            pending.extend(self.children.get(&pid).into_iter().flatten().rev());
        }
        out
    }

    /// `pid`, its parent, and so on upwards.
    fn lineage(&self, pid: u32) -> Vec<u32> {
        let mut lineage = Vec::new();
        let mut next = self.seen.contains_key(&pid).then_some(pid);
        while let Some(pid) = next {
            if lineage.contains(&pid) {
                break;
            }
            lineage.push(pid);
            next = parent_of(&self.seen, pid);
        }
        lineage
    }

    fn is_servers(&self, pid: u32, look: &dyn Look) -> bool {
        let Some(seen) = self.seen.get(&pid) else { return false };
        if seen.title.is_some() || matches!(seen.program, Program::Launcher(_) | Program::FrontEnd) {
            return true;
        }
        let has_titled_child = self.children.get(&pid).into_iter().flatten().any(|child| self.is_titled_server(*child));
        // An orphaned engine has been handed to init or a subreaper, which does neither.
        (has_titled_child && (matches!(seen.program, Program::Python) || look.talks(pid)))
            || (matches!(seen.program, Program::Python | Program::Spawned) && look.runs_engine(pid))
    }

    fn is_titled_server(&self, pid: u32) -> bool {
        let title = self.seen.get(&pid).and_then(|seen| seen.title.as_ref());
        title.is_some_and(|title| matches!(title.role, Role::Api | Role::Engine))
    }

    /// Somebody below (or `pid` itself) speaks HTTP or schedules; a lone worker does not.
    fn carries_requests(&self, root: u32) -> bool {
        let title = self.seen.get(&root).and_then(|seen| seen.title.as_ref());
        title.is_none() || self.descend(root).into_iter().any(|pid| self.is_titled_server(pid))
    }
}

/// The parent, unless it is gone and its PID has gone to a younger process.
fn parent_of(seen: &BTreeMap<u32, Seen>, pid: u32) -> Option<u32> {
    let child = &seen.get(&pid)?.stat;
    let parent = &seen.get(&child.parent)?.stat;
    (parent.pid != pid && parent.start_ticks <= child.start_ticks).then_some(parent.pid)
}

/// One process of a server, as far as its role depends on it.
#[derive(Debug, Clone)]
pub(super) struct Member<'a> {
    pub seen: &'a Seen,
    /// It has ZeroMQ's threads.
    pub zmq: bool,
    /// Inodes of the TCP sockets that it listens on.
    pub listening: &'a [u64],
}

/// What a process of a server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub role: Role,
    pub index: Option<u32>,
    pub rank: String,
}

impl Part {
    fn other() -> Self {
        Self { role: Role::Other, index: None, rank: String::new() }
    }
}

/// The roles in one server, in the order of `members` (parents first, the server's first process at the front).
///
/// Titles say it outright. Without any, the first process speaks HTTP unless spawned children share its
/// listening socket, which then do; the topmost processes below that have ZeroMQ's threads are engines, and Python below
/// an engine is a worker.
pub(super) fn roles(members: &[Member<'_>]) -> Vec<Part> {
    let titled = |role| members.iter().any(|member| member.seen.title.as_ref().is_some_and(|title| title.role == role));
    let (titled_api, titled_engine) = (titled(Role::Api), titled(Role::Engine));
    let rust = members.iter().any(|member| member.seen.program == Program::FrontEnd && member.seen.title.is_none());
    let front = members.first().map(|root| root.listening).unwrap_or_default();
    let shares = |member: &Member<'_>| {
        member.seen.program == Program::Spawned && member.listening.iter().any(|inode| front.contains(inode))
    };
    let spawned_api = !titled_api && members.iter().skip(1).any(shares);

    let mut parts = Vec::with_capacity(members.len());
    // What a child finds above it: its parent, or what is above that when the parent is a forkserver.
    let mut aboves: BTreeMap<u32, Option<Part>> = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        let Seen { stat, title, program } = member.seen;
        let above = aboves.get(&stat.parent).cloned().flatten();
        let part = if let Some(title) = title {
            Part { role: title.role, index: title.index, rank: title.rank.clone() }
        } else if *program == Program::FrontEnd {
            Part { role: Role::Api, ..Part::other() }
        } else if is_plumbing(member) {
            Part::other()
        } else if at == 0 {
            let headless = matches!(program, Program::Launcher(Launch { headless: true, .. }));
            let speaks = !(headless || titled_api || rust || spawned_api);
            Part { role: if speaks { Role::Api } else { Role::Other }, ..Part::other() }
        } else if spawned_api && shares(member) {
            Part { role: Role::Api, ..Part::other() }
        } else if titled_engine {
            Part::other()
        } else {
            untitled(member, above.as_ref())
        };
        aboves.insert(stat.pid, if is_plumbing(member) { above } else { Some(part.clone()) });
        parts.push(part);
    }
    number(members, &mut parts);
    parts
}

/// A forkserver's children keep its command line; ZeroMQ's threads tell an engine from the forkserver itself.
fn is_plumbing(member: &Member<'_>) -> bool {
    member.seen.program == Program::Plumbing && !member.zmq
}

fn untitled(member: &Member<'_>, above: Option<&Part>) -> Part {
    let python = !matches!(member.seen.program, Program::Other | Program::FrontEnd);
    let role = match above.map(|above| above.role) {
        Some(Role::Engine) if python => Role::Worker,
        Some(Role::Worker) => Role::Other,
        _ if python && member.zmq => Role::Engine,
        _ => Role::Other,
    };
    Part { role, ..Part::other() }
}

/// Numbers API servers and engines that have no number, by start time; workers take their engine's.
fn number(members: &[Member<'_>], parts: &mut [Part]) {
    for role in [Role::Api, Role::Engine] {
        let mut unnumbered: Vec<usize> =
            (0..parts.len()).filter(|&at| parts[at].role == role && parts[at].index.is_none()).collect();
        unnumbered.sort_by_key(|&at| (members[at].seen.stat.start_ticks, members[at].seen.stat.pid));
        let taken: BTreeSet<u32> =
            parts.iter().filter(|part| part.role == role).filter_map(|part| part.index).collect();
        let free = (0..).filter(|number| !taken.contains(number));
        for (at, number) in unnumbered.into_iter().zip(free) {
            parts[at].index = Some(number);
        }
    }
    // Parents come first, so one pass hands an engine's number down through whatever is between it and its workers.
    let mut engines: BTreeMap<u32, Option<u32>> = BTreeMap::new();
    for (member, part) in members.iter().zip(parts) {
        let stat = &member.seen.stat;
        let above = engines.get(&stat.parent).copied().flatten();
        if part.role == Role::Worker {
            part.index = part.index.or(above);
        }
        engines.insert(stat.pid, if part.role == Role::Engine { part.index } else { above });
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
