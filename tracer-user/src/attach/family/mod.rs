//! What is probed, as data: families of functions in libraries, and the kernel's tracepoints.
//!
//! A family says in which files of which processes its functions are, how to find them, and what runs there; the rest of the room
//! attaches any of them alike. A new one is a file here and a line in [`FAMILIES`], its programs in `tracer-ebpf`, and its records in
//! `decode::record`.

pub mod clock;
pub mod driver;
pub mod messages;
pub mod nccl;
pub mod runtime;
pub mod tokenizer;

use std::path::Path;

use tracer_ebpf::wire::cuda::PER_THREAD;

use super::Level;
use super::code::{Code, once_each};
use super::exports::Exports;
use super::prologue::Why;
use crate::input::{Probe, Role};

/// Functions that are probed together.
#[derive(Debug)]
pub struct Family {
    /// For the user: `tokenizer library`.
    pub what: &'static str,
    /// What is missing without it; for the user.
    pub without: &'static str,
    /// Whose events they are.
    pub probe: Probe,
    /// Which mapped files may hold them.
    pub library: Library,
    /// Processes in which they are of interest.
    pub roles: &'static [Role],
    pub scope: Scope,
    /// The least level at which they are probed.
    pub level: Level,
    /// Of interest only where an engine's messages are read.
    pub needs_messages: bool,
    /// Not in a process where this one is.
    pub unless: Option<&'static Self>,
    /// An export by which a library that calls itself otherwise looks like one of the family.
    pub likeness: Option<&'static str>,
    /// Its handles keep the names of kernels.
    pub names_kernels: bool,
    /// Finds them in such a file; empty where they are not in it, or have no names there.
    pub points: Find,
    /// Why none are found, when none are.
    pub hidden: &'static str,
}

impl Family {
    /// Whether a process of this role is of interest. Of a server that shows no messages, any process may be the one that runs the model.
    pub fn is_of_interest_in(&self, role: Role, has_messages: bool) -> bool {
        self.roles.contains(&role) || !(has_messages || self.needs_messages)
    }
}

/// How a library is known.
#[derive(Debug, Clone, Copy)]
pub enum Library {
    /// By its path.
    Path(fn(&Path) -> bool),
    /// By what it calls itself (`DT_SONAME`) and exports: files of any name.
    Soname(fn(&str) -> bool),
}

impl Library {
    /// Whether a file at this path may be one, before it is read.
    pub fn may_be(self, path: &Path) -> bool {
        match self {
            Self::Path(is_library) => is_library(path),
            Self::Soname(_) => true,
        }
    }

    /// What is called so is one, and a user should know why it is not probed.
    pub fn is_by_name(self) -> bool {
        matches!(self, Self::Soname(_))
    }
}

/// Functions of a library that are found by what their symbols look like. The libraries that are known have a dozen; each is a probe or
/// two, and a descriptor.
pub const ALIKE_MAX: usize = 64;

/// How the functions are found in a file.
#[derive(Debug, Clone, Copy)]
pub enum Find {
    Code(fn(&Code<'_>) -> Vec<Point>),
    /// `None`: it only looks like such a library.
    Exports(fn(&Exports) -> Option<Vec<Point>>),
}

/// An exported function of CUDA, what runs there, and as which `CUDA_*` or `NCCL_*` of the wire.
type Row = (&'static str, &'static [Program], u32);

/// The points of those of `rows` that a library exports. A twin of the per-thread default stream says so in its name.
fn exported(exports: &Exports, rows: &[Row]) -> Vec<Point> {
    let points = rows.iter().filter_map(|(symbol, programs, call)| {
        let per_thread = symbol.ends_with("_ptsz") || symbol.ends_with("_ptds");
        exports.point(programs, if per_thread { call | PER_THREAD } else { *call }, symbol)
    });
    once_each(points.collect())
}

const fn entry(name: &'static str) -> [Program; 1] {
    [Program { name, at: At::Quickest }]
}

/// A call of CUDA of which the entry is enough, and one whose return says something.
const CALL: &[Program] = &entry("cuda_call");
const RETURNING: &[Program] =
    &[Program { name: "cuda_entry", at: At::Quickest }, Program { name: "cuda_return", at: At::Return }];

/// Whose calls reach the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every process that maps the file, once attached: only targets do, or the programs filter.
    File,
    /// Each process by itself: too many others call it.
    Process,
}

/// A program of the object, and where at a point it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The instruction near the entry on which a probe costs least.
    Quickest,
    /// The return. Such a probe is placed at the entry itself, where it finds the return address.
    Return,
}

/// A function to probe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Point {
    pub programs: &'static [Program],
    /// A `FUNCTION_*` or `CUDA_*` of the wire.
    pub function: u32,
    /// Offset of its entry in the file.
    pub offset: u64,
    /// How far behind it lies the instruction on which a probe of the entry costs least, bytes.
    pub quickest: u64,
    /// The kernel carries that instruction out itself, as far as is known.
    pub is_emulated: bool,
    /// Why it is that instruction.
    pub why: Why,
    /// The file's bytes from the entry to behind that instruction.
    pub code: Vec<u8>,
    pub symbol: String,
}

/// Every family. An order that two of them need among the events of one thread is that of the calls, not of this list.
pub static FAMILIES: [&Family; 7] = [
    &messages::MESSAGES,
    &clock::CLOCK,
    &tokenizer::TOKENIZER,
    &driver::DRIVER,
    &runtime::LAUNCHES,
    &runtime::CALLS,
    &nccl::COLLECTIVES,
];

/// A function is timed from its entry to its return.
pub const TIMED: &[Program] =
    &[Program { name: "call_entry", at: At::Quickest }, Program { name: "call_return", at: At::Return }];
/// Only the entry is seen.
pub const ENTERED: &[Program] = &[Program { name: "call_only", at: At::Quickest }];

/// A program at one of the kernel's raw tracepoints, for every process: the programs filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracepoint {
    pub program: &'static str,
    pub name: &'static str,
    /// It reads the kernel's structs, and stays out where the kernel has no BTF.
    pub needs_btf: bool,
}

/// In the order in which they are attached: life first, then system calls, so that a child that is born in between is followed.
pub const TRACEPOINTS: [Tracepoint; 4] = [
    Tracepoint { program: "process_fork", name: "sched_process_fork", needs_btf: true },
    Tracepoint { program: "process_exec", name: "sched_process_exec", needs_btf: false },
    Tracepoint { program: "process_exit", name: "sched_process_exit", needs_btf: false },
    Tracepoint { program: "sys_exit", name: "sys_exit", needs_btf: false },
];
