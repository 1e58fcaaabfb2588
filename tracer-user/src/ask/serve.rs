//! A run answers questions, from a thread of its own.
//!
//! Bounded: a question is a line of [`MAX_QUESTION`] bytes, and comes and is answered within [`PATIENCE`] each, one after the other: only
//! root, and who runs this, can ask. What an answer costs is bounded by the store.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::answer::answer;
use super::socket::{Own, Refused, is_friend};
use super::{Answer, Question};
use crate::export::kept::Kept;
use crate::sanitise;

const MAX_QUESTION: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon the end of the run is noticed.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A socket that is being served; ends when dropped.
#[derive(Debug)]
pub struct Server {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers of what `kept` has, on a socket in `folder`.
    pub fn start(folder: &Path, kept: Kept) -> Result<Self, Refused> {
        let own = Own::bind(folder)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let thread = std::thread::Builder::new().name("inferspan-ask".into()).spawn(move || serve(&own, &kept, &until));
        let thread = thread.map_err(|error| Refused::Io { path: folder.to_owned(), error })?;
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // It removes its socket; a panic there was said by itself.
            let _ = thread.join();
        }
    }
}

fn serve(own: &Own, kept: &Kept, is_over: &AtomicBool) {
    while !is_over.load(Relaxed) {
        let mut ready = [PollFd::new(&own.listener, PollFlags::IN)];
        // A signal ends the wait early, which is no matter.
        let is_asked = poll(&mut ready, Some(&LOOK_EVERY)).is_ok_and(|ready| ready > 0);
        if !is_asked {
            continue;
        }
        match own.listener.accept() {
            // Whoever asks and breaks off has no answer.
            Ok((stream, _)) => drop(converse(&stream, kept)),
            // Out of descriptors, or the peer is gone: it is asked again, but not at once.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn converse(stream: &UnixStream, kept: &Kept) -> io::Result<()> {
    // What is accepted of a listener that does not block blocks, with a limit.
    stream.set_nonblocking(false)?;
    let answer = if is_friend(stream.as_fd()) {
        let line = question(stream)?;
        match serde_json::from_slice::<Question>(&line) {
            Ok(question) => answer(kept, &question),
            Err(error) => Answer::refused(format!("the question makes no sense: {error}")),
        }
    } else {
        Answer::refused("it answers root, and the user that runs it")
    };
    let text = serde_json::to_string(&answer)?;
    tell(stream, sanitise::json(&text).as_bytes())
}

/// A line, without its end.
fn question(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let (deadline, mut line) = (Instant::now() + PATIENCE, Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut bytes = [0; 512];
        let count = stream.read(&mut bytes)?;
        line.extend_from_slice(&bytes[..count]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if count == 0 || line.len() > MAX_QUESTION || Instant::now() >= deadline {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn tell(mut stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
