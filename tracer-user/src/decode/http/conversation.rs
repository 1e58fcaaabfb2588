//! Both directions of one HTTP/1.1 connection, as the server sees them.
//!
//! Enters: pieces of calls, and what is lost of the stream. Leaves: events, each of a request by its ordinal. A response belongs to the
//! earliest request without one when its head is seen. Invariant: what was missed of one exchange does not shift the others: a status
//! line ends the response before it, a further request ends a response that is in doubt, an answer ends a request that did not come whole,
//! and each of these marks what it ends. Refused: more than [`MAX_OPEN`] requests without an answer.

use std::collections::VecDeque;

use super::request::{RequestEvent, RequestHead, Requests};
use super::response::{Asked, ResponseEvent, Responses};
use super::{starts_request_line, starts_response};
use crate::decode::json::{RequestFields, ResponseFields};
use crate::input::Direction;

/// Requests that one connection may have unanswered; a client that pipelines more loses the join of the oldest.
const MAX_OPEN: usize = 1_024;

/// Some bytes of one direction.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Bytes it covers; those beyond `bytes` are not there.
    pub len: u64,
    pub bytes: &'a [u8],
    /// It is the first piece of its call.
    pub starts: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpEvent {
    /// The how-manieth request of the connection it concerns.
    pub request: u64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The first byte of a request, behind `place` others that began in the same call.
    Started { place: u32 },
    RequestHead(RequestHead),
    /// The last byte of the request, or as much of it as came.
    RequestComplete(RequestFields),
    /// What started is no request, or its head is not there.
    NoRequest,
    ResponseHead { status: u16, stream: bool },
    Chunk(ResponseFields),
    /// `data: [DONE]`.
    DoneMark,
    /// The response's last byte.
    Complete(Option<ResponseFields>),
    /// The response is over, as later bytes show, and its end (or all of it) was not seen.
    EndUnseen,
    /// Bytes of it are missing that were not left out on purpose.
    Gap(Direction),
}

#[derive(Debug)]
struct Open {
    ordinal: u64,
    asked: Asked,
    answer: Answer,
}

/// What was seen of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Awaited,
    /// It may have been missed.
    InDoubt,
    Begun,
}

#[derive(Debug, Default)]
pub struct Conversation {
    requests: Requests,
    responses: Responses,
    /// Requests whose response is not over, in order.
    open: VecDeque<Open>,
    next: u64,
    /// Requests that began in the call being read.
    in_call: u32,
    /// The request being read.
    reading: Option<u64>,
    /// Whose response is being read.
    answering: Option<u64>,
    /// The last piece did not show all of its call so far.
    gap_in_call: [bool; 2],
}

impl Conversation {
    /// Takes a piece.
    pub fn push(&mut self, direction: Direction, piece: Piece<'_>, sink: &mut impl FnMut(HttpEvent)) {
        let side = direction as usize;
        if piece.starts {
            self.gap_in_call[side] = false;
        }
        match direction {
            Direction::In => self.push_in(piece, sink),
            Direction::Out => self.push_out(piece, sink),
        }
        let gap = piece.len.saturating_sub(piece.bytes.len() as u64);
        if gap > 0 {
            self.gap_in_call[side] = true;
            self.gap(direction, gap, sink);
        }
    }

    /// Bytes of the stream are missing here; how many, when that is known.
    pub fn lost(&mut self, direction: Direction, bytes: Option<u64>, sink: &mut impl FnMut(HttpEvent)) {
        match direction {
            Direction::In => {
                if let Some(request) = self.reading {
                    sink(HttpEvent { request, what: What::Gap(direction) });
                }
                match bytes {
                    Some(bytes) => self.gap(direction, bytes, sink),
                    None => {
                        let mut events = Vec::new();
                        self.requests.doubt(&mut |event| events.push(event));
                        self.request_events(events, sink);
                    }
                }
            }
            Direction::Out => {
                let was_answering = self.answering;
                if let Some(request) = was_answering {
                    sink(HttpEvent { request, what: What::Gap(direction) });
                }
                let in_body = self.responses.is_in_body();
                match bytes {
                    Some(bytes) => self.gap(direction, bytes, sink),
                    None => {
                        let mut events = Vec::new();
                        self.responses.doubt(&mut |event| events.push(event));
                        self.response_events(events, sink);
                    }
                }
                // What was lost may be the responses to those that wait; behind a body it is the body's, as far as is known.
                if !in_body || self.responses.is_idle() {
                    for open in self.open.iter_mut().filter(|open| open.answer == Answer::Awaited) {
                        open.answer = Answer::InDoubt;
                        if !in_body {
                            sink(HttpEvent { request: open.ordinal, what: What::Gap(direction) });
                        }
                    }
                }
            }
        }
    }

    /// The connection is over: a response that runs until then is complete.
    pub fn closed(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        let mut events = Vec::new();
        self.responses.closed(&mut |event| events.push(event));
        self.response_events(events, sink);
    }

    /// The response being read answers the later request `to`, not `from`: those before it are over, unseen.
    pub fn rebind(&mut self, from: u64, to: u64) {
        if self.answering == Some(from) {
            self.answering = Some(to);
        }
        self.open.retain(|open| open.ordinal >= to);
        if let Some(open) = self.open.front_mut().filter(|open| open.ordinal == to) {
            open.answer = Answer::Begun;
        }
    }

    /// It speaks something else from here on.
    pub fn is_foreign(&self) -> bool {
        self.responses.is_foreign()
    }

    pub fn held_bytes(&self) -> usize {
        self.requests.held_bytes() + self.responses.held_bytes()
    }

    fn push_in(&mut self, piece: Piece<'_>, sink: &mut impl FnMut(HttpEvent)) {
        if piece.starts {
            self.in_call = 0;
            if starts_request_line(piece.bytes) {
                self.further_request(sink);
            }
        }
        let mut events = Vec::new();
        self.requests.push(piece.bytes, &mut |event| events.push(event));
        self.request_events(events, sink);
    }

    /// A call starts with a request: what was in doubt before it is over.
    fn further_request(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        // The request being read did not come whole: it was answered, or bytes of it are known to be missing.
        if self.requests.is_in_body() {
            let answered = self.reading.is_none_or(|ordinal| {
                self.open.iter().find(|open| open.ordinal == ordinal).is_none_or(|open| open.answer == Answer::Begun)
            });
            if answered || self.requests.is_doubtful() {
                self.end_request(sink);
            }
        }
        if self.requests.is_in_body() || self.requests.is_in_head() {
            return; // a body or a head that happens to go on like this
        }
        if self.responses.is_doubtful() {
            self.end_response(sink);
        }
        while let Some(open) = self.open.front().filter(|open| open.answer == Answer::InDoubt) {
            sink(HttpEvent { request: open.ordinal, what: What::EndUnseen });
            self.open.pop_front();
        }
    }

    fn end_request(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        if let Some(request) = self.reading {
            sink(HttpEvent { request, what: What::Gap(Direction::In) });
        }
        let mut events = Vec::new();
        self.requests.end(&mut |event| events.push(event));
        self.request_events(events, sink);
    }

    /// The response being read is over, unseen.
    fn end_response(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        self.responses.abandon();
        if let Some(request) = self.answering.take() {
            self.open.retain(|open| open.ordinal != request);
            sink(HttpEvent { request, what: What::EndUnseen });
        }
    }

    fn push_out(&mut self, piece: Piece<'_>, sink: &mut impl FnMut(HttpEvent)) {
        if piece.starts && starts_response(piece.bytes) {
            if !self.responses.is_idle() && !self.responses.is_foreign() {
                self.end_response(sink);
            }
        } else if piece.starts && self.responses.is_idle() && !b"HTTP/1.".starts_with(piece.bytes) {
            // A body whose head was missed: it is the response to the first that waits, unless that is none of ours.
            if let Some(open) = self.open.front_mut().filter(|open| open.answer == Answer::Awaited) {
                open.answer = Answer::InDoubt;
                sink(HttpEvent { request: open.ordinal, what: What::Gap(Direction::Out) });
            }
        }
        let tail = !piece.starts && self.gap_in_call[Direction::Out as usize];
        let open = &self.open;
        let mut waiting = open.iter().filter(|open| open.answer != Answer::Begun);
        let mut asked = || waiting.next().map_or(Asked::Other, |open| open.asked);
        let mut events = Vec::new();
        // Responses to pipelined requests may stand in one call; each is bound before the next begins.
        self.responses.push(piece.bytes, tail, &mut asked, &mut |event| events.push(event));
        self.response_events(events, sink);
    }

    fn gap(&mut self, direction: Direction, gap: u64, sink: &mut impl FnMut(HttpEvent)) {
        match direction {
            Direction::In => {
                let mut events = Vec::new();
                self.requests.gap(gap, &mut |event| events.push(event));
                self.request_events(events, sink);
            }
            Direction::Out => {
                let mut events = Vec::new();
                self.responses.gap(gap, &mut |event| events.push(event));
                self.response_events(events, sink);
            }
        }
    }

    fn request_events(&mut self, events: Vec<RequestEvent>, sink: &mut impl FnMut(HttpEvent)) {
        for event in events {
            let what = match event {
                RequestEvent::Started => {
                    if self.open.len() == MAX_OPEN
                        && let Some(oldest) = self.open.pop_front()
                    {
                        sink(HttpEvent { request: oldest.ordinal, what: What::EndUnseen });
                    }
                    let ordinal = self.next;
                    self.next += 1;
                    self.reading = Some(ordinal);
                    self.open.push_back(Open { ordinal, asked: Asked::Other, answer: Answer::Awaited });
                    let place = self.in_call;
                    self.in_call += 1;
                    What::Started { place }
                }
                RequestEvent::Head(head) => {
                    if let Some(open) = self.open.back_mut().filter(|open| Some(open.ordinal) == self.reading) {
                        open.asked = match head.method.as_str() {
                            "HEAD" => Asked::Head,
                            "CONNECT" => Asked::Connect,
                            _ => Asked::Other,
                        };
                    }
                    What::RequestHead(head)
                }
                RequestEvent::Complete(fields) => What::RequestComplete(fields),
                RequestEvent::Dropped => {
                    self.open.retain(|open| Some(open.ordinal) != self.reading);
                    What::NoRequest
                }
            };
            let Some(request) = self.reading else { continue };
            if matches!(what, What::RequestComplete(_) | What::NoRequest) {
                self.reading = None;
            }
            sink(HttpEvent { request, what });
        }
    }

    fn response_events(&mut self, events: Vec<ResponseEvent>, sink: &mut impl FnMut(HttpEvent)) {
        for event in events {
            if matches!(event, ResponseEvent::Head { .. }) {
                let first = self.open.iter_mut().find(|open| open.answer != Answer::Begun);
                self.answering = first.map(|open| {
                    open.answer = Answer::Begun;
                    open.ordinal
                });
            }
            let Some(request) = self.answering else { continue };
            let what = match event {
                ResponseEvent::Head { status, stream } => What::ResponseHead { status, stream },
                ResponseEvent::Chunk(fields) => What::Chunk(fields),
                ResponseEvent::DoneMark => What::DoneMark,
                ResponseEvent::Complete(fields) => {
                    self.answering = None;
                    self.open.retain(|open| open.ordinal != request);
                    if self.reading == Some(request) {
                        // Answered before all of it was read: the rest of the body is nobody's.
                        let mut events = Vec::new();
                        self.requests.answered(&mut |event| events.push(event));
                        self.request_events(events, sink);
                    }
                    What::Complete(fields)
                }
            };
            sink(HttpEvent { request, what });
        }
    }
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
