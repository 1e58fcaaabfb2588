//! Writes a recording, on a thread of its own.
//!
//! Enters: entries, on the core's thread, which never waits. Leaves: a file. Bounded: so many entries wait; what does not fit is left out,
//! counted, and told where it is missing. What was written is on its way to the disk within a second, so a tracer that is killed loses
//! no more.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::blocks::{self, BLOCK};
use super::{Entry, Header};
use crate::core::{Answer, Parsed};
use crate::decode::http::HttpEvent;
use crate::engine::{EngineMessage, RequestOutput};
use crate::input::{Event, Input, What};

/// What waits for the disk at most, bytes: two seconds of 1,000 streams at 200 steps a second.
pub(super) const MAX_WAITING: usize = 64 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// A recording in the making.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    sender: Sender<(Vec<Entry>, usize)>,
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<io::Result<u64>>,
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
    /// Makes the file (readable by its owner alone) and writes its header.
    pub fn start(path: &Path, header: &Header) -> io::Result<Self> {
        let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
        blocks::begin(&mut file)?;
        blocks::write(&mut file, &rmp_serde::to_vec_named(header).map_err(io::Error::other)?)?;
        let (sender, entries) = unbounded();
        let waiting = Arc::new(AtomicUsize::new(0));
        let written = Arc::clone(&waiting);
        let thread = std::thread::Builder::new()
            .name("inferspan-record".to_owned())
            .spawn(move || write(file, &entries, &written))?;
        Ok(Self { path: path.to_owned(), sender, waiting, thread, entries: 0, missing: 0, untold: 0 })
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
        let written = self.thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread has panicked")));
        let failure = written.as_ref().err().map(|error| format!("recording {}: {error}", self.path.display()));
        let bytes =
            written.unwrap_or_else(|_| std::fs::metadata(&self.path).map(|data| data.len()).unwrap_or_default());
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

/// Until nobody sends any more; gives the size of the file.
fn write(mut file: File, entries: &Receiver<(Vec<Entry>, usize)>, waiting: &AtomicUsize) -> io::Result<u64> {
    let mut block = Vec::with_capacity(BLOCK + BLOCK / 4);
    let mut due = Instant::now() + FLUSH_EVERY;
    loop {
        let is_over = match entries.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok((batch, weight)) => {
                for entry in &batch {
                    rmp_serde::encode::write_named(&mut block, entry).map_err(io::Error::other)?;
                    if block.len() >= BLOCK {
                        blocks::write(&mut file, &block)?;
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
                blocks::write(&mut file, &block)?;
                block.clear();
            }
        }
        if is_over {
            file.flush()?;
            file.sync_all()?;
            return Ok(file.metadata()?.len());
        }
    }
}
