//! One end of a connection: finds out which protocol it speaks, and parses it.

use std::collections::VecDeque;

use crate::decode::http::{self, RequestEvent, Requests, ResponseEvent, Responses};
use crate::decode::zmtp::{self, Message};
use crate::input::Direction;

/// What one call completed.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub messages: Vec<Message>,
    pub http: Vec<HttpEvent>,
}

#[derive(Debug)]
pub(super) enum HttpEvent {
    Request(RequestEvent),
    Response(ResponseEvent),
}

/// A request on the connection whose response is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Its head is still coming; its first byte was read at `at`.
    Started {
        at: u64,
        place: u32,
    },
    Exchange(u64),
    /// An endpoint that does not generate.
    Ignored,
}

#[derive(Debug)]
enum Protocol {
    /// Nothing recognised yet.
    Unknown,
    Http(Box<(Requests, Responses)>),
    Zmtp(Box<[zmtp::Stream; 2]>),
    /// This end is a client of something; not ours.
    Client,
}

/// Requests that one connection may have unanswered; a client that pipelines more loses the join of the oldest.
const MAX_SLOTS: usize = 1_024;

#[derive(Debug)]
pub(super) struct Connection {
    pub process: u32,
    protocol: Protocol,
    /// Requests in order; the first is the one being answered.
    pub slots: VecDeque<Slot>,
    /// When the newest request started, and how many before it did in the same call.
    newest: (u64, u32),
}

impl Connection {
    pub fn new(process: u32) -> Self {
        Self { process, protocol: Protocol::Unknown, slots: VecDeque::new(), newest: (0, 0) }
    }

    /// A request started.
    pub fn start(&mut self, at: u64) {
        if self.slots.len() == MAX_SLOTS {
            self.slots.pop_front();
        }
        let place = if self.newest.0 == at { self.newest.1 + 1 } else { 0 };
        self.newest = (at, place);
        self.slots.push_back(Slot::Started { at, place });
    }

    /// Takes the bytes of one call.
    pub fn push(&mut self, direction: Direction, len: u64, bytes: &[u8], parsed: &mut Parsed) {
        if matches!(self.protocol, Protocol::Unknown) {
            self.protocol = recognise(direction, len, bytes);
        }
        match (&mut self.protocol, direction) {
            (Protocol::Unknown | Protocol::Client, _) => {}
            (Protocol::Http(http), Direction::In) => {
                http.0.push(len, bytes, &mut |event| parsed.http.push(HttpEvent::Request(event)));
            }
            (Protocol::Http(http), Direction::Out) => {
                http.1.push(len, bytes, &mut |event| parsed.http.push(HttpEvent::Response(event)));
            }
            (Protocol::Zmtp(streams), direction) => {
                streams[direction as usize].push(len, bytes, &mut |message| parsed.messages.push(message));
            }
        }
    }

    /// The connection is over: a response that runs until then is complete.
    pub fn closed(&mut self, parsed: &mut Parsed) {
        if let Protocol::Http(http) = &mut self.protocol {
            http.1.closed(&mut |event| parsed.http.push(HttpEvent::Response(event)));
        }
    }

    /// Records were lost: do not go on in the middle of a message.
    pub fn doubt(&mut self) {
        if let Protocol::Zmtp(streams) = &mut self.protocol {
            streams.iter_mut().for_each(zmtp::Stream::doubt);
        }
    }

    pub fn desyncs(&self) -> u64 {
        match &self.protocol {
            Protocol::Zmtp(streams) => streams.iter().map(zmtp::Stream::desyncs).sum(),
            _ => 0,
        }
    }
}

fn recognise(direction: Direction, len: u64, bytes: &[u8]) -> Protocol {
    let server_side = match direction {
        Direction::In => http::starts_request(bytes) || http::may_start_request(bytes),
        Direction::Out => http::starts_response(bytes),
    };
    let client_side = match direction {
        Direction::In => http::starts_response(bytes),
        Direction::Out => http::starts_request(bytes),
    };
    if server_side {
        Protocol::Http(Box::default())
    } else if client_side {
        Protocol::Client
    } else if zmtp::starts_greeting(bytes) || zmtp::starts_frame(len, bytes) {
        Protocol::Zmtp(Box::default())
    } else {
        Protocol::Unknown
    }
}
