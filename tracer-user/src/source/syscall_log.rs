//! Syscall logs: the data syscalls of a server, one JSON object a line, plain or gzip.
//!
//! Enters: `{"t0","t1","tid","sc","fd","sock","n","hex"}` lines (unix seconds at entry and exit; `n` the result; `hex` the
//! bytes moved, maybe cut); other objects (the note on the first line) are passed over. Leaves: events on the log's wall clock.
//! A connection end is its `sock` text, since fd numbers of several processes mix. Refused: lines that do not parse are counted,
//! not guessed; lines over [`MAX_LINE`].

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::input::{Direction, End, Event, EventNanos, What};

/// Errors that say that the peer is gone.
const ECONNRESET: i64 = 104;
const EPIPE: i64 = 32;

/// Longest line, bytes: 4 MiB of a call. The longest of real servers are below 1 MiB.
const MAX_LINE: u64 = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{path}: {error}")]
    Open { path: PathBuf, error: io::Error },
    #[error("{path}: line {line}: {error}")]
    Read { path: PathBuf, line: u64, error: io::Error },
    #[error("{path}: line {line} is longer than {MAX_LINE} bytes")]
    LongLine { path: PathBuf, line: u64 },
}

/// A log being read.
pub struct SyscallLog {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    line: Vec<u8>,
    lines: u64,
    bad_lines: u64,
}

#[derive(Deserialize)]
struct Call<'a> {
    t0: f64,
    t1: Option<f64>,
    #[serde(default)]
    tid: u32,
    #[serde(borrow)]
    sc: Cow<'a, str>,
    #[serde(default)]
    fd: i64,
    #[serde(borrow, default)]
    sock: Option<Cow<'a, str>>,
    #[serde(default)]
    n: i64,
    /// As bytes: the decoder of hex refuses what is no hex by itself, so it need not be checked as text first.
    #[serde(borrow, default)]
    hex: Cow<'a, [u8]>,
}

/// An object that is no call. Its values are passed over, not kept: they may be made to take a hundred times their text.
#[derive(Deserialize)]
struct Note {
    sc: Option<serde::de::IgnoredAny>,
}

/// What a line was.
enum Line {
    Event(Event),
    /// A note, a call that carries no data, a failed call.
    Other,
    Bad,
}

impl SyscallLog {
    /// Opens a log; gzip is told by its first bytes.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let failed = |error| LogError::Open { path: path.to_owned(), error };
        Self::read(path, BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?))
    }

    /// Reads a log that was opened from `path`.
    pub fn read(path: &Path, mut file: BufReader<File>) -> Result<Self, LogError> {
        let failed = |error| LogError::Open { path: path.to_owned(), error };
        let gzip = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn BufRead + Send> =
            if gzip { Box::new(BufReader::with_capacity(1 << 20, MultiGzDecoder::new(file))) } else { Box::new(file) };
        Ok(Self { path: path.to_owned(), reader, line: Vec::new(), lines: 0, bad_lines: 0 })
    }

    /// Lines that did not parse, so far.
    pub fn bad_lines(&self) -> u64 {
        self.bad_lines
    }

    /// Lines read, so far.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The next event; `None` at the end.
    pub fn next_event(&mut self) -> Result<Option<Event>, LogError> {
        loop {
            self.line.clear();
            let mut limited = self.reader.by_ref().take(MAX_LINE);
            let read = limited.read_until(b'\n', &mut self.line).map_err(|error| LogError::Read {
                path: self.path.clone(),
                line: self.lines + 1,
                error,
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.lines += 1;
            if read as u64 == MAX_LINE {
                return Err(LogError::LongLine { path: self.path.clone(), line: self.lines });
            }
            match parse(self.line.trim_ascii()) {
                Line::Event(event) => return Ok(Some(event)),
                Line::Other => {}
                Line::Bad => self.bad_lines += 1,
            }
        }
    }
}

fn parse(line: &[u8]) -> Line {
    if line.is_empty() {
        return Line::Other;
    }
    let Ok(call) = serde_json::from_slice::<Call<'_>>(line) else {
        // An object that is no call (the note) is fine; anything else is not.
        let is_note =
            line.starts_with(b"{") && serde_json::from_slice::<Note>(line).is_ok_and(|note| note.sc.is_none());
        return if is_note { Line::Other } else { Line::Bad };
    };
    let (Some(entered), Some(returned)) = (nanos(call.t0), nanos(call.t1.unwrap_or(call.t0))) else { return Line::Bad };
    let end = end_of(call.sock.as_deref(), call.fd);
    let direction = match &*call.sc {
        "read" | "readv" | "recv" | "recvfrom" | "recvmsg" => Direction::In,
        "write" | "writev" | "send" | "sendto" | "sendmsg" => Direction::Out,
        "close" if call.n >= 0 => return event(entered, call.tid, What::Closed { end, moved: None }),
        "accept" | "accept4" if call.n >= 0 => return event(returned, call.tid, What::Opened { end }),
        _ => return Line::Other,
    };
    // A negative result is the error, as the kernel has it.
    if matches!(call.n.checked_neg(), Some(ECONNRESET | EPIPE)) {
        return event(returned, call.tid, What::PeerClosed { end });
    }
    if call.n < 0 {
        return Line::Other;
    }
    if call.n == 0 {
        return match direction {
            Direction::In => event(returned, call.tid, What::PeerClosed { end }),
            Direction::Out => Line::Other,
        };
    }
    let mut bytes = vec![0; call.hex.len() / 2];
    if faster_hex::hex_decode(&call.hex, &mut bytes).is_err() {
        return Line::Bad;
    }
    bytes.truncate(call.n as usize);
    // What is read is there at the exit, what is written goes out after the entry.
    let at = match direction {
        Direction::In => returned,
        Direction::Out => entered,
    };
    event(at, call.tid, What::Data { end, direction, len: call.n as u64, bytes, starts: true, offset: None })
}

fn event(at: EventNanos, thread: u32, what: What) -> Line {
    Line::Event(Event { at, process: 0, thread, what })
}

/// Unix seconds to ns; logs have µs, which an f64 holds exactly enough (0.24 µs at 2026).
fn nanos(seconds: f64) -> Option<EventNanos> {
    let micros = (seconds * 1e6).round();
    (0.0..9e15).contains(&micros).then(|| micros as u64 * 1000)
}

/// A unix socket is its own inode (its peer's may not be known yet), a TCP one its two addresses.
fn end_of(sock: Option<&str>, fd: i64) -> End {
    let Some(sock) = sock.filter(|s| !s.is_empty()) else { return End(xxh3_64(format!("fd:{fd}").as_bytes())) };
    let key = if sock.starts_with("UNIX") {
        sock.split(['>', ']', ',']).next().unwrap_or(sock).trim_end_matches('-')
    } else {
        sock
    };
    End(xxh3_64(key.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Option<Event> {
        match parse(line.as_bytes()) {
            Line::Event(event) => Some(event),
            _ => None,
        }
    }

    #[test]
    fn a_unix_socket_is_the_same_before_and_after_its_peer_is_known() {
        assert_eq!(end_of(Some("UNIX-STREAM:[155212]"), 1), end_of(Some("UNIX-STREAM:[155212->155222]"), 2));
        assert_ne!(end_of(Some("UNIX-STREAM:[155222->155212]"), 1), end_of(Some("UNIX-STREAM:[155212->155222]"), 1));
    }

    #[test]
    fn reads_are_stamped_at_their_exit_and_writes_at_their_entry() {
        let read = one(r#"{"t0":1.000001,"t1":2.5,"tid":7,"sc":"read","fd":3,"sock":"TCP:[a->b]","n":2,"hex":"4142"}"#)
            .unwrap();
        assert_eq!(read.at, 2_500_000_000);
        let write =
            one(r#"{"t0":1.000001,"t1":2.5,"tid":7,"sc":"write","fd":3,"sock":"TCP:[a->b]","n":9,"hex":"4142"}"#)
                .unwrap();
        assert_eq!(write.at, 1_000_001_000);
        assert!(matches!(write.what, What::Data { len: 9, ref bytes, .. } if bytes == b"AB"));
    }

    #[test]
    fn a_reset_says_that_the_peer_is_gone_and_other_errors_say_nothing() {
        let call = |n: i64| one(&format!(r#"{{"t0":1,"t1":2,"sc":"sendmsg","fd":3,"n":{n}}}"#)).map(|event| event.what);
        assert!(matches!(call(-32), Some(What::PeerClosed { .. })));
        assert!(matches!(call(-104), Some(What::PeerClosed { .. })));
        assert_eq!(call(-11), None);
        assert_eq!(call(i64::MIN), None, "it has no positive");
    }

    #[test]
    fn a_time_that_no_clock_shows_is_bad() {
        for time in ["1e300", "9e9", "-1", "1e18"] {
            let line = format!(r#"{{"t0":{time},"t1":2,"sc":"read","fd":3,"n":1,"hex":"41"}}"#);
            assert!(matches!(parse(line.as_bytes()), Line::Bad), "{time}");
        }
        assert_eq!(nanos(8.9e9), Some(8_900_000_000_000_000_000));
    }

    #[test]
    fn a_note_is_passed_over_and_a_broken_line_is_bad() {
        assert!(matches!(parse(br#"{"note":"x"}"#), Line::Other));
        assert!(matches!(parse(br#"{"t0":1,"sc":"read","hex":"4"#), Line::Bad));
        assert!(matches!(parse(br#"{"t0":1,"sc":7}"#), Line::Bad));
        assert!(matches!(parse(b"[]"), Line::Bad));
        assert!(matches!(parse(b"hello"), Line::Bad));
    }
}
