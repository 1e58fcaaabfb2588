//! One end of a connection: finds out which protocol it speaks, parses it, and notices what is missing of it.
//!
//! Enters: pieces of calls, with their place in the stream where the source counts it. Leaves: messages and HTTP events, and once
//! what the connection turned out to be. Invariant: a jump in the stream's count is a loss of known length, told to the parser
//! before the next piece.

use serde::{Deserialize, Serialize};

use crate::decode::http::{Conversation, HttpEvent, Piece, may_start_request, starts_request, starts_response};
use crate::decode::zmtp::{self, Message};
use crate::engine::{Engine, EngineMessage};
use crate::input::Direction;
use crate::output::Speaks;

/// What one piece completed, or the end of the connection. Holds nothing of a prompt, an output, a query or a header's value but trace
/// context and request id: what the decoders give out does not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parsed {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<EngineMessage>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpEvent>,
    /// The connection was recognised by this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speaks: Option<Speaks>,
    /// Events of the bytes that are missing before the piece.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost_http: Vec<HttpEvent>,
    /// Bytes are missing before the piece.
    #[serde(skip_serializing_if = "is_false")]
    pub lost: bool,
    /// Framing was lost.
    #[serde(skip_serializing_if = "is_false")]
    pub desynced: bool,
    /// It carries an engine's messages (or some that were coming in were let go): only told where many connections are asked at once.
    #[serde(skip_serializing_if = "is_false")]
    pub carries_messages: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Debug)]
enum Protocol {
    /// Nothing recognised yet, of so many calls and bytes.
    Unknown {
        calls: u32,
        bytes: u64,
    },
    Http(Box<Conversation>),
    Zmtp(Box<[zmtp::Stream; 2]>),
    /// Nothing that is read here: this end is a client, or speaks something else.
    Foreign,
}

/// A connection whose start was not seen may be in the middle of a message; after this much it would have shown a start.
const FOREIGN_CALLS: u32 = 64;
const FOREIGN_BYTES: u64 = 256 * 1024;
/// Bytes at the very start of a connection that tell any protocol known here from others (a ZMTP signature is 10, sent at once).
const TELLING_BYTES: usize = 10;
/// An engine and its workers wake each other by messages of one byte, one way and back at every step. A connection that
/// carried so many and nothing else is such a bell.
const BELL_MESSAGES: u32 = 64;

#[derive(Debug)]
pub(super) struct Decoder {
    protocol: Protocol,
    /// Bytes of each direction so far, once the source has said it.
    moved: [Option<u64>; 2],
    /// It was seen from its start.
    from_start: bool,
    /// Messages of one byte, while there were no others.
    bells: Option<u32>,
}

impl Decoder {
    /// `from_start`: it was just opened.
    pub(super) fn new(from_start: bool) -> Self {
        Self {
            protocol: Protocol::Unknown { calls: 0, bytes: 0 },
            moved: [from_start.then_some(0); 2],
            from_start,
            bells: Some(0),
        }
    }

    /// Whether the source counts the bytes of its streams, so that a loss shows by itself.
    pub(super) fn counts(&self) -> bool {
        self.moved.iter().any(|moved| moved.is_some_and(|n| n > 0))
    }

    pub(super) fn carries_messages(&self) -> bool {
        matches!(self.protocol, Protocol::Zmtp(_))
    }

    fn is_recognised(&self) -> bool {
        !matches!(self.protocol, Protocol::Unknown { .. })
    }

    /// Takes a piece; `offset` is its place in the stream, where that is known.
    pub(super) fn push(
        &mut self,
        direction: Direction,
        offset: Option<u64>,
        piece: Piece<'_>,
        engine: &dyn Engine,
        parsed: &mut Parsed,
    ) {
        if let Some(offset) = offset {
            // A start that was missed: what it says first is not how it started.
            self.from_start &= offset == 0 || self.is_recognised();
            let moved = &mut self.moved[direction as usize];
            let missing = moved.map_or(0, |moved| offset.saturating_sub(moved));
            *moved = Some(moved.unwrap_or(0).max(offset.saturating_add(piece.len)));
            if missing > 0 {
                self.lost(direction, Some(missing), engine, parsed);
            }
        }
        if let Protocol::Unknown { calls, bytes } = &mut self.protocol {
            *calls = calls.saturating_add(u32::from(piece.starts));
            *bytes = bytes.saturating_add(piece.len);
            let (calls, bytes) = (*calls, *bytes);
            if piece.starts {
                self.recognise(direction, &piece, (calls, bytes), engine, parsed);
            }
        }
        match (&mut self.protocol, direction) {
            (Protocol::Unknown { .. } | Protocol::Foreign, _) => {}
            (Protocol::Http(http), direction) => {
                http.push(direction, piece, &mut |event| parsed.http.push(event));
                if http.is_foreign() {
                    self.protocol = Protocol::Foreign;
                    parsed.speaks = Some(Speaks::Foreign);
                }
            }
            (Protocol::Zmtp(streams), direction) => {
                let stream = &mut streams[direction as usize];
                let desyncs = stream.desyncs();
                let mut messages = Vec::new();
                stream.push(piece.len, piece.bytes, piece.starts, &mut |message| messages.push(message));
                parsed.desynced |= stream.desyncs() > desyncs;
                if self.are_bells(&messages) {
                    self.protocol = Protocol::Foreign;
                    parsed.speaks = Some(Speaks::Foreign);
                } else {
                    parsed.messages.extend(messages.iter().map(|message| engine.decode(message)));
                }
            }
        }
    }

    /// By the start of a call, after so many calls and bytes.
    fn recognise(
        &mut self,
        direction: Direction,
        piece: &Piece<'_>,
        (calls, bytes): (u32, u64),
        engine: &dyn Engine,
        parsed: &mut Parsed,
    ) {
        // Stray line ends before a request are allowed (RFC 9112 section 2.2).
        let stray = piece.bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let start = &piece.bytes[stray..];
        let (server, client) = match direction {
            Direction::In => (starts_request(start) || may_start_request(start), starts_response(start)),
            Direction::Out => (starts_response(start), starts_request(start)),
        };
        let (protocol, speaks) = if server {
            (Protocol::Http(Box::default()), Speaks::Http)
        } else if client {
            (Protocol::Foreign, Speaks::Foreign)
        } else if engine.starts_message(piece.len, start) {
            (Protocol::Zmtp(Box::default()), Speaks::Engine)
        } else if (self.from_start && calls == 1 && start.len() >= TELLING_BYTES)
            || (calls > FOREIGN_CALLS && bytes > FOREIGN_BYTES)
        {
            (Protocol::Foreign, Speaks::Foreign)
        } else {
            return;
        };
        self.protocol = protocol;
        parsed.speaks = Some(speaks);
    }

    /// Bells of engine and worker carry nothing; they are not worth the kernel's time.
    fn are_bells(&mut self, messages: &[Message]) -> bool {
        let Some(bells) = &mut self.bells else { return false };
        if !messages.iter().all(|m| matches!(m.parts.as_slice(), [part] if part.bytes.len() == 1 && !part.cut)) {
            self.bells = None;
            return false;
        }
        *bells += messages.len() as u32;
        *bells >= BELL_MESSAGES
    }

    /// Bytes of the stream are missing here; how many, when that is known.
    pub(super) fn lost(&mut self, direction: Direction, bytes: Option<u64>, engine: &dyn Engine, parsed: &mut Parsed) {
        match &mut self.protocol {
            // What was not read before it was recognised is not missed.
            Protocol::Unknown { .. } | Protocol::Foreign => return,
            Protocol::Http(http) => http.lost(direction, bytes, &mut |event| parsed.lost_http.push(event)),
            Protocol::Zmtp(streams) => {
                let stream = &mut streams[direction as usize];
                match bytes {
                    Some(bytes) => stream.gap(bytes, &mut |message| parsed.messages.push(engine.decode(&message))),
                    None => stream.doubt(),
                }
            }
        }
        parsed.lost = true;
    }

    /// The connection is over. `moved`: all that it moved, in and out, where the source counts.
    pub(super) fn closed(&mut self, moved: Option<(u64, u64)>, engine: &dyn Engine, parsed: &mut Parsed) {
        if let Some((into, out)) = moved {
            for (direction, total) in [(Direction::In, into), (Direction::Out, out)] {
                let missing = self.moved[direction as usize].map_or(0, |seen| total.saturating_sub(seen));
                if missing > 0 {
                    self.lost(direction, Some(missing), engine, parsed);
                }
            }
        }
        if let Protocol::Http(http) = &mut self.protocol {
            http.closed(&mut |event| parsed.http.push(event));
        }
    }

    /// Bytes held for messages that are not whole.
    pub(super) fn held_bytes(&self) -> usize {
        match &self.protocol {
            Protocol::Http(http) => http.held_bytes(),
            Protocol::Zmtp(streams) => streams.iter().map(zmtp::Stream::held_bytes).sum(),
            Protocol::Unknown { .. } | Protocol::Foreign => 0,
        }
    }

    /// Lets go of what is held, as if it were missing.
    pub(super) fn drop_held(&mut self, parsed: &mut Parsed) {
        match &mut self.protocol {
            Protocol::Http(http) => http.drop_held(&mut |event| parsed.lost_http.push(event)),
            Protocol::Zmtp(streams) => {
                parsed.carries_messages = streams[Direction::In as usize].held_bytes() > 0;
                streams.iter_mut().for_each(zmtp::Stream::drop_held);
            }
            Protocol::Unknown { .. } | Protocol::Foreign => {}
        }
        parsed.lost = true;
    }

    /// The HTTP side, to correct a binding.
    pub(super) fn conversation(&mut self) -> Option<&mut Conversation> {
        match &mut self.protocol {
            Protocol::Http(http) => Some(http),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::http::What;
    use crate::engine::ENGINES;

    /// A decoder and where its streams stand.
    struct Told {
        decoder: Decoder,
        at: [u64; 2],
    }

    impl Told {
        fn new(from_start: bool) -> Self {
            Self { decoder: Decoder::new(from_start), at: [0; 2] }
        }

        /// One call.
        fn call(&mut self, direction: Direction, bytes: &[u8]) -> Parsed {
            let piece = Piece { len: bytes.len() as u64, bytes, starts: true };
            let offset = self.at[direction as usize];
            self.at[direction as usize] += piece.len;
            let mut parsed = Parsed::default();
            self.decoder.push(direction, Some(offset), piece, ENGINES[0], &mut parsed);
            parsed
        }
    }

    fn greeting() -> Vec<u8> {
        [&[0xff][..], &[0; 8], &[0x7f, 3, 1], b"NULL", &[0; 48]].concat()
    }

    /// A message of one byte: a frame without more behind it.
    const BELL: [u8; 3] = [0, 1, b'x'];

    #[test]
    fn a_protocol_is_known_by_how_a_call_starts() {
        for (direction, bytes, speaks) in [
            (Direction::In, &b"POST /v1/completions HTTP/1.1\r\n"[..], Some(Speaks::Http)),
            (Direction::In, b"\r\nGET /health HTTP/1.1\r\n", Some(Speaks::Http)),
            (Direction::Out, b"HTTP/1.1 200 OK\r\n", Some(Speaks::Http)),
            (Direction::Out, b"GET / HTTP/1.1\r\n", Some(Speaks::Foreign)),
            (Direction::In, b"HTTP/1.1 200 OK\r\n", Some(Speaks::Foreign)),
            (Direction::In, &greeting(), Some(Speaks::Engine)),
            (Direction::In, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Some(Speaks::Foreign)),
            (Direction::In, b"\x16\x03", None),
        ] {
            assert_eq!(Told::new(true).call(direction, bytes).speaks, speaks, "{bytes:?}");
        }
    }

    #[test]
    fn a_connection_that_was_met_in_its_middle_is_waited_for_and_then_given_up() {
        // attached here: … bytes of nothing known … 64 calls and 256 KiB later
        let mut told = Told::new(false);
        for _ in 0..FOREIGN_CALLS {
            assert_eq!(told.call(Direction::In, &[b'~'; 8192]).speaks, None);
        }
        assert_eq!(told.call(Direction::In, &[b'~'; 8192]).speaks, Some(Speaks::Foreign));
        // the same, but a request comes in time
        let mut told = Told::new(false);
        told.call(Direction::In, b"the end of a body");
        assert_eq!(told.call(Direction::In, b"GET / HTTP/1.1\r\n\r\n").speaks, Some(Speaks::Http));
    }

    #[test]
    fn bells_are_muted_and_a_message_among_them_keeps_the_connection() {
        // greeting · 64 messages of one byte
        let mut told = Told::new(true);
        told.call(Direction::In, &greeting());
        let speaks: Vec<_> = (0..BELL_MESSAGES).filter_map(|_| told.call(Direction::In, &BELL).speaks).collect();
        assert_eq!(speaks, [Speaks::Foreign]);
        // greeting · a message of two bytes · as many bells
        let mut told = Told::new(true);
        told.call(Direction::In, &greeting());
        told.call(Direction::In, &[0, 2, b'x', b'y']);
        assert!((0..2 * BELL_MESSAGES).all(|_| told.call(Direction::In, &BELL).speaks.is_none()));
    }

    #[test]
    fn a_jump_of_the_count_is_a_loss_and_so_is_a_close_that_says_more() {
        // head of a request · (10 bytes are missing) · the rest of its body · close, 5 bytes later than was seen
        let mut told = Told::new(true);
        told.call(Direction::In, b"POST /v1/completions HTTP/1.1\r\ncontent-length: 30\r\n\r\n");
        told.at[Direction::In as usize] += 10;
        let parsed = told.call(Direction::In, &[b' '; 20]);
        assert!(parsed.lost && !parsed.desynced, "{parsed:?}");
        assert!(parsed.http.iter().any(|event| matches!(event.what, What::RequestComplete(_))), "{parsed:?}");
        assert!(told.decoder.counts());
        let mut parsed = Parsed::default();
        let [into, out] = told.at;
        told.decoder.closed(Some((into + 5, out)), ENGINES[0], &mut parsed);
        assert!(parsed.lost, "{parsed:?}");
    }
}
