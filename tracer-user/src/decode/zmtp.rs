//! ZMTP 3.1 (RFC 37) as a byte stream of one direction of one connection.
//!
//! Enters: the pieces of each call, in order, with what was not captured as a gap. Leaves: messages of up to
//! [`KEPT_PARTS`] parts. A gap inside a frame's body cuts that part, of which the unbroken head and the last bytes are given; a
//! gap that swallows a frame header loses synchronisation, which comes back at the next call that starts like a frame (libzmq
//! starts every send at a frame boundary, except after one of exactly 8192 bytes: measured). Refused: bodies are never held
//! beyond [`KEPT_BYTES`] and [`TAIL_BYTES`].

/// Parts of a message that are kept; later ones (tensors that ride along) are only stepped over.
pub const KEPT_PARTS: usize = 2;
/// Bytes of one part that are kept; the rest is cut. An output message takes 60 to 90 B a running request and about 250 B for
/// one that starts: 2 MiB are 8,192 starting at once. An ADD takes 300 B + 1..5 B a prompt token: 400,000 tokens.
pub const KEPT_BYTES: usize = 2 * 1024 * 1024;
/// Bytes kept of the end of a part that was cut: an ADD's parameters, an output message's statistics and stamp (about 560 B).
pub const TAIL_BYTES: usize = 16 * 1024;
/// Frames beyond this are taken for lost synchronisation (RFC 37 allows 2^63; an engine's largest, multimodal tensors, are far below).
const MAX_FRAME: u64 = 1 << 32;
/// RFC 37: signature 10, version 2, mechanism 20, as-server 1, filler 31.
const GREETING_BYTES: u64 = 64;

/// A part that holds no more is not worth letting go of (a message's first part says its kind in one byte), bytes.
const LITTLE: usize = 64;

const FLAG_MORE: u8 = 1;
const FLAG_LONG: u8 = 2;
const FLAG_COMMAND: u8 = 4;

/// One message: its first parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub parts: Vec<Part>,
    /// All its parts, with those not kept.
    pub part_count: usize,
}

/// The body of one frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    pub bytes: Vec<u8>,
    /// Bytes are missing at the end or in between.
    pub cut: bool,
    /// Of a part that is cut, the unbroken bytes up to its very end, as far as they are there.
    pub tail: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// Not at a known place; the next call that starts like a frame or a greeting is one.
    Lost,
    /// This many bytes of the greeting are still to come.
    Greeting(u64),
    /// Between frames, with the bytes of a header that was split.
    Header { held: [u8; 9], have: usize },
    /// In a body with `left` bytes to come.
    Body { flags: u8, left: u64 },
}

/// The parser of one direction.
#[derive(Debug)]
pub struct Stream {
    state: State,
    message: Message,
    part: Part,
    desyncs: u64,
}

impl Default for Stream {
    fn default() -> Self {
        Self { state: State::Lost, message: Message::default(), part: Part::default(), desyncs: 0 }
    }
}

impl Stream {
    /// Times that synchronisation was lost.
    pub fn desyncs(&self) -> u64 {
        self.desyncs
    }

    /// Bytes held for messages that are not whole.
    pub fn held_bytes(&self) -> usize {
        self.part.held_bytes()
            + self.message.parts.capacity() * size_of::<Part>()
            + self.message.parts.iter().map(Part::held_bytes).sum::<usize>()
    }

    /// Lets go of what is held, as if it were missing: the message is cut, and the framing stays known.
    pub fn drop_held(&mut self) {
        let parts = self.message.parts.iter_mut().chain([&mut self.part]);
        for part in parts.filter(|part| part.held_bytes() > LITTLE) {
            *part = Part { cut: true, ..Part::default() };
        }
    }

    /// Takes a piece of `len` bytes, the first of which are `bytes`, and hands each whole message to `sink`. `starts`: it is the
    /// first of its call.
    pub fn push(&mut self, len: u64, bytes: &[u8], starts: bool, sink: &mut impl FnMut(Message)) {
        if matches!(self.state, State::Lost) {
            if starts && starts_greeting(bytes) {
                self.state = State::Greeting(GREETING_BYTES);
            } else if starts && starts_frame(len, bytes) {
                self.state = State::Header { held: [0; 9], have: 0 };
            } else {
                return;
            }
        }
        self.consume(bytes, sink);
        let gap = len.saturating_sub(bytes.len() as u64);
        if gap > 0 {
            self.gap(gap, sink);
        }
    }

    fn consume(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Message)) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Lost => return,
                State::Greeting(left) => {
                    let n = (*left).min(bytes.len() as u64);
                    *left -= n;
                    bytes = &bytes[n as usize..];
                    if *left == 0 {
                        self.state = State::Header { held: [0; 9], have: 0 };
                    }
                }
                State::Header { held, have } => {
                    held[*have] = bytes[0];
                    *have += 1;
                    bytes = &bytes[1..];
                    if held[0] & !7 != 0 {
                        self.lose();
                        return;
                    }
                    let left = match (held[0] & FLAG_LONG != 0, *have) {
                        (false, 2) => u64::from(held[1]),
                        (true, 9) => {
                            let mut raw = [0; 8];
                            raw.copy_from_slice(&held[1..]);
                            u64::from_be_bytes(raw)
                        }
                        _ => continue,
                    };
                    if left > MAX_FRAME {
                        self.lose();
                        return;
                    }
                    self.state = State::Body { flags: held[0], left };
                    if left == 0 {
                        self.end_frame(sink);
                    }
                }
                State::Body { left, .. } => {
                    let n = (*left).min(bytes.len() as u64) as usize;
                    if self.message.part_count < KEPT_PARTS {
                        self.part.take(&bytes[..n]);
                    }
                    *left -= n as u64;
                    bytes = &bytes[n..];
                    if *left == 0 {
                        self.end_frame(sink);
                    }
                }
            }
        }
    }

    /// `gap` bytes of the stream are not here.
    pub fn gap(&mut self, gap: u64, sink: &mut impl FnMut(Message)) {
        match &mut self.state {
            State::Body { left, .. } if gap <= *left => {
                *left -= gap;
                self.part.cut = true;
                self.part.tail.clear();
                if *left == 0 {
                    self.end_frame(sink);
                }
            }
            State::Greeting(left) if gap <= *left => *left -= gap,
            // The frame that the gap starts in is still worth reading; where the next one starts is not known.
            State::Body { .. } => {
                self.part.cut = true;
                self.part.tail.clear();
                self.end_frame(sink);
                self.lose();
            }
            State::Lost => {}
            State::Greeting(_) | State::Header { .. } => self.lose(),
        }
    }

    /// Bytes are missing from the stream altogether: synchronise anew.
    pub fn lose(&mut self) {
        self.state = State::Lost;
        self.message = Message::default();
        self.part = Part::default();
        self.desyncs += 1;
    }

    /// Records were lost somewhere: what was half read cannot be trusted to go on where it stopped.
    pub fn doubt(&mut self) {
        let between = matches!(self.state, State::Lost | State::Header { have: 0, .. });
        if !between || self.message.part_count > 0 {
            self.lose();
        }
    }

    fn end_frame(&mut self, sink: &mut impl FnMut(Message)) {
        let State::Body { flags, .. } = self.state else { return };
        self.state = State::Header { held: [0; 9], have: 0 };
        let part = std::mem::take(&mut self.part);
        if flags & FLAG_COMMAND != 0 {
            return;
        }
        if self.message.part_count < KEPT_PARTS {
            self.message.parts.push(part);
        }
        self.message.part_count += 1;
        if flags & FLAG_MORE == 0 {
            sink(std::mem::take(&mut self.message));
        }
    }
}

impl Part {
    fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.tail.capacity()
    }

    /// Takes the next bytes of the body: to the head while that is unbroken and has room, else to the window at the end.
    fn take(&mut self, bytes: &[u8]) {
        let room = if self.cut { 0 } else { KEPT_BYTES.saturating_sub(self.bytes.len()) };
        let (head, rest) = bytes.split_at(bytes.len().min(room));
        self.bytes.extend_from_slice(head);
        if rest.is_empty() {
            return;
        }
        self.cut = true;
        let rest = &rest[rest.len().saturating_sub(TAIL_BYTES)..];
        // Twice the window before it is moved down, so that each byte is moved once at most.
        if self.tail.len() + rest.len() > 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        }
        self.tail.extend_from_slice(rest);
    }
}

/// RFC 37 signature: `ff`, 8 bytes of padding (libzmq puts a ZMTP 1.0 length there), `7f`. Measured: sent as 10 + 54 or 11 + 53.
pub fn starts_greeting(bytes: &[u8]) -> bool {
    bytes.len() >= 10 && bytes[0] == 0xff && bytes[1..8].iter().all(|&b| b == 0) && bytes[9] == 0x7f
}

/// Whether a call of `len` bytes that starts with `bytes` plausibly starts at a frame boundary: every header in it is valid
/// and its first body starts as an engine's do (a request type, an array, a map or a command).
pub fn starts_frame(len: u64, bytes: &[u8]) -> bool {
    let mut at = 0usize;
    let mut first = true;
    while at < bytes.len() {
        let flags = bytes[at];
        if flags & !7 != 0 {
            return false;
        }
        let (size, header) = if flags & FLAG_LONG != 0 {
            let Some(raw) = bytes.get(at + 1..at + 9) else { return !first };
            (raw.iter().fold(0u64, |n, &b| n << 8 | u64::from(b)), 9)
        } else {
            let Some(&size) = bytes.get(at + 1) else { return !first };
            (u64::from(size), 2)
        };
        if size > MAX_FRAME || (flags & FLAG_LONG != 0 && size < 256) {
            return false;
        }
        if first {
            let more = flags & FLAG_MORE != 0;
            let body = bytes.get(at + header).copied();
            let plausible = match body {
                _ if flags & FLAG_COMMAND != 0 => true,
                // Worker pings and request types: one byte.
                Some(kind) if size == 1 => kind <= 5,
                Some(0x80..=0x9f | 0xdc..=0xdf) => !more || size > 2,
                // A raw notice (ENGINE_CORE_DEAD).
                Some(b'E') => true,
                _ => false,
            };
            if !plausible {
                return false;
            }
            first = false;
        }
        let next = at as u64 + header as u64 + size;
        if next >= len || next >= bytes.len() as u64 {
            return true;
        }
        at = next as usize;
    }
    !first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if body.len() > 255 {
            out.push(flags | FLAG_LONG);
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        } else {
            out.extend_from_slice(&[flags, body.len() as u8]);
        }
        out.extend_from_slice(body);
        out
    }

    fn add(n: usize) -> Vec<u8> {
        let mut body = vec![0x92, 0xa1, b'x'];
        body.resize(n, 0x01);
        [frame(FLAG_MORE, &[0]), frame(0, &body)].concat()
    }

    fn parse(calls: &[(u64, &[u8])]) -> (Vec<Message>, u64) {
        let mut stream = Stream::default();
        let mut out = Vec::new();
        for (len, bytes) in calls {
            stream.push(*len, bytes, true, &mut |m| out.push(m));
        }
        (out, stream.desyncs())
    }

    #[test]
    fn a_stream_gives_the_same_messages_however_it_is_cut() {
        let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1];
        bytes.resize(64, 0);
        bytes.extend(frame(FLAG_COMMAND, b"\x05READY"));
        bytes.extend(add(20));
        bytes.extend(add(300));
        let (whole, _) = parse(&[(bytes.len() as u64, &bytes)]);
        assert_eq!(whole.len(), 2);
        for cut in 10..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            let (pieces, desyncs) = parse(&[(a.len() as u64, a), (b.len() as u64, b)]);
            assert_eq!((pieces, desyncs), (whole.clone(), 0), "cut at {cut}");
        }
    }

    #[test]
    fn an_attach_in_the_middle_starts_at_the_next_frame_boundary() {
        // calls:  [tail of a big frame][ADD][ADD]
        let tail = [0x5a; 100];
        let (messages, _) = parse(&[(100, &tail), (23 + 2, &add(20)), (23 + 2, &add(20))]);
        assert_eq!(messages.len(), 2);
    }

    #[test]
    fn a_gap_in_a_body_cuts_the_part_and_keeps_the_frame_boundaries() {
        let message = add(4000);
        let (messages, desyncs) = parse(&[(message.len() as u64, &message[..100]), (25, &add(20))]);
        assert_eq!(desyncs, 0);
        assert_eq!(messages.len(), 2);
        assert!(messages[0].parts[1].cut && !messages[1].parts[1].cut);
    }

    #[test]
    fn a_gap_over_a_header_loses_and_finds_the_place_again() {
        let two = [add(400), add(400)].concat();
        let (messages, desyncs) = parse(&[(two.len() as u64, &two[..50]), (25, &add(20))]);
        assert_eq!(desyncs, 1);
        assert_eq!(messages.len(), 2, "the cut first one, and the one after the gap");
    }

    #[test]
    fn a_cut_part_has_its_end() {
        // one call:  [head piece, 100 of 3900 bytes][tail piece, 109 bytes]
        let message = add(4000);
        let (mut stream, mut out) = (Stream::default(), Vec::new());
        let split = message.len() - 109;
        stream.push(split as u64, &message[..100], true, &mut |m| out.push(m));
        stream.push(109, &message[split..], false, &mut |m| out.push(m));
        assert_eq!(stream.desyncs(), 0);
        assert!(out[0].parts[1].cut);
        assert_eq!(out[0].parts[1].tail, message[split..]);
    }

    #[test]
    fn a_loss_of_known_length_keeps_the_framing() {
        // [ADD 4000, of which 2000 are lost][ADD 20]
        let message = add(4000);
        let (mut stream, mut out) = (Stream::default(), Vec::new());
        stream.push(1000, &message[..1000], true, &mut |m| out.push(m));
        stream.gap(2000, &mut |m| out.push(m));
        let rest = &message[3000..];
        stream.push(rest.len() as u64, rest, true, &mut |m| out.push(m));
        stream.push(25, &add(20), true, &mut |m| out.push(m));
        assert_eq!((out.len(), stream.desyncs()), (2, 0));
    }

    #[test]
    fn extra_parts_are_stepped_over() {
        let message = [frame(FLAG_MORE, &[0x99; 40]), frame(FLAG_MORE, &[1; 700]), frame(0, &[2; 9000])].concat();
        let (messages, _) = parse(&[(message.len() as u64, &message)]);
        assert_eq!(messages[0].parts.len(), KEPT_PARTS);
        assert_eq!(messages[0].part_count, 3);
    }
}
