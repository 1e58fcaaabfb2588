//! Loads the object and attaches its programs.
//!
//! Enters: the BPF object (built in, or a file), sizes and caps. Leaves: [`Probes`], which owns programs and links (dropping
//! it detaches everything), and [`Rings`], which the reader thread owns. Every program and map is taken by name once, here;
//! an object that lacks one is refused with the name.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope};
use aya::programs::{ProgramError, RawTracePoint, UProbe};
use aya::{Ebpf, EbpfError, EbpfLoader};
use tracer_ebpf::wire::call::cookie;
use tracer_ebpf::wire::net::{
    CAPS, CLASS_ENGINE, CLASS_HTTP, CLASS_TCP, CLASS_UNIX, CLASS_UNKNOWN, HEAD_MAX, cap_index,
};
use tracer_ebpf::wire::target::DESCRIPTORS_MAX;

use super::btf;
use super::plan::Point;
use super::table::Table;

/// The object that is built into the binary.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-ebpf/object/inferspan.bpf.o"));

/// Names the built-in object: the first 8 hexadecimal digits of its XXH3 hash.
pub fn object_id() -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(OBJECT))[..8].to_owned()
}

/// Most bytes of one call that are captured: its first `head`, at most [`HEAD_MAX`], and its last `tail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    pub head: u32,
    pub tail: u32,
}

/// Capture caps by kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// TCP, and what speaks HTTP: a request, with its head and its parameters before and behind the prompt.
    pub http_in: Cap,
    /// A response: head, an SSE chunk, the usage at the end of a body.
    pub http_out: Cap,
    /// Unix sockets, and what carries an engine's messages: whole. They grow with the number of running requests.
    pub engine: Cap,
    /// Until somebody has said what the descriptor is.
    pub unknown: Cap,
}

impl Default for Caps {
    fn default() -> Self {
        let cap = |head, tail| Cap { head, tail };
        Self {
            http_in: cap(64 * 1024, 16 * 1024),
            http_out: cap(4 * 1024, 4 * 1024),
            engine: cap(HEAD_MAX, 16 * 1024),
            unknown: cap(256, 0),
        }
    }
}

/// How to load.
#[derive(Debug, Clone)]
pub struct Options {
    pub caps: Caps,
    /// Size of the ring of request edges, bytes; a power-of-two number of pages.
    pub edge_ring_bytes: u32,
    /// Size of the ring of payloads, bytes; a power-of-two number of pages.
    pub data_ring_bytes: u32,
    /// Descriptors that can be followed at a time, in all traced processes.
    pub descriptors: u32,
    /// Another object than the built-in one.
    pub object: Option<PathBuf>,
    /// Print the object's aya-log records to stderr.
    pub debug_log: bool,
}

impl Default for Options {
    fn default() -> Self {
        // 8 MiB hold 0.5 s of a server that moves 16 MiB/s through its sockets; the reader drains every 10 ms.
        Self {
            caps: Caps::default(),
            edge_ring_bytes: 1 << 20,
            data_ring_bytes: 1 << 23,
            descriptors: DESCRIPTORS_MAX,
            object: None,
            debug_log: false,
        }
    }
}

/// Why the programs are not attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the BPF object {path} cannot be read: {error}")]
    Object { path: PathBuf, error: io::Error },
    #[error("the BPF object has no {what} named `{name}`")]
    Missing { what: &'static str, name: &'static str },
    #[error("the BPF object writes no log: {0}")]
    NoLog(String),
    #[error("the kernel refuses {what}: operation not permitted")]
    Permission { what: String },
    #[error("the kernel's verifier refuses program `{program}`: {error}\n{log}")]
    Verifier { program: &'static str, error: io::Error, log: String },
    #[error("cannot attach `{program}` to {point}: {error}")]
    Attach { program: &'static str, point: String, error: String },
    #[error("inferspan traces on x86-64 only for now: the programs read that machine's registers")]
    Architecture,
    #[error("inferspan runs in a pid namespace of its own, and the kernel reports the host's process ids")]
    PidNamespace,
    #[error("the BPF object cannot be loaded: {0}")]
    Other(String),
}

/// What the reader thread needs.
pub struct Rings {
    pub edges: RingBuf<MapData>,
    pub data: RingBuf<MapData>,
    /// Index 0: edges, 1: data, 2: descriptors.
    pub drops: PerCpuArray<MapData, u64>,
    pub table: Table,
}

/// Loaded and attached programs.
pub struct Probes {
    ebpf: Ebpf,
    /// The kernel empties it when nobody holds it any more.
    tail_calls: ProgramArray<MapData>,
    /// Why children that start later are not followed, when they are not.
    pub not_following: Option<String>,
    /// Programs of uprobes that are loaded.
    loaded: BTreeSet<&'static str>,
    attached: usize,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes").field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl Probes {
    /// Loads the object and all maps; nothing is attached yet.
    pub fn load(options: &Options) -> Result<(Self, Rings), LoadError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(LoadError::Architecture);
        }
        raise_memlock();
        let offsets = btf::running_kernel();
        let caps = cap_table(options.caps);
        let cpus = possible_cpus()?;
        let (edges_wake, data_wake) = (u64::from(options.edge_ring_bytes / 4), u64::from(options.data_ring_bytes / 4));
        let mut loader = EbpfLoader::new();
        loader
            .override_global("CAPS", &caps, true)
            .override_global("EDGES_WAKE_BYTES", &edges_wake, true)
            .override_global("DATA_WAKE_BYTES", &data_wake, true)
            .map_max_entries("EDGES", options.edge_ring_bytes)
            .map_max_entries("DATA", options.data_ring_bytes)
            .map_max_entries("DESCRIPTORS", options.descriptors)
            .map_max_entries("SCRATCH", cpus);
        if let Some(offsets) = &offsets {
            loader.override_global("OFFSETS", offsets, true);
        }
        let mut ebpf = match &options.object {
            None => loader.load(OBJECT),
            Some(path) => {
                let bytes = std::fs::read(path).map_err(|error| LoadError::Object { path: path.clone(), error })?;
                loader.load(&bytes)
            }
        }
        .map_err(|error| load_error(&error))?;
        let rings = Rings {
            edges: take(&mut ebpf, "EDGES")?,
            data: take(&mut ebpf, "DATA")?,
            drops: take(&mut ebpf, "DROPS")?,
            table: Table::new(take(&mut ebpf, "TARGETS")?, take(&mut ebpf, "DESCRIPTORS")?, take(&mut ebpf, "TOLD")?),
        };
        let tail_calls = take(&mut ebpf, "CONTINUE")?;
        let not_following =
            offsets.is_none().then(|| "this kernel has no readable BTF (/sys/kernel/btf/vmlinux)".to_owned());
        Ok((Self { ebpf, tail_calls, not_following, loaded: BTreeSet::new(), attached: 0 }, rings))
    }

    /// Attaches life first, then system calls: a child that is born in between is followed.
    pub fn attach(&mut self) -> Result<(), LoadError> {
        if self.not_following.is_none() {
            self.attach_raw("process_fork", "sched_process_fork")?;
        }
        self.attach_raw("process_exec", "sched_process_exec")?;
        self.attach_raw("process_exit", "sched_process_exit")?;
        let walk: &mut RawTracePoint = program(&mut self.ebpf, "walk")?;
        walk.load().map_err(|error| program_error("walk", &error))?;
        let descriptor = walk.fd().map_err(|error| program_error("walk", &error))?;
        self.tail_calls
            .set(0, descriptor, 0)
            .map_err(|error| LoadError::Other(format!("the program `walk` cannot be called: {error}")))?;
        self.attach_raw("sys_exit", "sys_exit")
    }

    /// Attaches entry and return probes at `points` of the library at `path`, for every process: the programs filter.
    pub fn attach_library(&mut self, path: &Path, points: &[Point]) -> Result<(), LoadError> {
        self.attach_points("call_entry", path, points, UProbeScope::AllProcesses)?;
        self.attach_points("call_return", path, points, UProbeScope::AllProcesses)?;
        Ok(())
    }

    /// Attaches probes of the entry alone at `points` of the library at `path`, in one process.
    pub fn attach_entries(
        &mut self,
        path: &Path,
        points: &[Point],
        process: u32,
    ) -> Result<Vec<UProbeLinkId>, LoadError> {
        let Some(process) = NonZeroU32::new(process) else { return Ok(Vec::new()) };
        self.attach_points("call_only", path, points, UProbeScope::OneProcess(process))
    }

    /// Takes such probes back; the process is gone, so one that cannot be is no loss.
    pub fn detach_entries(&mut self, links: Vec<UProbeLinkId>) {
        let Ok(program) = program::<UProbe>(&mut self.ebpf, "call_only") else { return };
        for link in links {
            self.attached -= usize::from(program.detach(link).is_ok());
        }
    }

    fn attach_points(
        &mut self,
        name: &'static str,
        path: &Path,
        points: &[Point],
        scope: UProbeScope,
    ) -> Result<Vec<UProbeLinkId>, LoadError> {
        let program: &mut UProbe = program(&mut self.ebpf, name)?;
        if self.loaded.insert(name) {
            program.load().map_err(|error| program_error(name, &error))?;
        }
        let mut links = Vec::with_capacity(points.len());
        for (index, point) in points.iter().enumerate() {
            let at = UProbeAttachPoint {
                // A return probe finds the return address where the entry has it.
                location: UProbeAttachLocation::AbsoluteOffset(match name {
                    "call_return" => point.offset,
                    _ => point.offset + point.quickest,
                }),
                cookie: Some(cookie(index as u32, point.function)),
            };
            let link = program
                .attach(at, path, scope)
                .map_err(|error| attach_error(name, format!("{}+{:#x}", path.display(), point.offset), &error))?;
            links.push(link);
            self.attached += 1;
        }
        Ok(links)
    }

    /// Probes attached so far.
    pub fn attached(&self) -> usize {
        self.attached
    }

    /// The loaded object, for aya-log.
    pub(super) fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn attach_raw(&mut self, name: &'static str, tracepoint: &str) -> Result<(), LoadError> {
        let program: &mut RawTracePoint = program(&mut self.ebpf, name)?;
        program.load().map_err(|error| program_error(name, &error))?;
        program
            .attach(tracepoint)
            .map_err(|error| attach_error(name, format!("raw tracepoint {tracepoint}"), &error))?;
        self.attached += 1;
        Ok(())
    }
}

fn cap_table(caps: Caps) -> [u32; CAPS] {
    let mut table = [0; CAPS];
    for (class, into, out) in [
        (CLASS_UNKNOWN, caps.unknown, caps.unknown),
        (CLASS_TCP, caps.http_in, caps.http_out),
        (CLASS_HTTP, caps.http_in, caps.http_out),
        (CLASS_UNIX, caps.engine, caps.engine),
        (CLASS_ENGINE, caps.engine, caps.engine),
    ] {
        for (out, cap) in [(false, into), (true, out)] {
            table[cap_index(class, out, false)] = cap.head.min(HEAD_MAX);
            table[cap_index(class, out, true)] = cap.tail.min(HEAD_MAX);
        }
    }
    table
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or(LoadError::Missing { what: "map", name })?;
    T::try_from(map).map_err(|error| LoadError::Other(format!("map `{name}`: {error}")))
}

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, LoadError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing { what: "program", name })?;
    program.try_into().map_err(|error: ProgramError| LoadError::Other(format!("program `{name}`: {error}")))
}

/// The operating system's error at the bottom of an error's chain.
fn root_errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(errno) = io.raw_os_error()
        {
            return Some(errno);
        }
        next = error.source();
    }
    None
}

/// An error with all its sources, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text.push_str(": ");
            text.push_str(&source_text);
        }
        next = source.source();
    }
    text
}

fn load_error(error: &EbpfError) -> LoadError {
    match root_errno(error) {
        Some(libc::EPERM | libc::EACCES) => LoadError::Permission { what: "creating BPF maps".to_owned() },
        _ => LoadError::Other(chain(error)),
    }
}

fn program_error(program: &'static str, error: &ProgramError) -> LoadError {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        // The verifier's own refusal is EACCES too; only a refusal that it did not explain is about privileges.
        if log.trim().is_empty() && matches!(io_error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
            return LoadError::Permission { what: format!("loading the BPF program `{program}`") };
        }
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let log = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        let error = io_error
            .raw_os_error()
            .map_or_else(|| io::Error::other(io_error.to_string()), io::Error::from_raw_os_error);
        return LoadError::Verifier { program, error, log };
    }
    attach_error(program, "the kernel".to_owned(), error)
}

fn attach_error(program: &'static str, point: String, error: &ProgramError) -> LoadError {
    match root_errno(error) {
        Some(libc::EPERM | libc::EACCES) => LoadError::Permission { what: format!("attaching `{program}` to {point}") },
        _ => LoadError::Attach { program, point, error: chain(error) },
    }
}

/// Kernels before 5.11 charge maps to `RLIMIT_MEMLOCK`; later ones do not look at it, so a failure is none of our business
/// until a map is refused.
fn raise_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` lives across the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

fn possible_cpus() -> Result<u32, LoadError> {
    aya::util::nr_cpus().map(|count| count as u32).map_err(|(path, error)| LoadError::Other(format!("{path}: {error}")))
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

    use super::*;

    #[test]
    fn the_object_calls_no_function_to_copy_or_clear() {
        // Linux 6.1 refused a loop with such a call in it: see `table::fresh` in tracer-ebpf.
        let object = object::File::parse(OBJECT).expect("the object is an ELF file");
        let programs = object.sections().filter(|section| section.name().is_ok_and(|name| name != ".text"));
        let called: Vec<String> = programs
            .flat_map(|section| section.relocations().collect::<Vec<_>>())
            .filter_map(|(_, relocation)| match relocation.target() {
                RelocationTarget::Symbol(symbol) => object.symbol_by_index(symbol).ok()?.name().ok().map(str::to_owned),
                _ => None,
            })
            .filter(|name| ["memset", "memcpy", "memmove"].contains(&name.as_str()))
            .collect();
        assert_eq!(called, [""; 0]);
    }
}
