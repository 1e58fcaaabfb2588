//! Writes a recording, on a thread of its own.
//!
//! Enters: entries, on the core's thread, which never waits. Leaves: a file. Bounded: so many entries wait; what does not fit is left out,
//! counted, and told where it is missing. What was written is on its way to the disk within a second, so a tracer that is killed loses
//! no more.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::blocks::{self, BLOCK};
use super::{Entry, Header};
use crate::core::{Answer, Parsed};
use crate::decode::http::HttpEvent;
use crate::engine::{EngineMessage, RequestOutput};
use crate::input::{Event, Input, What};
use crate::out_file::{Existing, OutFile, OutFileError, PRIVATE};

/// What waits for the disk at most, bytes: two seconds of 1,000 streams at 200 steps a second.
pub(super) const MAX_WAITING: usize = 64 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How long the end of a run waits for a pipe whose reader has stalled.
const FLUSH: Duration = Duration::from_secs(10);

/// A recording in the making.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    sender: Sender<(Vec<Entry>, usize)>,
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
    /// Says what became of the file.
    done: Receiver<io::Result<()>>,
    /// Of the file, so far, bytes.
    size: Arc<AtomicU64>,
    /// It is a file, and no pipe: what is on its way to it is waited for.
    is_file: bool,
    entries: u64,
    missing: u64,
    /// Missing entries that were not told of yet.
    untold: u64,
}

/// What became of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub path: PathBuf,
    pub entries: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Entries that were left out because the disk did not keep up.
    pub missing: u64,
    /// Why its rest was not written.
    pub failure: Option<String>,
}

impl Recorder {
    /// Makes the file (readable by its owner alone); its header is written first.
    pub fn start(path: &Path, header: &Header) -> Result<Self, OutFileError> {
        let file = OutFile::find(path)?.open(Existing::Dropped, PRIVATE)?;
        let is_file = file.metadata()?.is_file();
        let header = rmp_serde::to_vec_named(header).map_err(io::Error::other)?;
        let (sender, entries) = unbounded();
        let (tell, done) = bounded(1);
        let (waiting, size) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let (written, mut to) = (Arc::clone(&waiting), Counted { file, size: Arc::clone(&size) });
        let thread = std::thread::Builder::new().name("inferspan-record".to_owned()).spawn(move || {
            let begun = blocks::begin(&mut to).and_then(|()| blocks::write(&mut to, &header));
            let result = begun.and_then(|()| write(&mut to, &entries, &written));
            let synced = result.and_then(|()| if is_file { to.file.sync_all() } else { Ok(()) });
            // The run may not have waited that long.
            let _ = tell.send(synced);
        })?;
        let path = path.to_owned();
        Ok(Self { path, sender, waiting, thread, done, size, is_file, entries: 0, missing: 0, untold: 0 })
    }

    /// Takes the entries that came next.
    pub fn push(&mut self, mut entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let count = entries.len() as u64;
        let weight = entries.iter().map(weight).sum();
        if self.waiting.load(Relaxed) + weight > MAX_WAITING || self.has_failed() {
            self.missing += count;
            self.untold += count;
            return;
        }
        if self.untold > 0 {
            entries.insert(0, Entry::Missing { entries: std::mem::take(&mut self.untold) });
        }
        self.entries += count;
        self.waiting.fetch_add(weight, Relaxed);
        // Its receiver lives as long as the thread; one that has ended shows at the end.
        let _ = self.sender.send((entries, weight));
    }

    /// Nothing more can be written.
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Writes what is left and the end. `late`: inputs that came too late to be put in order.
    pub fn finish(mut self, late: u64) -> Recorded {
        let untold = std::mem::take(&mut self.untold);
        let missing = (untold > 0).then_some(Entry::Missing { entries: untold });
        let last = missing.into_iter().chain([Entry::Complete { late }]).collect();
        let _ = self.sender.send((last, 0));
        drop(self.sender);
        let waited = if self.is_file { self.done.recv().map_err(Into::into) } else { self.done.recv_timeout(FLUSH) };
        let written = waited.unwrap_or_else(|error| {
            Err(io::Error::other(match error {
                RecvTimeoutError::Timeout => "takes no more; what was still queued is lost",
                RecvTimeoutError::Disconnected => "its thread has panicked",
            }))
        });
        let failure = written.err().map(|error| format!("recording {}: {error}", self.path.display()));
        let bytes = self.size.load(Relaxed);
        Recorded { path: self.path, entries: self.entries, bytes, missing: self.missing, failure }
    }
}

/// About what an entry takes, bytes.
fn weight(entry: &Entry) -> usize {
    /// An id, a path.
    const TEXT: usize = 64;
    let Entry::Input { input, answers, .. } = entry else { return size_of::<Entry>() };
    let bytes = match input {
        Input::Event(Event { what: What::Data { bytes, .. }, .. }) => bytes.len(),
        _ => 0,
    };
    let events = |events: &[HttpEvent]| events.len() * (size_of::<HttpEvent>() + TEXT);
    let message = |message: &EngineMessage| {
        let of = match message {
            EngineMessage::Outputs(outputs) => outputs.outputs.len() * (size_of::<RequestOutput>() + TEXT),
            EngineMessage::Abort(ids) => ids.len() * TEXT,
            _ => 2 * TEXT,
        };
        size_of::<EngineMessage>() + of
    };
    let parsed = |of: &Parsed| {
        events(&of.http) + events(&of.lost_http) + of.messages.iter().map(message).sum::<usize>() + size_of::<Parsed>()
    };
    let answer = |answer: &Answer| match answer {
        Answer::Parsed(of) => parsed(of),
        Answer::Lost(all) => all.iter().map(|(_, of)| parsed(of)).sum(),
        Answer::Rebound(of) => of.as_deref().map_or(0, events),
        Answer::Relieved => 0,
    };
    size_of::<Entry>() + bytes + answers.iter().map(answer).sum::<usize>() + answers.len() * size_of::<Answer>()
}

/// A file whose size is known while it grows.
struct Counted {
    file: File,
    size: Arc<AtomicU64>,
}

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size.fetch_add(written as u64, Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Until nobody sends any more.
fn write(file: &mut Counted, entries: &Receiver<(Vec<Entry>, usize)>, waiting: &AtomicUsize) -> io::Result<()> {
    let mut block = Vec::with_capacity(BLOCK + BLOCK / 4);
    let mut due = Instant::now() + FLUSH_EVERY;
    loop {
        let is_over = match entries.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok((batch, weight)) => {
                for entry in &batch {
                    rmp_serde::encode::write_named(&mut block, entry).map_err(io::Error::other)?;
                    if block.len() >= BLOCK {
                        blocks::write(file, &block)?;
                        block.clear();
                    }
                }
                waiting.fetch_sub(weight, Relaxed);
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        if is_over || Instant::now() >= due {
            due = Instant::now() + FLUSH_EVERY;
            if !block.is_empty() {
                blocks::write(file, &block)?;
                block.clear();
            }
        }
        if is_over {
            return file.flush();
        }
    }
}
