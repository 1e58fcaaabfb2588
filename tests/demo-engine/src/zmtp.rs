//! ZMTP 3.1 over Unix stream sockets, with libzmq's system calls.
//!
//! One [`Io`] is one libzmq context: a thread named `ZMQbg/IO/<n>` that owns its sockets, sends with `sendto` in batches of
//! up to 8,192 bytes and receives with `recvfrom(8192)`, or with one call for the rest of a large frame. Each socket here
//! has exactly one peer, which is all that vLLM's topology needs. Commands in traffic and oversized frames are refused: the
//! peer is ours.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::sys::{self, Poller, Wake};

/// libzmq's `in_batch_size` and `out_batch_size`.
const BATCH: usize = 8192;
/// More than any message of ours; a larger length means that the stream is broken.
const MAX_FRAME: u64 = 64 << 20;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
const WAKE_TOKEN: u64 = u64::MAX;

/// How a socket gets its one peer.
#[derive(Debug)]
pub enum Endpoint {
    Bind(UnixListener),
    Connect(PathBuf),
}

/// One socket and its type as READY announces it: `DEALER`, `ROUTER`, `PUSH`, `PULL`, `PUB`, `SUB`, …
#[derive(Debug)]
pub struct Socket {
    pub kind: &'static str,
    pub identity: Option<Vec<u8>>,
    pub endpoint: Endpoint,
}

/// Frames of one message.
pub type Message = Vec<Vec<u8>>;

/// What comes out of the thread.
#[derive(Debug)]
pub enum Delivery {
    /// The handshake with the peer is done.
    Connected(usize),
    Message(usize, Message),
    /// The peer is gone.
    Closed(usize),
}

/// A handle to the thread; clones send to the same one.
#[derive(Debug, Clone)]
pub struct Io {
    outgoing: Sender<(usize, Message)>,
    wake: Arc<Wake>,
}

impl Io {
    /// Starts the thread. `deliver` runs on it; false ends the thread.
    pub fn start(
        comm: &'static str,
        sockets: Vec<Socket>,
        mut deliver: impl FnMut(Delivery) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (outgoing, incoming) = channel();
        let wake = Arc::new(Wake::new()?);
        let woken = Arc::clone(&wake);
        thread::Builder::new().name(comm.to_owned()).spawn(move || {
            if let Err(error) = run(sockets, &incoming, &woken, &mut deliver) {
                eprintln!("demo-engine: {comm}: {error}");
            }
        })?;
        Ok(Self { outgoing, wake })
    }

    /// Queues a message; one that follows the thread's end goes nowhere, as in a closed ZeroMQ context.
    pub fn send(&self, socket: usize, message: Message) {
        if self.outgoing.send((socket, message)).is_ok() {
            self.wake.signal();
        }
    }
}

fn run(
    sockets: Vec<Socket>,
    incoming: &Receiver<(usize, Message)>,
    wake: &Wake,
    deliver: &mut dyn FnMut(Delivery) -> bool,
) -> io::Result<()> {
    let poller = Poller::new()?;
    poller.add(wake.fd(), WAKE_TOKEN)?;
    let mut peers = Vec::new();
    for (token, socket) in (0_u64..).zip(sockets) {
        let (stream, connects) = match socket.endpoint {
            Endpoint::Bind(listener) => (listener.accept()?.0, false),
            Endpoint::Connect(path) => (connect(&path)?, true),
        };
        stream.set_nonblocking(true)?;
        poller.add(stream.as_fd(), token)?;
        let mut peer = Peer::new(stream, ready(socket.kind, socket.identity.as_deref()), socket.kind == "SUB");
        if connects {
            peer.begin_greeting();
            peer.flush()?;
        }
        peers.push(peer);
    }
    loop {
        for event in poller.wait(Duration::from_hours(1))? {
            if event.token == WAKE_TOKEN {
                wake.drain();
                while let Ok((index, message)) = incoming.try_recv() {
                    peers[index].queue(&message);
                }
                continue;
            }
            let index = event.token as usize;
            if event.readable {
                for delivery in peers[index].receive(index)? {
                    if matches!(delivery, Delivery::Closed(_)) | !deliver(delivery) {
                        return Ok(());
                    }
                }
            }
        }
        for (token, peer) in (0_u64..).zip(&mut peers) {
            let blocked = peer.flush()?;
            if blocked != peer.blocked {
                peer.blocked = blocked;
                poller.want_write(peer.fd(), token, blocked)?;
            }
        }
    }
}

/// The binder may be a moment later than us, as at a real start.
fn connect(path: &std::path::Path) -> io::Result<UnixStream> {
    let mut last = None;
    for _ in 0..500 {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(last.unwrap_or_else(|| io::Error::from(io::ErrorKind::TimedOut)))
}

/// The READY command, framed.
fn ready(kind: &str, identity: Option<&[u8]>) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend((kind.len() as u32).to_be_bytes());
    body.extend(kind.as_bytes());
    if let Some(identity) = identity {
        body.extend(b"\x08Identity");
        body.extend((identity.len() as u32).to_be_bytes());
        body.extend(identity);
    }
    let mut frame = vec![COMMAND, body.len() as u8];
    frame.extend(body);
    frame
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Bytes of the peer's greeting so far.
    Greeting(usize),
    Ready,
    Traffic,
}

#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    phase: Phase,
    ready: Vec<u8>,
    subscribes: bool,
    /// Our greeting bytes sent so far (10, then all 64).
    greeted: usize,
    input: Decoder,
    message: Message,
    output: Encoder,
    /// Messages queued before the handshake was over.
    early: Vec<Message>,
    blocked: bool,
}

/// Signature, version 3.1, mechanism NULL, not a server.
fn greeting() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 0xff;
    bytes[8] = 1;
    bytes[9] = 0x7f;
    bytes[10] = 3;
    bytes[11] = 1;
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

impl Peer {
    fn new(stream: UnixStream, ready: Vec<u8>, subscribes: bool) -> Self {
        Self {
            stream,
            phase: Phase::Greeting(0),
            ready,
            subscribes,
            greeted: 0,
            input: Decoder::default(),
            message: Vec::new(),
            output: Encoder::default(),
            early: Vec::new(),
            blocked: false,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn begin_greeting(&mut self) {
        self.output.raw(greeting()[..10].to_vec());
        self.greeted = 10;
    }

    fn queue(&mut self, message: &Message) {
        if self.phase == Phase::Traffic {
            self.output.message(message);
        } else {
            self.early.push(message.clone());
        }
    }

    /// Sends what is queued; true when the socket is full.
    fn flush(&mut self) -> io::Result<bool> {
        self.output.flush(self.stream.as_fd())
    }

    fn receive(&mut self, index: usize) -> io::Result<Vec<Delivery>> {
        let want = match self.phase {
            // libzmq first reads as much as decides the version, then the rest.
            Phase::Greeting(got) if got < 11 => 12 - got,
            Phase::Greeting(got) => 64 - got,
            Phase::Ready | Phase::Traffic => self.input.want(),
        };
        let bytes = match sys::receive(self.stream.as_fd(), want) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(vec![Delivery::Closed(index)]),
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok(vec![Delivery::Closed(index)]);
        }
        let mut deliveries = Vec::new();
        if let Phase::Greeting(got) = self.phase {
            self.greeting(got + bytes.len());
            self.flush()?;
            return Ok(deliveries);
        }
        for (flags, body) in self.input.feed(&bytes)? {
            if flags & COMMAND != 0 {
                if self.phase == Phase::Ready && body.starts_with(b"\x05READY") {
                    self.phase = Phase::Traffic;
                    if self.subscribes {
                        self.output.raw(b"\x04\x0a\x09SUBSCRIBE".to_vec());
                    }
                    for message in std::mem::take(&mut self.early) {
                        self.output.message(&message);
                    }
                    deliveries.push(Delivery::Connected(index));
                }
                continue;
            }
            self.message.push(body);
            if flags & MORE == 0 {
                deliveries.push(Delivery::Message(index, std::mem::take(&mut self.message)));
            }
        }
        Ok(deliveries)
    }

    /// The peer's greeting grew to `got` bytes: answer as far as libzmq does.
    fn greeting(&mut self, got: usize) {
        self.phase = Phase::Greeting(got);
        let ours = greeting();
        if got >= 10 && self.greeted == 0 {
            self.output.raw(ours[..11].to_vec());
            self.greeted = 11;
        } else if got >= 11 && self.greeted < 64 {
            self.output.raw(ours[self.greeted..].to_vec());
            self.greeted = 64;
        }
        if got == 64 {
            self.output.raw(self.ready.clone());
            self.phase = Phase::Ready;
        }
    }
}

/// Bytes to frames.
#[derive(Debug, Default)]
struct Decoder {
    head: Vec<u8>,
    body: Option<(u8, Vec<u8>, usize)>,
}

impl Decoder {
    /// How much libzmq would ask for: the rest of a large frame in one call, else a batch.
    fn want(&self) -> usize {
        match &self.body {
            Some((_, body, len)) if len - body.len() >= BATCH => len - body.len(),
            _ => BATCH,
        }
    }

    fn feed(&mut self, mut bytes: &[u8]) -> io::Result<Vec<(u8, Vec<u8>)>> {
        let mut frames = Vec::new();
        loop {
            if let Some((flags, mut body, len)) = self.body.take() {
                let n = bytes.len().min(len - body.len());
                body.extend(&bytes[..n]);
                bytes = &bytes[n..];
                if body.len() == len {
                    frames.push((flags, body));
                } else {
                    self.body = Some((flags, body, len));
                }
            }
            let Some((&first, rest)) = bytes.split_first() else { return Ok(frames) };
            self.head.push(first);
            bytes = rest;
            let len = match self.head[..] {
                [flags, len] if flags & LONG == 0 => u64::from(len),
                [_, ref size @ ..] if size.len() == 8 => size.iter().fold(0, |len, byte| len << 8 | u64::from(*byte)),
                _ => continue,
            };
            if len > MAX_FRAME {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a ZMTP frame of {len} bytes")));
            }
            let flags = self.head[0];
            self.head.clear();
            self.body = Some((flags, Vec::new(), len as usize));
        }
    }
}

/// What is before a frame on the wire; `more` is [`MORE`], or 0 for the last one of a message.
fn head(len: usize, more: u8) -> Vec<u8> {
    if let Ok(short) = u8::try_from(len) {
        return vec![more, short];
    }
    let mut head = vec![more | LONG];
    head.extend((len as u64).to_be_bytes());
    head
}

/// A message on the wire.
pub fn framed(message: &[Vec<u8>]) -> Vec<u8> {
    let mut wire = Vec::new();
    for (frame, left) in message.iter().zip((0..message.len()).rev()) {
        wire.extend(head(frame.len(), if left > 0 { MORE } else { 0 }));
        wire.extend(frame);
    }
    wire
}

/// Frames to batches, as libzmq's encoder cuts them.
#[derive(Debug, Default)]
struct Encoder {
    segments: VecDeque<Vec<u8>>,
    batch: Vec<u8>,
    sent: usize,
}

impl Encoder {
    fn raw(&mut self, bytes: Vec<u8>) {
        self.segments.push_back(bytes);
    }

    fn message(&mut self, message: &Message) {
        for (frame, left) in message.iter().zip((0..message.len()).rev()) {
            let more = if left > 0 { MORE } else { 0 };
            self.segments.push_back(head(frame.len(), more));
            self.segments.push_back(frame.clone());
        }
    }

    /// Up to 8,192 bytes; what is left of a frame larger than that goes alone and whole (libzmq's zero-copy path).
    fn next_batch(&mut self) -> Vec<u8> {
        let mut batch = Vec::new();
        while let Some(mut segment) = self.segments.pop_front() {
            if batch.is_empty() && segment.len() >= BATCH {
                return segment;
            }
            let room = BATCH - batch.len();
            if segment.len() > room {
                let rest = segment.split_off(room);
                self.segments.push_front(rest);
            }
            batch.extend(segment);
            if batch.len() == BATCH {
                break;
            }
        }
        batch
    }

    fn flush(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        loop {
            if self.sent == self.batch.len() {
                self.batch = self.next_batch();
                self.sent = 0;
                if self.batch.is_empty() {
                    return Ok(false);
                }
            }
            match sys::send(fd, &self.batch[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The reader's end shows the same end of stream; that one decides.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    self.segments.clear();
                    self.batch.clear();
                    self.sent = 0;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_of_a_dealer_is_libzmqs_to_the_byte() {
        // From a capture of vLLM 0.32's start-up.
        assert_eq!(
            ready("DEALER", Some(&[0, 0])),
            b"\x04\x2b\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x02\0\0"
        );
    }

    #[test]
    fn batches_are_cut_where_libzmq_cuts_them() {
        let mut encoder = Encoder::default();
        encoder.message(&vec![vec![0]]);
        encoder.message(&vec![vec![7; 30_000]]);
        encoder.message(&vec![vec![9; 10]]);
        let batches: Vec<usize> =
            std::iter::from_fn(|| Some(encoder.next_batch().len()).filter(|len| *len > 0)).collect();
        assert_eq!(batches, [8192, 30_012 - 8192, 12]);
    }

    #[test]
    fn frames_survive_any_cut() {
        let messages: Vec<Message> = vec![vec![vec![0], vec![1; 300]], vec![vec![2; 9000]], vec![vec![]]];
        let mut encoder = Encoder::default();
        for message in &messages {
            encoder.message(message);
        }
        let mut bytes = Vec::new();
        loop {
            let batch = encoder.next_batch();
            if batch.is_empty() {
                break;
            }
            bytes.extend(batch);
        }
        assert_eq!(bytes, messages.iter().flat_map(|message| framed(message)).collect::<Vec<u8>>());
        for cut in [1, 2, 7, 255, 8192] {
            let mut decoder = Decoder::default();
            let frames: Vec<Vec<u8>> =
                bytes.chunks(cut).flat_map(|chunk| decoder.feed(chunk).unwrap()).map(|(_, body)| body).collect();
            assert_eq!(frames, messages.concat(), "cut into {cut}");
        }
    }
}
