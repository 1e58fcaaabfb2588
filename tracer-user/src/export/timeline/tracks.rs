//! The tracks of a timeline: which there are, what they are called, where they stand.
//!
//! Enters: what is known of processes, and who needs a track. Leaves: its number, and its description once. Bounded: over [`TRACKS`] no
//! further one is made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::mark::{Mark, Pen, Track, TrackId, TrackKind};
use crate::discover::role_name;
use crate::input::{Role, Server};
use crate::model::trace_ids::run_identity;
use crate::sanitise::sanitise;

/// Threads, streams and request lanes of a large host are some thousand.
const TRACKS: usize = 16_384;
/// Longest name, characters.
pub(super) const LONGEST: usize = 200;

/// What lies below a process. `row`s beyond the first hold what overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Below {
    Steps {
        engine: u32,
        row: u32,
    },
    Running {
        engine: u32,
    },
    Waiting {
        engine: u32,
    },
    KvCache {
        engine: u32,
    },
    MemoryLive,
    MemoryPeak,
    Lane {
        lane: u32,
        row: u32,
    },
    Thread {
        process: u32,
        thread: u32,
    },
    /// A row of a thread, for calls that overlap.
    ThreadRow {
        thread: u32,
        row: u32,
    },
    Stream {
        handle: u64,
    },
}

impl Below {
    /// What tells it apart below its process.
    fn key(self) -> (u64, u64, u64) {
        match self {
            Self::Steps { engine, row } => (0, u64::from(engine), u64::from(row)),
            Self::Running { engine } => (1, u64::from(engine), 0),
            Self::Waiting { engine } => (2, u64::from(engine), 0),
            Self::KvCache { engine } => (3, u64::from(engine), 0),
            Self::MemoryLive => (4, 0, 0),
            Self::MemoryPeak => (5, 0, 0),
            Self::Lane { lane, row } => (6, u64::from(lane), u64::from(row)),
            Self::Thread { process, thread } => (7, u64::from(process), u64::from(thread)),
            Self::ThreadRow { thread, row } => (8, u64::from(thread), u64::from(row)),
            Self::Stream { handle } => (9, handle, 0),
        }
    }

    fn name(self) -> String {
        let numbered = |name: String, row: u32| if row == 0 { name } else { format!("{name}, row {}", row + 1) };
        match self {
            Self::Steps { engine, row } => numbered(format!("engine {engine} steps"), row),
            Self::Running { engine } => format!("engine {engine} requests running"),
            Self::Waiting { engine } => format!("engine {engine} requests waiting"),
            Self::KvCache { engine } => format!("engine {engine} KV cache use"),
            Self::MemoryLive => "device memory".to_owned(),
            Self::MemoryPeak => "device memory, peak".to_owned(),
            Self::Lane { lane, row } => numbered(format!("request lane {}", lane + 1), row),
            Self::Thread { thread, .. } => format!("CUDA calls of thread {thread}"),
            Self::ThreadRow { thread, row } => numbered(format!("CUDA calls of thread {thread}"), row),
            Self::Stream { handle } => format!("stream {handle:#x} (launch order, not GPU time)"),
        }
    }

    fn kind(self) -> TrackKind<'static> {
        match self {
            Self::Running { .. } | Self::Waiting { .. } => TrackKind::Counter { unit: "requests" },
            Self::KvCache { .. } => TrackKind::Counter { unit: "of 1" },
            Self::MemoryLive | Self::MemoryPeak => TrackKind::Counter { unit: "bytes" },
            Self::Thread { process, thread } => TrackKind::Thread { process, thread },
            Self::Steps { .. } | Self::Lane { .. } | Self::ThreadRow { .. } | Self::Stream { .. } => TrackKind::Plain,
        }
    }

    fn rank(self) -> i32 {
        let (kind, number, row) = self.key();
        let place = match self {
            Self::Lane { .. } => (number * 64 + row).min(500_000),
            _ => number.min(500_000),
        };
        (kind * 1_000_000 + place) as i32
    }
}

/// What a process is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct About {
    pub role: Option<Role>,
    pub engine: Option<u32>,
    pub rank: Option<u32>,
}

#[derive(Debug, Default)]
struct Process {
    about: About,
    /// It has a track, which says what is known.
    is_told: bool,
}

#[derive(Debug, Default)]
pub(super) struct Tracks {
    known: HashSet<TrackId>,
    processes: HashMap<TrackId, Process>,
    /// The process of each engine of each server.
    engines: HashMap<(u64, u32), u32>,
}

impl Tracks {
    /// More is known of a process; what is `None` is not known.
    pub(super) fn learn(&mut self, server: &Server, process: u32, about: About) {
        let id = process_id(server, process);
        // A host has fewer processes than there may be tracks.
        if self.processes.len() >= TRACKS && !self.processes.contains_key(&id) {
            return;
        }
        let known = self.processes.entry(id).or_default();
        let About { role, engine, rank } = known.about;
        let more = About { role: about.role.or(role), engine: about.engine.or(engine), rank: about.rank.or(rank) };
        if more != known.about {
            *known = Process { about: more, is_told: false };
        }
        if let (Some(engine), Some(Role::Engine)) = (about.engine, about.role) {
            self.engines.entry((run_identity(server), engine)).or_insert(process);
        }
    }

    /// The process that an engine's steps are drawn at: its own, else the server's.
    pub(super) fn home_of(&mut self, server: &Server, engine: u32) -> u32 {
        // Where the first step was drawn, the others are.
        *self.engines.entry((run_identity(server), engine)).or_insert(server.pid)
    }

    /// The group of a process.
    pub(super) fn process(&mut self, server: &Arc<Server>, process: u32, pen: &mut Pen<'_>) -> Option<TrackId> {
        let id = process_id(server, process);
        let is_told = self.processes.get(&id).is_some_and(|known| known.is_told);
        if is_told {
            return Some(id);
        }
        self.make_room(id)?;
        let known = self.processes.entry(id).or_default();
        known.is_told = true;
        let name = name_of(server, process, known.about);
        let kind = TrackKind::Process(Some(process).filter(|&process| process != 0));
        pen.mark(&Mark::Track(Track { id, parent: None, name: &name, kind, rank: 0 }));
        Some(id)
    }

    /// The track of something below a group, or below another track.
    pub(super) fn below(&mut self, parent: TrackId, what: Below, pen: &mut Pen<'_>) -> Option<TrackId> {
        let (kind, number, row) = what.key();
        let id = hash(&[parent, kind, number, row]);
        if !self.known.contains(&id) {
            self.make_room(id)?;
            let (name, kind, rank) = (what.name(), what.kind(), what.rank());
            pen.mark(&Mark::Track(Track { id, parent: Some(parent), name: &name, kind, rank }));
        }
        Some(id)
    }

    fn make_room(&mut self, id: TrackId) -> Option<()> {
        if self.known.len() >= TRACKS && !self.known.contains(&id) {
            return None;
        }
        self.known.insert(id);
        Some(())
    }
}

fn name_of(server: &Server, process: u32, about: About) -> String {
    let mut name = sanitise(&server.instance(), LONGEST).into_owned();
    match about.role {
        Some(role) => name = format!("{name} {}", role_name(role)),
        None if process != server.pid => name.push_str(" process"),
        None => {}
    }
    if let Some(engine) = about.engine {
        name = format!("{name} {engine}");
    }
    if let Some(rank) = about.rank {
        name = format!("{name} rank {rank}");
    }
    name
}

fn process_id(server: &Server, process: u32) -> TrackId {
    hash(&[run_identity(server), u64::from(process)])
}

/// A stable number. For tracks 49 bits of it, which a file takes seven bytes for: of 16,384 tracks two are the same once in four million.
fn hash(parts: &[u64]) -> u64 {
    (arrow(parts) >> 15).max(1)
}

/// The number of an arrow: a stable hash of what it joins.
pub(super) fn arrow(parts: &[u64]) -> u64 {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(&part.to_le_bytes());
    }
    hash.digest().max(1)
}
