//! Both directions of one HTTP/1.1 connection, seen from the server: which response answers which request.
//!
//! Enters: the pieces of calls in order, and word of what is missing. Leaves: [`HttpEvent`]s that name the request they are
//! about. Invariant: a response goes to the earliest request without one when its head is seen; bytes that are missing cost
//! the exchange they were of, and no other. Bounded: one head, one window and one line a direction, and [`MAX_OPEN`]
//! unanswered requests. Refused: heads over 64 KiB; what is no HTTP is skipped until a call that starts a message.

mod inbound;
mod outbound;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod timeline;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use self::inbound::Inbound;
use self::outbound::Outbound;
use super::RequestHead;
use crate::decode::json::{RequestFields, ResponseFields};
use crate::input::Direction;

/// Requests that one connection may have unanswered; a client that pipelines more loses the oldest.
const MAX_OPEN: usize = 1_024;

/// What one of them takes, here and where its events go, bytes.
const OPEN_BYTES: usize = size_of::<Open>() + 40;

/// A piece of one call.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Bytes of the stream that it covers.
    pub len: u64,
    /// The first of them; the rest is a cut.
    pub bytes: &'a [u8],
    /// It is the first piece of its call.
    pub starts: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpEvent {
    /// Ordinal of the request on this connection, from 0.
    pub request: u64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// The first byte of a request; so many requests began before it in the same call.
    Started {
        place: u32,
    },
    RequestHead(RequestHead),
    /// The request is over, with what its body asks for.
    RequestComplete(RequestFields),
    /// What started is no request, or its head was lost.
    NoRequest,
    /// Status line and headers; `stream`: the body is server-sent events.
    ResponseHead {
        status: u16,
        stream: bool,
    },
    /// One `data:` line of a stream. Or, with `content` false, what was read of another body of which the end is unseen.
    Chunk(ResponseFields),
    /// `data: [DONE]`.
    DoneMark,
    /// The last byte of the response; with what its body says when it is no stream.
    Complete(Option<ResponseFields>),
    /// The response's end (or all of it) was not seen; later bytes show that it is over.
    EndUnseen,
    /// Bytes are missing in its request (in) or response (out).
    Gap(Direction),
}

/// A request whose response is not over.
#[derive(Debug)]
struct Open {
    ordinal: u64,
    /// The incoming call that it started in.
    call: u64,
    method: Method,
    /// The head of its response was seen.
    answered: bool,
    /// Its response may have been in what was lost.
    doubtful: bool,
    /// Bytes of its response were seen, and no head.
    headless: bool,
    /// Nobody is told of it: its head was lost, but it will be answered.
    ghost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
}

/// The conversation on one connection.
#[derive(Debug, Default)]
pub struct Conversation {
    inbound: Inbound,
    outbound: Outbound,
    /// In order; only the first can be answered.
    open: VecDeque<Open>,
    next: u64,
    /// Incoming calls, and the requests that started in the newest.
    call: u64,
    place: u32,
    resyncs: u64,
    foreign: bool,
    /// Requests of several calls were seen to wait for one another: the client pipelines.
    pipelines: bool,
}

impl Conversation {
    /// Takes the next piece of a direction.
    pub fn push(&mut self, direction: Direction, piece: Piece<'_>, sink: &mut impl FnMut(HttpEvent)) {
        if self.foreign {
            return;
        }
        match direction {
            Direction::In => self.push_in(piece, sink),
            Direction::Out => self.push_out(piece, sink),
        }
    }

    /// Bytes of the stream are missing before the next piece; how many, if that is known.
    pub fn lost(&mut self, direction: Direction, bytes: Option<u64>, sink: &mut impl FnMut(HttpEvent)) {
        if self.foreign || bytes == Some(0) {
            return;
        }
        match direction {
            Direction::In => self.gap_in(bytes, sink),
            Direction::Out => self.lost_out(bytes, sink),
        }
    }

    /// The connection is over: a response that runs until then is complete, one that may have been lost is unseen. What is
    /// left in [`Self::pending`] after it was cut off.
    pub fn closed(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        if self.foreign {
            return;
        }
        self.close_out(sink);
        while let Some(at) = self.open.iter().position(|open| open.doubtful) {
            self.unseen(at, sink);
        }
    }

    /// The response that is bound to the request `from` (in progress, or complete by now) is `to`'s, as its id shows: `from`
    /// and those between were answered unseen. What `push` gave for `from` so far is `to`'s. False when `to` is not open.
    pub fn rebind(&mut self, from: u64, to: u64, sink: &mut impl FnMut(HttpEvent)) -> bool {
        if from >= to || !self.open.iter().any(|open| open.ordinal == to) {
            return false;
        }
        let in_progress = self.outbound.owner() == Some(from);
        // The two that seemed to wait for one another did not.
        self.pipelines = false;
        if self.open.front().is_none_or(|open| open.ordinal != from) {
            self.resyncs += 1;
            sink(HttpEvent { request: from, what: What::EndUnseen });
        }
        while self.open.front().is_some_and(|open| open.ordinal < to) {
            self.unseen(0, sink);
        }
        if in_progress {
            self.outbound.set_owner(to);
            if let Some(open) = self.open.front_mut() {
                open.answered = true;
                open.doubtful = false;
                open.headless = false;
            }
        } else {
            self.finish(to, sink);
        }
        true
    }

    /// The connection turned to another protocol (101, or CONNECT); nothing more is read.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Bytes that are held of messages, and for the requests that are open.
    pub fn held_bytes(&self) -> usize {
        self.inbound.held_bytes() + self.outbound.held_bytes() + self.open.capacity() * OPEN_BYTES
    }

    /// Lets go of what is held, as if it were missing: what was half read is not whole, and of requests that wait for one another
    /// only the newest stays open.
    pub fn drop_held(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        self.drop_in(sink);
        self.drop_out(sink);
        while self.open.len() > 1 {
            self.unseen(0, sink);
        }
        self.open.shrink_to_fit();
    }

    /// Ends that were not seen and heads that were lost.
    pub fn resyncs(&self) -> u64 {
        self.resyncs
    }

    /// The requests whose response is not over, in order.
    pub fn pending(&self) -> impl Iterator<Item = u64> + '_ {
        self.open.iter().filter(|open| !open.ghost).map(|open| open.ordinal)
    }

    /// A request starts: what was in doubt before it in an earlier call is over, for clients wait for an answer before
    /// they ask again.
    fn start(&mut self, sink: &mut impl FnMut(HttpEvent)) -> u64 {
        let call = self.call;
        if self.outbound.is_doubtful() {
            let owner = self.outbound.owner();
            let asked =
                owner.and_then(|owner| self.open.iter().find(|open| open.ordinal == owner)).map(|open| open.call);
            if asked.is_none_or(|asked| asked < call) {
                self.abandon_response(sink);
            }
        }
        while let Some(at) = self.open.iter().position(|o| o.doubtful && !o.answered && o.call < call) {
            self.unseen(at, sink);
        }
        if self.open.len() == MAX_OPEN {
            self.unseen(0, sink);
        }
        let ordinal = self.next;
        self.next += 1;
        // One is what most connections ever have, and there are many connections.
        if self.open.is_empty() {
            self.open.reserve_exact(1);
        }
        self.open.push_back(Open {
            ordinal,
            call,
            method: Method::Other,
            answered: false,
            doubtful: false,
            headless: false,
            ghost: false,
        });
        sink(HttpEvent { request: ordinal, what: What::Started { place: self.place } });
        self.place += 1;
        ordinal
    }

    /// A response's head was seen: the request it answers, if one is open.
    fn bind(&mut self, sink: &mut impl FnMut(HttpEvent)) -> Option<u64> {
        // What was lost held the answer of a request that another was asked after; a response of which only the body was
        // seen is over when the next head comes.
        while let [first, second, ..] = self.open.make_contiguous()
            && (first.headless || (first.doubtful && first.call < second.call && !self.pipelines))
        {
            self.unseen(0, sink);
        }
        let open = self.open.front_mut()?;
        open.answered = true;
        open.doubtful = false;
        Some(open.ordinal)
    }

    /// The open request at `at` ends without its response's end.
    fn unseen(&mut self, at: usize, sink: &mut impl FnMut(HttpEvent)) {
        let Some(open) = self.open.get(at) else { return };
        let ordinal = open.ordinal;
        self.finish_request(ordinal, sink);
        let ghost = self.open.get(at).is_some_and(|open| open.ghost);
        if self.outbound.owner() == Some(ordinal) {
            self.outbound.disown();
        }
        self.open.retain(|open| open.ordinal != ordinal);
        if !ghost {
            self.resyncs += 1;
            sink(HttpEvent { request: ordinal, what: What::EndUnseen });
        }
    }

    /// The response to `ordinal` is over: so is the request.
    fn finish(&mut self, ordinal: u64, sink: &mut impl FnMut(HttpEvent)) {
        self.finish_request(ordinal, sink);
        self.open.retain(|open| open.ordinal != ordinal);
    }

    fn tell(&self, ordinal: Option<u64>, what: What, sink: &mut impl FnMut(HttpEvent)) {
        let Some(request) = ordinal else { return };
        if self.open.iter().any(|open| open.ordinal == request && !open.ghost) {
            sink(HttpEvent { request, what });
        }
    }

    fn doubt_unanswered(&mut self) {
        self.open.iter_mut().filter(|open| !open.answered).for_each(|open| open.doubtful = true);
    }
}
