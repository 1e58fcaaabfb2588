//! Reads back what a run wrote: a recording, a syscall log, or a file of traces.
//!
//! Enters: a file that anybody may have made. Leaves: the requests and steps in it, as they left the core, to a [`Taker`]; and what the file
//! is, and what it lacks. Invariant: a file gives the same every time; what of it is not used is counted. Refused: what is none of the three.

use std::cell::RefCell;
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use flate2::bufread::GzDecoder;

use crate::exit::{Code, Failure};
use crate::output::{AccessRecord, EngineStep, Trace};
use crate::recording::reader::is_recording;
use crate::store::{Limits, Store};

mod json;
mod otlp;
mod played;
mod record;
mod step;
pub mod traces;
mod trees;
mod words;

/// Bytes of a file that are held to tell what it is.
const AHEAD: usize = 1 << 20;
/// What the first line of a file of traces has in its first bytes.
const TRACES: &[u8] = b"\"resourceSpans\"";
/// How far into the file that is looked for, bytes.
const TOLD_WITHIN: usize = 4096;

/// What of a file is kept at most: 512 MiB, whatever its age.
pub const LIMITS: Limits = Limits { bytes: 512 << 20, age_ns: u64::MAX, notable_age_ns: u64::MAX };

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Recording,
    SyscallLog,
    /// OTLP/JSON, an export request a line.
    Traces,
}

impl Kind {
    /// As a user should read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recording => "recording",
            Self::SyscallLog => "syscall log",
            Self::Traces => "trace file",
        }
    }
}

/// Something that the file lacks, or that was not used of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// For programs: a word.
    pub what: &'static str,
    pub count: u64,
    /// As a user should read it; it may hold what the file says.
    pub said: String,
}

/// What a file is, and what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub kind: Kind,
    /// Who wrote it, where it says so: version and commit.
    pub writer: Option<String>,
    /// First start and last end of what was seen in it, unix ns; `None` where nothing was.
    pub span_ns: Option<(u64, u64)>,
    /// Servers in it.
    pub servers: u64,
    /// How well the engine's clock is known, ns, where it is estimated.
    pub uncertainty_ns: Option<u64>,
    pub losses: Vec<Loss>,
}

/// A file that was read.
#[derive(Debug)]
pub struct Recalled {
    pub store: Store,
    pub about: About,
}

/// Takes what is in a file, in its order.
pub trait Taker: Debug {
    /// A request's tree, and its record where there is one.
    fn request(&mut self, trace: &Arc<Trace>, record: Option<&Arc<AccessRecord>>);

    fn step(&mut self, step: &Arc<EngineStep>);
}

impl Taker for Store {
    fn request(&mut self, trace: &Arc<Trace>, record: Option<&Arc<AccessRecord>>) {
        if let Some(record) = record {
            self.record(Arc::clone(record));
        }
        self.trace(Arc::clone(trace));
    }

    fn step(&mut self, step: &Arc<EngineStep>) {
        Self::step(self, Arc::clone(step));
    }
}

/// Reads a file into a store that keeps as much as `limits` let it, [`LIMITS`] mostly.
pub fn open(path: &Path, limits: Limits) -> Result<Recalled, Failure> {
    let (store, mut about) = read(path, Store::new(limits))?;
    let dropped = store.dropped();
    for (what, count) in [("requests", dropped.requests), ("steps", dropped.steps)] {
        if count > 0 {
            let said = format!("{count} {what} of the file did not fit into {} MiB", limits.bytes >> 20);
            about.losses.push(Loss { what: "store", count, said });
        }
    }
    Ok(Recalled { store, about })
}

/// Reads a file, and gives `taker` back when it is read.
pub fn read<T: Taker + 'static>(path: &Path, taker: T) -> Result<(T, About), Failure> {
    let mut file = File::open(path).map_err(|error| unopened(path, &error))?;
    refuse_folder(path, &mut file)?;
    let mut file = BufReader::with_capacity(AHEAD, file);
    let kind = kind_of(&mut file).map_err(|error| unopened(path, &error))?;
    let shared = Rc::new(RefCell::new(Seeing { taker, span_ns: None }));
    let about = match kind {
        Kind::Recording => played::recording(path, file, Rc::clone(&shared))?,
        Kind::SyscallLog => played::syscall_log(path, file, Rc::clone(&shared))?,
        Kind::Traces => traces::traces(path, file, &shared)?,
    };
    let seeing =
        Rc::try_unwrap(shared).map_err(|_| Failure::new(Code::Finding, "the file is still being read", "report it"))?;
    let Seeing { taker, span_ns } = seeing.into_inner();
    Ok((taker, About { span_ns, ..about }))
}

/// A taker, and when what it took was.
#[derive(Debug)]
struct Seeing<T> {
    taker: T,
    span_ns: Option<(u64, u64)>,
}

impl<T: Taker> Seeing<T> {
    fn request(&mut self, trace: &Arc<Trace>, record: Option<&Arc<AccessRecord>>) {
        if let Some(root) = trace.spans.first() {
            self.saw(root.start_ns, root.end_ns);
        }
        self.taker.request(trace, record);
    }

    fn step(&mut self, step: &Arc<EngineStep>) {
        self.saw(step.start_ns, step.end_ns);
        self.taker.step(step);
    }

    fn saw(&mut self, from: u64, to: u64) {
        let (first, last) = self.span_ns.unwrap_or((from, to));
        self.span_ns = Some((first.min(from), last.max(to)));
    }
}

/// What the file is, by its first bytes; they stay to be read.
fn kind_of(file: &mut BufReader<File>) -> io::Result<Kind> {
    if is_recording(file)? {
        return Ok(Kind::Recording);
    }
    let start = file.fill_buf()?;
    let mut unpacked = Vec::new();
    let start = if start.starts_with(&[0x1f, 0x8b]) {
        // What is held may end within a block: what came until then is enough, or the log's reader says what is wrong.
        let _ = GzDecoder::new(start).take(TOLD_WITHIN as u64).read_to_end(&mut unpacked);
        &unpacked[..]
    } else {
        &start[..start.len().min(TOLD_WITHIN)]
    };
    let is_traces = memchr::memmem::find(start, TRACES).is_some();
    Ok(if is_traces { Kind::Traces } else { Kind::SyscallLog })
}

/// A folder opens, and fails when it is read, in words that say less.
fn refuse_folder(path: &Path, file: &mut File) -> Result<(), Failure> {
    match file.metadata() {
        Ok(about) if about.is_dir() => Err(Failure::new(
            Code::Usage,
            format!("{} is a folder", path.display()),
            "give a recording, a syscall log or a trace file",
        )),
        _ => Ok(()),
    }
}

fn unopened(path: &Path, error: &io::Error) -> Failure {
    let (code, fix) = match error.kind() {
        io::ErrorKind::NotFound => (Code::NoTarget, "check the path"),
        io::ErrorKind::PermissionDenied => (Code::Permission, "make the file readable"),
        _ => (Code::Usage, "give a recording, a syscall log or a trace file"),
    };
    Failure::new(code, format!("cannot read {}: {error}", path.display()), fix)
}
