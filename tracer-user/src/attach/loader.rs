//! Loads the object and attaches its programs.
//!
//! Enters: the BPF object (built in, or a file), sizes and caps. Leaves: [`Probes`], which owns programs and links (dropping
//! it detaches everything), and [`Rings`], which the reader thread owns. Every program and map is taken by name once, here;
//! an object that lacks one is refused with the name.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope};
use aya::programs::{ProgramError, RawTracePoint, UProbe};
use aya::{Ebpf, EbpfLoader};
use tracer_ebpf::wire::call::cookie;
use tracer_ebpf::wire::cuda::{LEVEL_KERNELS, LEVEL_STEPS, NAME_AT};
use tracer_ebpf::wire::net::{
    CAPS, CLASS_ENGINE, CLASS_HTTP, CLASS_TCP, CLASS_UNIX, CLASS_UNKNOWN, HEAD_MAX, UNKNOWN_CAP, cap_index,
};
use tracer_ebpf::wire::ring::WAKE_PART;
use tracer_ebpf::wire::target::DESCRIPTORS_MAX;

use super::Level;
use super::btf;
use super::counters::Counters;
use super::error::{LoadError, attach_error, event_error, io_error, load_error, program_error};
use super::family::{At, Point, Program, TIMED, TRACEPOINTS, Tracepoint};
use super::links::{Leaving, Link, take_back};
use super::memory::Memory;
use super::rings::RINGS;
use super::table::Table;
use super::uprobes::{Multi, Places};
use crate::discover::printable_path;

/// The object that is built into the binary.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-ebpf/object/inferspan.bpf.o"));

/// As `TARGETS` of tracer-ebpf has it: every process of a large node's servers, many times.
const TARGETS_MAX: u32 = 4096;

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
            unknown: cap(UNKNOWN_CAP, 0),
        }
    }
}

/// How to load.
#[derive(Debug, Clone)]
pub struct Options {
    pub caps: Caps,
    /// Sizes of the rings, bytes, by their indices; power-of-two numbers of pages.
    pub ring_bytes: [u32; RINGS.len()],
    /// Descriptors that can be followed at a time, in all traced processes.
    pub descriptors: u32,
    /// Processes that can be traced at a time.
    pub targets: u32,
    /// Another object than the built-in one.
    pub object: Option<PathBuf>,
    /// Print the object's aya-log records to stderr.
    pub debug_log: bool,
    /// Attach each uprobe by a perf event of its own, also where the kernel has links of many.
    pub uprobe_events: bool,
    /// How much is observed.
    pub level: Level,
    /// At the level of kernels, one launch of so many of a thread has a record.
    pub launch_sample: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            caps: Caps::default(),
            ring_bytes: RINGS.map(|ring| ring.bytes),
            descriptors: DESCRIPTORS_MAX,
            targets: TARGETS_MAX,
            object: None,
            debug_log: false,
            uprobe_events: false,
            level: Level::Requests,
            launch_sample: 1,
        }
    }
}

/// What the reader thread needs.
pub struct Rings {
    /// By their indices.
    pub rings: Vec<RingBuf<MapData>>,
    /// What found no room, by the indices of `wire::ring`.
    pub drops: PerCpuArray<MapData, u64>,
    pub table: Table,
    pub counters: Counters,
}

/// Loaded and attached programs.
pub struct Probes {
    ebpf: Ebpf,
    /// The kernel empties it when nobody holds it any more.
    tail_calls: ProgramArray<MapData>,
    names_at: HashMap<MapData, u32, u32>,
    /// Why children that start later are not followed, when they are not.
    pub not_following: Option<String>,
    /// Where the kernel has links of many uprobes.
    multi: Option<Multi>,
    /// Programs of uprobes that are loaded by aya.
    loaded: BTreeSet<&'static str>,
    attached: usize,
    leaving: Leaving,
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
        let wake = options.ring_bytes.map(|bytes| u64::from(bytes / WAKE_PART));
        let level = if options.level == Level::Kernels { LEVEL_KERNELS } else { LEVEL_STEPS };
        let sample = options.launch_sample.max(1);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("CAPS", &caps, true)
            .override_global("WAKE_BYTES", &wake, true)
            .override_global("LEVEL", &level, true)
            .override_global("SAMPLE", &sample, true)
            .map_max_entries("DESCRIPTORS", options.descriptors)
            .map_max_entries("TARGETS", options.targets)
            .map_max_entries("SCRATCH", cpus);
        if options.level == Level::Requests {
            // Nothing of CUDA is probed, and its table of memory takes 11 MiB.
            loader.map_max_entries("BLOCKS", 1);
        }
        for (ring, bytes) in RINGS.iter().zip(options.ring_bytes) {
            loader.map_max_entries(ring.map, bytes);
        }
        if let Some(offsets) = &offsets {
            loader.override_global("OFFSETS", offsets, true);
        }
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| LoadError::Object { path: path.clone(), error }).map(Cow::Owned)
        };
        let object = options.object.as_ref().map_or(Ok(Cow::Borrowed(OBJECT)), read)?;
        let mut ebpf = loader.load(&object).map_err(|error| load_error(&error))?;
        let multi = if options.uprobe_events { None } else { Multi::prepare(&object, &ebpf) };
        let rings = Rings {
            rings: RINGS.iter().map(|ring| take(&mut ebpf, ring.map)).collect::<Result<_, _>>()?,
            drops: take(&mut ebpf, "DROPS")?,
            table: Table::new(take(&mut ebpf, "TARGETS")?, take(&mut ebpf, "DESCRIPTORS")?, take(&mut ebpf, "TOLD")?),
            counters: Counters::new(
                (take(&mut ebpf, "THREADS")?, take(&mut ebpf, "FUNCTIONS")?),
                Memory::new(
                    (take(&mut ebpf, "PROCESSES")?, take(&mut ebpf, "PEAKS")?),
                    (take(&mut ebpf, "BLOCKS")?, take(&mut ebpf, "OPEN")?),
                ),
            ),
        };
        let tail_calls = take(&mut ebpf, "CONTINUE")?;
        let names_at = take(&mut ebpf, "NAMES_AT")?;
        let not_following =
            offsets.is_none().then(|| "this kernel has no readable BTF (/sys/kernel/btf/vmlinux)".to_owned());
        let probes = Self {
            ebpf,
            tail_calls,
            names_at,
            not_following,
            multi,
            loaded: BTreeSet::new(),
            attached: 0,
            leaving: Leaving::default(),
        };
        Ok((probes, rings))
    }

    /// Attaches the programs of the kernel's tracepoints.
    pub fn attach(&mut self) -> Result<(), LoadError> {
        let walk: &mut RawTracePoint = program(&mut self.ebpf, "walk")?;
        walk.load().map_err(|error| program_error("walk", &error))?;
        let descriptor = walk.fd().map_err(|error| program_error("walk", &error))?;
        self.tail_calls
            .set(0, descriptor, 0)
            .map_err(|error| LoadError::Other(format!("the program `walk` cannot be called: {error}")))?;
        for tracepoint in TRACEPOINTS {
            if !tracepoint.needs_btf || self.not_following.is_none() {
                self.attach_raw(tracepoint)?;
            }
        }
        Ok(())
    }

    /// Attaches the programs of `points` of the library at `path`, in one process or in all: the programs filter. All of them or none:
    /// those that were attached before one that is refused go again, and nobody waits for that.
    pub fn attach_points(
        &mut self,
        path: &Path,
        points: &[Point],
        process: Option<u32>,
    ) -> Result<Vec<Link>, LoadError> {
        let mut places: BTreeMap<&'static str, Places> = BTreeMap::new();
        for (index, point) in (0..).zip(points) {
            for Program { name, at } in point.programs {
                let of = places.entry(name).or_default();
                of.offsets.push(offset(point, *at));
                of.cookies.push(cookie(index, point.function));
                of.at_return = *at == At::Return;
            }
        }
        let mut links = Vec::with_capacity(places.len());
        for (name, places) in places {
            if let Err(error) = self.attach_program(name, path, &places, process, &mut links) {
                let probes = links.iter().map(Link::probes).sum();
                self.detach_later(links);
                return Err(if probes == 0 { error } else { LoadError::Undone { probes, error: Box::new(error) } });
            }
        }
        Ok(links)
    }

    fn attach_program(
        &mut self,
        name: &'static str,
        path: &Path,
        places: &Places,
        process: Option<u32>,
        links: &mut Vec<Link>,
    ) -> Result<(), LoadError> {
        if let Some(multi) = &mut self.multi
            && multi.takes(name)
        {
            let count = places.offsets.len();
            let link = multi.attach(name, path, places, process);
            let point = || format!("{count} places in {}", printable_path(path));
            links.push(Link::Multi(link.map_err(|error| io_error(name, point(), &error))?, count));
            self.attached += count;
            return Ok(());
        }
        let program: &mut UProbe = program(&mut self.ebpf, name)?;
        if !self.loaded.contains(name) {
            program.load().map_err(|error| program_error(name, &error))?;
            self.loaded.insert(name);
        }
        let scope = process.and_then(NonZeroU32::new).map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
        for (&offset, &cookie) in places.offsets.iter().zip(&places.cookies) {
            let place =
                UProbeAttachPoint { location: UProbeAttachLocation::AbsoluteOffset(offset), cookie: Some(cookie) };
            let id = program
                .attach(place, path, scope)
                .map_err(|error| event_error(name, format!("{}+{offset:#x}", printable_path(path)), &error))?;
            self.attached += 1;
            links.push(Link::Event(program.take_link(id).map_err(|error| program_error(name, &error))?));
        }
        Ok(())
    }

    /// Says how far behind a handle of the process the address of its name is. Best effort: without it names are read wrong, or not at all,
    /// and calls are counted all the same.
    pub fn set_names_at(&mut self, process: u32, offset: u32) {
        let _ =
            if offset == NAME_AT { self.names_at.remove(&process) } else { self.names_at.insert(process, offset, 0) };
    }

    /// Takes probes back.
    pub fn detach(&mut self, links: Vec<Link>) {
        self.attached = self.attached.saturating_sub(links.iter().map(Link::probes).sum());
        take_back(links);
    }

    /// Takes probes back while nobody waits for it: those of a process that is gone, or of a library that is not probed after all.
    pub fn detach_later(&mut self, links: Vec<Link>) {
        if links.is_empty() {
            return;
        }
        self.attached = self.attached.saturating_sub(links.iter().map(Link::probes).sum());
        self.leaving.add(links);
    }

    /// Whether the kernel still takes probes back that it takes its time for.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_slow()
    }

    /// Whether each uprobe is a perf event: asked to be, or the kernel has no links of many.
    pub fn uses_events(&mut self) -> bool {
        let any = TIMED.first().map_or("", |program| program.name);
        !self.multi.as_mut().is_some_and(|multi| multi.takes(any))
    }

    /// Probes attached so far.
    pub fn attached(&self) -> usize {
        self.attached
    }

    /// The loaded object, for aya-log.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn attach_raw(&mut self, Tracepoint { program: name, name: tracepoint, .. }: Tracepoint) -> Result<(), LoadError> {
        let program: &mut RawTracePoint = program(&mut self.ebpf, name)?;
        program.load().map_err(|error| program_error(name, &error))?;
        program
            .attach(tracepoint)
            .map_err(|error| attach_error(name, format!("raw tracepoint {tracepoint}"), &error))?;
        self.attached += 1;
        Ok(())
    }
}

/// Where in the file a program of the point is attached.
fn offset(point: &Point, at: At) -> u64 {
    match at {
        At::Quickest => point.offset + point.quickest,
        At::Return => point.offset,
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
