//! Inputs of the pure pipeline, as a fuzzer chooses them.
//!
//! Enters: bytes. Leaves: inputs of two servers with a few processes and descriptors: what the probes say, with times that go on, stand,
//! fall back or jump to the edges of what a number holds; facts; losses. Streams carry pieces of real conversations, engine messages whose
//! numbers are hostile, and plain bytes.

use std::sync::Arc;

use inferspan::decode::record;
use inferspan::input::{
    Delivered, Direction, End, Event, Fact, Function, Input, LossStage, Lost, Probe, Role, Server, What,
};
use tracer_ebpf::wire::{call, cuda, proc};

use crate::bytes::Bytes;
use crate::engine;

/// Inputs of one run at most.
const MAX: usize = 2_000;

/// What is often in a conversation, cut where a fuzzer likes.
const PIECES: [&[u8]; 14] = [
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: 44\r\n\r\n{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":123}\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nX-Request-Id: b\r\ntraceparent: \
      00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nContent-Length: 28\r\n\r\n{\"stream\":true,\"n\":4294967}\n",
    b"POST /v1/responses HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    b"2a\r\ndata: {\"id\":\"chatcmpl-b\",\"choices\":[{\"index\r\n",
    b"data: {\"id\":\"cmpl-a\",\"choices\":[{\"index\":0,\"text\":\"x\"}]}\n\n",
    b"data: [DONE]\n\n",
    b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 61\r\n\r\n{\"id\":\"cmpl-d\",\"usage\":{\"prompt_tokens\":18446744073709551615}}",
    b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n\r\n{\"id\":\"chatcmpl-c\",\"choices\":[{\"index\":0},{\"index\":1}]}",
    b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
];

/// The processes: two front ends, two engines, two workers; the rest is unknown until somebody forks it.
const ROLES: [(usize, u32, Role); 6] = [
    (0, 1, Role::Api),
    (0, 2, Role::Engine),
    (0, 3, Role::Worker),
    (1, 4, Role::Api),
    (1, 5, Role::Engine),
    (1, 6, Role::Worker),
];

/// Where the event clock stands, and what counts the bytes of each stream.
struct Clock {
    now: u64,
    /// Bytes moved by each of the few ends and directions.
    moved: [u64; 64],
}

impl Clock {
    /// Mostly a little on; sometimes back, or anywhere.
    fn tick(&mut self, bytes: &mut Bytes<'_>) -> u64 {
        match bytes.u8() {
            small @ 0..=127 => self.now = self.now.saturating_add(u64::from(small) * 10_000),
            large @ 128..=207 => self.now = self.now.saturating_add(u64::from(large) * 10_000_000),
            back @ 208..=239 => return self.now.saturating_sub(u64::from(back) * 1_000_000),
            240..=243 => return bytes.number(),
            244 => self.now = bytes.number(),
            _ => {}
        }
        self.now
    }
}

/// The inputs, and which server each is told of by name.
pub fn inputs(bytes: &[u8]) -> Vec<(Option<usize>, Input)> {
    let mut bytes = Bytes(bytes);
    let mut clock = Clock { now: 5_000_000_000, moved: [0; 64] };
    let mut inputs: Vec<(Option<usize>, Input)> = Vec::new();
    for (server, tgid, role) in ROLES {
        inputs.push((Some(server), Input::Fact(Fact::Process { tgid, role })));
    }
    while !bytes.is_over() && inputs.len() < MAX {
        inputs.extend(input(&mut bytes, &mut clock));
    }
    inputs
}

fn input(bytes: &mut Bytes<'_>, clock: &mut Clock) -> Option<(Option<usize>, Input)> {
    let what = match bytes.u8() {
        0..=99 => data(bytes, clock),
        100..=109 => What::Opened { end: end(bytes).0 },
        110..=113 => What::PeerClosed { end: end(bytes).0 },
        114..=115 => What::Blocked { end: end(bytes).0 },
        116..=117 => What::Unblocked { end: end(bytes).0 },
        118..=129 => {
            let (end, slot) = end(bytes);
            let moved = match bytes.below(3) {
                0 => None,
                1 => Some((clock.moved[slot * 2], clock.moved[slot * 2 + 1])),
                _ => Some((bytes.number(), bytes.number())),
            };
            What::Closed { end, moved }
        }
        130..=149 => {
            let function = [Function::Encode, Function::Decode, Function::Clock][bytes.below(3)];
            What::Call { function, entered: clock.tick(bytes), stack: u32::from(bytes.u8()) }
        }
        150..=154 => What::Forked { child: 1 + bytes.below(9) as u32 },
        155 => What::Executed,
        156..=158 => What::Exited,
        159 => What::Mapped,
        160..=199 => return record(bytes, clock).map(|event| (None, Input::Event(event))),
        200..=219 => return Some((None, Input::Tick(clock.tick(bytes)))),
        220..=229 => {
            let stage = LossStage::ALL[bytes.below(LossStage::ALL.len())];
            let lost = Lost { at: clock.tick(bytes), count: bytes.number(), stage };
            return Some((None, Input::Lost(lost)));
        }
        230..=232 => {
            let probe = Probe::ALL[bytes.below(Probe::ALL.len())];
            return Some((None, Input::Delivered(Delivered { probe, count: bytes.number() })));
        }
        _ => {
            let server = bytes.below(3);
            return Some(((server < 2).then_some(server), Input::Fact(fact(bytes, clock))));
        }
    };
    let process = process_of(&what).unwrap_or_else(|| 1 + bytes.below(8) as u32);
    let event = Event { at: clock.tick(bytes), process, thread: process + bytes.below(3) as u32, what };
    Some((None, Input::Event(event)))
}

fn process_of(what: &What) -> Option<u32> {
    what.end().map(|end| (end.0 >> 32) as u32)
}

/// One of a few ends, and its place among them.
fn end(bytes: &mut Bytes<'_>) -> (End, usize) {
    let slot = bytes.below(32);
    (End::of_descriptor(1 + slot as u32 / 5, 3 + slot as u32 % 5), slot)
}

fn data(bytes: &mut Bytes<'_>, clock: &mut Clock) -> What {
    let (end, slot) = end(bytes);
    let shape = bytes.u8();
    let direction = if shape & 1 == 0 { Direction::In } else { Direction::Out };
    let mut payload = match shape >> 1 & 7 {
        0..=2 => engine::message(bytes, clock.now),
        3..=5 => PIECES[bytes.below(PIECES.len())].to_vec(),
        6 => bytes.short().to_vec(),
        _ => bytes.piece(4_096).to_vec(),
    };
    if shape & 16 != 0 {
        payload.truncate(usize::from(bytes.u8()));
    }
    let moved = &mut clock.moved[slot * 2 + usize::from(shape & 1)];
    let (len, offset) = match bytes.u8() {
        0..=3 => (bytes.number().max(payload.len() as u64).max(1), Some(bytes.number())),
        4..=7 => (bytes.number().saturating_add(payload.len() as u64).max(1), Some(*moved)),
        8..=15 => (payload.len().max(1) as u64, Some(moved.saturating_add(bytes.number()))),
        16..=31 => (payload.len().max(1) as u64, None),
        _ => (payload.len().max(1) as u64, Some(*moved)),
    };
    *moved = offset.unwrap_or(*moved).saturating_add(len);
    What::Data { end, direction, len, bytes: payload, starts: shape & 32 == 0, offset }
}

/// A record of the rings that are not about descriptors, as the decoders read it.
fn record(bytes: &mut Bytes<'_>, clock: &mut Clock) -> Option<Event> {
    const KINDS: [u32; 8] = [
        cuda::KIND_CUDA_BURST,
        cuda::KIND_CUDA_FUNCTION,
        cuda::KIND_CUDA_LAUNCH,
        cuda::KIND_CUDA_CALL,
        cuda::KIND_CUDA_CALL,
        cuda::KIND_MAPPED,
        proc::KIND_FORKED,
        call::KIND_CALL,
    ];
    let mut raw = clock.tick(bytes).to_ne_bytes().to_vec();
    let process = 1 + bytes.below(8) as u32;
    for word in [process, process + bytes.below(3) as u32, KINDS[bytes.below(KINDS.len())], 0] {
        raw.extend(word.to_ne_bytes());
    }
    // Words rather than bytes: the fields are numbers.
    let words = bytes.below(24);
    (0..words).for_each(|_| raw.extend(bytes.number().to_ne_bytes()));
    raw.resize(512, 0);
    match record::decode(&raw) {
        Ok(record::Record::Event(event)) => Some(event),
        _ => None,
    }
}

fn fact(bytes: &mut Bytes<'_>, clock: &mut Clock) -> Fact {
    let tgid = 1 + bytes.below(9) as u32;
    match bytes.below(7) {
        0 => Fact::Clock { event_ns: clock.tick(bytes), unix_ns: bytes.number() },
        1 => Fact::EngineClock { offset_ns: bytes.number() as i64 },
        2 => {
            let role = [Role::Api, Role::Engine, Role::Worker, Role::Coordinator, Role::Other][bytes.below(5)];
            Fact::Process { tgid, role }
        }
        3 => Fact::Probed { tgid, probe: Probe::ALL[bytes.below(Probe::ALL.len())] },
        4 => Fact::Parent { tgid, parent: 1 + bytes.below(9) as u32 },
        5 => Fact::Rank { tgid, rank: bytes.number() as u32 },
        _ => {
            let engine = if bytes.flag() { "vllm" } else { "transformers" }.to_owned();
            let pid = bytes.number() as u32;
            Fact::Server(Arc::new(Server { engine, pid, start_ticks: bytes.number(), ..Server::default() }))
        }
    }
}
