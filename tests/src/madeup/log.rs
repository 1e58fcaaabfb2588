//! Lines of a syscall log, with libzmq's framing and cuts.
//!
//! Every call takes a microsecond, so that no two of one log are at the same time.

use std::io::{self, Write};

use inferspan_demo_engine::zmtp::framed;

/// libzmq's batch: a longer message leaves, and is read, in one call of this and one of the rest.
const BATCH: usize = 8192;
/// When the log begins, unix seconds.
pub(super) const WALL: u64 = 1_795_485_902;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// One end of a socket and the thread that serves it.
struct Place {
    thread: u32,
    fd: u32,
    socket: &'static str,
}

const ADDS_OUT: Place = Place { thread: 201, fd: 35, socket: "UNIX-STREAM:[54574->54573]" };
const ADDS_IN: Place = Place { thread: 301, fd: 49, socket: "UNIX-STREAM:[54573->54574]" };
const OUTPUTS_OUT: Place = Place { thread: 302, fd: 56, socket: "UNIX-STREAM:[54575->54576]" };
const OUTPUTS_IN: Place = Place { thread: 201, fd: 37, socket: "UNIX-STREAM:[54576->54575]" };
/// The API server's event loop.
const MAIN_THREAD: u32 = 200;

pub(super) struct Log<W: Write> {
    out: W,
    blank: bool,
    micros: u64,
    calls: u64,
    bytes: u64,
    hex: Vec<u8>,
}

/// Appends two digits a byte.
fn to_hex(bytes: &[u8], hex: &mut Vec<u8>) {
    hex.extend(bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]));
}

/// The calls that a message is cut into.
fn cut(wire: &[u8]) -> [&[u8]; 2] {
    let (first, rest) = wire.split_at(wire.len().min(BATCH));
    [first, rest]
}

impl<W: Write> Log<W> {
    pub(super) fn new(mut out: W, blank: bool) -> io::Result<Self> {
        out.write_all(b"{\"note\": \"made up by inferspan-tests\"}\n")?;
        Ok(Self { out, blank, micros: 0, calls: 0, bytes: 0, hex: Vec::new() })
    }

    /// Lets time pass.
    pub(super) fn wait(&mut self, micros: u64) {
        self.micros += micros;
    }

    /// Now, on a clock that is so many seconds behind the wall's.
    pub(super) fn seconds(&self, behind: u64) -> f64 {
        (WALL - behind) as f64 + self.micros as f64 / 1e6
    }

    /// A call on a client's connection.
    pub(super) fn http(&mut self, call: &str, socket: &str, bytes: &[u8]) -> io::Result<()> {
        self.call(call, MAIN_THREAD, 26, socket, bytes)
    }

    /// A message to the engine.
    pub(super) fn engine_input(&mut self, frames: &[Vec<u8>], both_ends: bool) -> io::Result<()> {
        self.move_over(&framed(frames), (true, both_ends), &ADDS_OUT, &ADDS_IN)
    }

    /// A message from the engine; without its end, what the API server reads.
    pub(super) fn engine_output(&mut self, payload: &[u8], both_ends: bool) -> io::Result<()> {
        self.move_over(&framed(&[payload.to_vec()]), (both_ends, true), &OUTPUTS_OUT, &OUTPUTS_IN)
    }

    fn move_over(&mut self, wire: &[u8], (sent, received): (bool, bool), from: &Place, to: &Place) -> io::Result<()> {
        for (happens, call, place) in [(sent, "sendto", from), (received, "recvfrom", to)] {
            for part in cut(wire).into_iter().filter(|part| happens && !part.is_empty()) {
                self.call(call, place.thread, place.fd, place.socket, part)?;
            }
        }
        Ok(())
    }

    /// The API server reads `times` messages that are as `payload` but for their stamp, which is 0 in it.
    pub(super) fn repeat_engine_output(
        &mut self,
        payload: &[u8],
        times: u32,
        every: u64,
        behind: u64,
    ) -> io::Result<()> {
        // A float64 in msgpack, between the last of the statistics and four nils and a string.
        const BEFORE: usize = b"perf_stats\xc0\xcb".len();
        const STAMP: &[u8] = b"perf_stats\xc0\xcb\0\0\0\0\0\0\0\0\xc0\xc0\xc0\xc0\xa7default";
        let wire = framed(&[payload.to_vec()]);
        let at = wire.windows(STAMP.len()).rposition(|window| window == STAMP);
        let at = at.ok_or_else(|| io::Error::other("a message without a stamp"))? + BEFORE;
        let mut whole = Vec::with_capacity(wire.len() * 2);
        to_hex(&wire, &mut whole);
        for _ in 0..times {
            let mut stamp = Vec::with_capacity(16);
            to_hex(&self.seconds(behind).to_be_bytes(), &mut stamp);
            whole[2 * at..2 * at + 16].copy_from_slice(&stamp);
            let (first, rest) = whole.split_at(whole.len().min(2 * BATCH));
            for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
                let Place { thread, fd, socket } = OUTPUTS_IN;
                self.head("recvfrom", thread, fd, socket, part.len() / 2)?;
                self.out.write_all(part)?;
                self.out.write_all(b"\"}\n")?;
            }
            self.micros += every;
        }
        Ok(())
    }

    fn call(&mut self, call: &str, thread: u32, fd: u32, socket: &str, bytes: &[u8]) -> io::Result<()> {
        self.head(call, thread, fd, socket, bytes.len())?;
        self.hex.clear();
        if self.blank {
            self.hex.resize(2 * bytes.len(), b'e');
        } else {
            to_hex(bytes, &mut self.hex);
        }
        self.out.write_all(&self.hex)?;
        self.out.write_all(b"\"}\n")
    }

    /// A line up to its payload.
    fn head(&mut self, call: &str, thread: u32, fd: u32, socket: &str, len: usize) -> io::Result<()> {
        self.micros += 1;
        self.calls += 1;
        self.bytes += len as u64;
        let (seconds, micros) = (WALL + self.micros / 1_000_000, self.micros % 1_000_000);
        write!(
            self.out,
            "{{\"t0\": {seconds}.{micros:06}, \"t1\": {seconds}.{micros:06}, \"tid\": {thread}, \"sc\": \"{call}\", \
             \"fd\": {fd}, \"sock\": \"{socket}\", \"n\": {len}, \"hex\": \""
        )
    }

    /// Calls and bytes.
    pub(super) fn finish(mut self) -> io::Result<(u64, u64)> {
        self.out.flush()?;
        Ok((self.calls, self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_leaves_and_arrives_in_two_calls() {
        let mut out = Vec::new();
        let mut log = Log::new(&mut out, false).unwrap();
        log.engine_output(&vec![7; 10_000], true).unwrap();
        assert_eq!(log.finish().unwrap(), (4, 2 * 10_009));
        let text = String::from_utf8(out).unwrap();
        let lens: Vec<u64> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64())
            .collect();
        assert_eq!(lens, [8192, 1817, 8192, 1817]);
    }
}
