//! Finding inference servers: from any PID to the whole process tree, and from a host to all its servers.
//!
//! Enters: `/proc` (or a directory that looks like it, [`Host::at`]) and, through `/proc/PID/root`, the metadata of the
//! Python packages that a server has mapped. Leaves: [`ServerProcesses`], a snapshot of one server. Invariant: every
//! process of a server gives the same server, and no process is named whose start time was not read with it, so a reused
//! PID is told apart ([`same_process`]). Refused, with a [`Failure`] of its own each: no such process, a thread, a zombie,
//! a kernel thread, one that may not be looked into, one that is no inference server, one that went away meanwhile.
//! Command lines are read for what `argv` takes out of them and go no further; of the environment only
//! `OTEL_SERVICE_NAME` is looked at.

mod argv;
mod bare;
mod container;
pub mod failure;
mod host;
pub mod kind;
pub mod named;
mod package;
pub mod privilege;
mod rank;
mod tree;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::exit::Failure;
use crate::input::{Fact, Role, Server};
use crate::proc::Proc;
use crate::sanitise::printable;

/// One inference server: the process that was started and everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProcesses {
    /// Who is traced. `pid` and `start_ticks` are those of the server's first process, whichever PID was asked for.
    pub server: Arc<Server>,
    /// Parents before children, siblings by PID; the first is the server's first process.
    pub processes: Vec<ServerProcess>,
    /// GPU devices that any of the processes holds open (`nvidia0`), sorted.
    pub gpus: Vec<String>,
    /// It was started with a TLS certificate, so its HTTP is not readable on its sockets.
    pub tls: bool,
}

/// One process of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProcess {
    /// Thread-group id in the pid namespace of the `/proc` that was read.
    pub pid: u32,
    pub parent: u32,
    /// Clock ticks since boot at which it started: with `pid` its identity.
    pub start_ticks: u64,
    /// Its PID in its own, innermost pid namespace, where that is another number.
    pub namespace_pid: Option<u32>,
    pub role: Role,
    /// Which of several: the API server's number, the engine's data-parallel rank, the engine that a worker belongs to.
    pub index: Option<u32>,
    /// What tells a worker from its siblings (`TP0`, `PP0_TP1`); empty elsewhere.
    pub rank: String,
    /// Kernel name of the main thread, sanitised.
    pub comm: String,
    /// TCP sockets it holds, listening and connected.
    pub tcp: Vec<TcpSocket>,
    /// Unix stream sockets it holds.
    pub unix: Vec<UnixSocket>,
    /// The tokenizer library, once for each file that is mapped.
    pub tokenizers: Vec<MappedFile>,
    /// Inode of its network namespace, when it may be read.
    pub network_namespace: Option<u64>,
    /// Add this to its `CLOCK_MONOTONIC`, ns, to get the host's: not 0 only in a time namespace of its own.
    pub clock_offset_ns: i64,
    /// False when `/proc/PID/{fd,maps}` may not be read: the sockets and libraries above are then unknown, not absent.
    pub readable: bool,
}

/// The name of a role in tables and JSON.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Api => "api",
        Role::Engine => "engine",
        Role::Worker => "worker",
        Role::Coordinator => "coordinator",
        Role::Other => "other",
    }
}

/// A TCP socket held by a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSocket {
    pub fd: u32,
    pub inode: u64,
    pub local: SocketAddr,
    /// `None`: it listens.
    pub peer: Option<SocketAddr>,
}

/// A unix stream socket held by a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSocket {
    pub fd: u32,
    pub inode: u64,
    pub listening: bool,
    /// The path, on the side that bound it.
    pub path: Option<PathBuf>,
}

/// A file that a process has mapped executable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MappedFile {
    /// As the process sees it.
    pub path: PathBuf,
    /// Where this process can open the very same file: below `/proc/PID/root`, or `/proc/PID/map_files/…` when it was deleted.
    pub open_path: PathBuf,
    /// Device (`major`, `minor`) and inode: the identity that a uprobe attaches to.
    pub device: (u32, u32),
    pub inode: u64,
    /// Start address of the first executable mapping, and the file offset it maps.
    pub address: u64,
    pub offset: u64,
    pub deleted: bool,
}

impl ServerProcess {
    /// Addresses on which it accepts TCP connections.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter(|socket| socket.peer.is_none()).map(|socket| socket.local).collect()
    }
}

impl ServerProcesses {
    /// Everything found, as the pure side is told it: the server, its engine's clock, its processes, the connections open.
    pub fn facts(&self) -> Vec<Fact> {
        let mut facts = vec![Fact::Server(Arc::clone(&self.server))];
        let engine = self.processes.iter().find(|process| process.role == Role::Engine);
        facts.push(Fact::EngineClock { offset_ns: engine.map(|engine| engine.clock_offset_ns).unwrap_or_default() });
        for process in &self.processes {
            facts.push(Fact::Process { tgid: process.pid, role: process.role });
            facts.push(Fact::Parent { tgid: process.pid, parent: process.parent });
        }
        facts.extend(self.ranks());
        facts
    }

    /// The ranks of workers whose titles say them.
    pub fn ranks(&self) -> impl Iterator<Item = Fact> {
        rank::ranks(&self.processes).into_iter()
    }
}

/// The server that the process `pid` belongs to: its API servers, engines, workers and the rest.
pub fn server(pid: u32) -> Result<ServerProcesses, Failure> {
    Host::this().server(pid)
}

/// Every inference server that this process may see, by PID of its first process.
pub fn servers() -> Vec<ServerProcesses> {
    Host::this().servers()
}

/// Any process, and all below it, as if they were workers: for what they do with GPUs. Any may be looked at.
pub fn process_tree(pid: u32) -> Result<ServerProcesses, Failure> {
    Host::this().process_tree(pid)
}

/// Whether `pid` is still the process that started at `start_ticks`, and is not a zombie.
pub fn same_process(pid: u32, start_ticks: u64) -> bool {
    Host::this().same_process(pid, start_ticks)
}

/// A host, seen through its `/proc`.
#[derive(Debug, Clone)]
pub struct Host {
    proc: Proc,
}

impl Host {
    /// This host.
    pub fn this() -> Self {
        Self { proc: Proc::this() }
    }

    /// Whatever lies in a directory of the shape of `/proc`: another mount of it, or a recorded snapshot.
    pub fn at(proc: impl Into<PathBuf>) -> Self {
        Self { proc: Proc::at(proc) }
    }
}

/// A target's path made safe to print.
pub fn printable_path(path: &std::path::Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}
