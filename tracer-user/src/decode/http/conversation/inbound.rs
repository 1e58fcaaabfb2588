//! The requests that come in: their heads, bodies and ends.
//!
//! Invariant: at most one request is being read, the newest. A body goes on for as long as its framing says, whatever it
//! looks like; only once bytes are known to be missing, or the answer to it has begun, may a request line end it.

use super::super::body::{Body, Progress};
use super::super::head::{Assembly, Head};
use super::super::message::parse_request;
use super::super::{may_start_request, starts_request, starts_request_line};
use super::{Conversation, Direction, HttpEvent, Method, Piece, What};
use crate::decode::json::{RequestBody, RequestFields};

/// Where the incoming direction is.
#[derive(Debug)]
pub(super) enum Inbound {
    /// Between requests; `sure`: the last one's end was seen, so that any byte may start the next.
    Idle {
        sure: bool,
    },
    Head {
        ordinal: u64,
        head: Head,
    },
    Body {
        ordinal: u64,
        body: Body,
        fields: Box<RequestBody>,
        /// Bytes are missing and their number does not tell where it ends.
        doubtful: bool,
    },
    /// The request was answered before its body was read: bytes of it may come.
    Spent(Body),
}

impl Default for Inbound {
    fn default() -> Self {
        Self::Idle { sure: false }
    }
}

impl Inbound {
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::Head { head, .. } => head.held_bytes(),
            Self::Body { fields, .. } => fields.held_bytes(),
            Self::Idle { .. } | Self::Spent(_) => 0,
        }
    }

    fn body(&mut self) -> Option<&mut Body> {
        match self {
            Self::Body { body, .. } | Self::Spent(body) => Some(body),
            Self::Idle { .. } | Self::Head { .. } => None,
        }
    }
}

impl Conversation {
    pub(super) fn push_in(&mut self, piece: Piece<'_>, sink: &mut impl FnMut(HttpEvent)) {
        let gap = piece.len.saturating_sub(piece.bytes.len() as u64);
        if piece.starts {
            self.call += 1;
            self.place = 0;
            if starts_request_line(piece.bytes) {
                self.interrupt(sink);
            }
        }
        let mut rest = piece.bytes;
        if let Some(body) = self.inbound.body()
            && body.is_lost()
        {
            rest = body.recover(rest, piece.starts, gap == 0).map_or(&[], |at| &rest[at..]);
        }
        let mut at_start = piece.starts;
        while !rest.is_empty() {
            rest = self.step_in(rest, at_start, sink);
            at_start = false;
        }
        if gap > 0 {
            self.gap_in(Some(gap), sink);
        }
    }

    /// A call starts with a request line: what was being read is over, if it may be.
    fn interrupt(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        match &self.inbound {
            Inbound::Idle { .. } => {}
            Inbound::Head { .. } => self.head_lost(sink),
            Inbound::Body { ordinal, doubtful, .. } => {
                let ordinal = *ordinal;
                // An answered request that is no longer open has been finished with its response.
                if *doubtful || self.open.iter().any(|open| open.ordinal == ordinal && open.answered) {
                    self.finish_request(ordinal, sink);
                    self.inbound = Inbound::Idle { sure: false };
                }
            }
            Inbound::Spent(_) => self.inbound = Inbound::Idle { sure: false },
        }
    }

    /// Lets go of what is held of the request that is being read.
    pub(super) fn drop_in(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        match &mut self.inbound {
            Inbound::Head { .. } => self.head_lost(sink),
            Inbound::Body { ordinal, fields, .. } if fields.held_bytes() > 0 => {
                fields.gap();
                let ordinal = *ordinal;
                self.tell(Some(ordinal), What::Gap(Direction::In), sink);
            }
            Inbound::Body { .. } | Inbound::Idle { .. } | Inbound::Spent(_) => {}
        }
    }

    /// `gap` bytes are missing here.
    pub(super) fn gap_in(&mut self, gap: Option<u64>, sink: &mut impl FnMut(HttpEvent)) {
        match &mut self.inbound {
            Inbound::Idle { sure } => *sure = false,
            Inbound::Head { .. } => self.head_lost(sink),
            Inbound::Body { ordinal, body, fields, doubtful } => {
                fields.gap();
                let ordinal = *ordinal;
                let ended = body.miss(gap);
                // An exact count keeps its place.
                *doubtful |= gap.is_none() || body.is_lost();
                self.tell(Some(ordinal), What::Gap(Direction::In), sink);
                if ended {
                    self.request_complete(sink);
                    self.inbound = Inbound::Idle { sure: false };
                }
            }
            Inbound::Spent(body) => {
                if body.miss(gap) {
                    self.inbound = Inbound::Idle { sure: false };
                }
            }
        }
    }

    /// Consumes some of `bytes` (not empty); returns what is left.
    fn step_in<'b>(&mut self, bytes: &'b [u8], at_start: bool, sink: &mut impl FnMut(HttpEvent)) -> &'b [u8] {
        match &mut self.inbound {
            Inbound::Idle { sure } => {
                let weak = *sure || at_start;
                if (weak && (starts_request(bytes) || may_start_request(bytes))) || starts_request_line(bytes) {
                    let ordinal = self.start(sink);
                    self.inbound = Inbound::Head { ordinal, head: Head::default() };
                    return bytes;
                }
                // Stray CRLFs between requests are allowed (RFC 9112 section 2.2); anything else is skipped to the next call.
                match bytes {
                    [b'\r' | b'\n', rest @ ..] if weak => {
                        *sure = true;
                        rest
                    }
                    _ => {
                        *sure = false;
                        &[]
                    }
                }
            }
            Inbound::Head { head, .. } => match head.push(bytes) {
                Assembly::More if is_no_request(head.bytes()) => {
                    self.no_request(sink);
                    &[]
                }
                Assembly::More => &[],
                Assembly::TooLong => {
                    self.head_lost(sink);
                    &[]
                }
                Assembly::Whole(used) => {
                    if self.request_head(sink) {
                        &bytes[used..]
                    } else {
                        &[]
                    }
                }
            },
            Inbound::Body { ordinal, body, fields, doubtful } => {
                let ordinal = *ordinal;
                let progress = body.advance(bytes, &mut |data| fields.push(data));
                if body.is_lost() && !*doubtful {
                    *doubtful = true;
                    fields.gap();
                    self.tell(Some(ordinal), What::Gap(Direction::In), sink);
                }
                let Progress::Ended(used) = progress else { return &[] };
                self.request_complete(sink);
                &bytes[used..]
            }
            Inbound::Spent(body) => {
                let Progress::Ended(used) = body.advance(bytes, &mut |_| {}) else { return &[] };
                self.inbound = Inbound::Idle { sure: true };
                &bytes[used..]
            }
        }
    }

    /// The head is whole; false when it is none.
    fn request_head(&mut self, sink: &mut impl FnMut(HttpEvent)) -> bool {
        let Inbound::Head { ordinal, head } = std::mem::take(&mut self.inbound) else { return false };
        let Some((head, body)) = parse_request(head.bytes()) else {
            self.inbound = Inbound::Head { ordinal, head };
            self.head_lost(sink);
            return false;
        };
        if let Some(open) = self.open.iter_mut().find(|open| open.ordinal == ordinal) {
            open.method = match head.method.as_str() {
                "HEAD" => Method::Head,
                "CONNECT" => Method::Connect,
                _ => Method::Other,
            };
        }
        self.tell(Some(ordinal), What::RequestHead(head), sink);
        if let Some(body) = body {
            self.inbound = Inbound::Body { ordinal, body, fields: Box::default(), doubtful: false };
        } else {
            self.inbound = Inbound::Idle { sure: true };
            let fields = RequestFields { whole: true, ..RequestFields::default() };
            self.tell(Some(ordinal), What::RequestComplete(fields), sink);
        }
        true
    }

    /// The body being read is over.
    fn request_complete(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        match std::mem::replace(&mut self.inbound, Inbound::Idle { sure: true }) {
            Inbound::Body { ordinal, fields, .. } => {
                self.tell(Some(ordinal), What::RequestComplete(fields.finish()), sink);
            }
            other => self.inbound = other,
        }
    }

    /// The request `ordinal` is over although it is still being read: its response is.
    pub(super) fn finish_request(&mut self, ordinal: u64, sink: &mut impl FnMut(HttpEvent)) {
        match std::mem::take(&mut self.inbound) {
            Inbound::Body { ordinal: reading, body, mut fields, .. } if reading == ordinal => {
                fields.gap();
                self.tell(Some(ordinal), What::Gap(Direction::In), sink);
                self.tell(Some(ordinal), What::RequestComplete(fields.finish()), sink);
                self.inbound = Inbound::Spent(body);
            }
            Inbound::Head { ordinal: reading, head } if reading == ordinal => {
                self.inbound = Inbound::Head { ordinal, head };
                self.head_lost(sink);
            }
            other => self.inbound = other,
        }
    }

    /// What started is a request, and its head is lost: it keeps its place, for it will be answered.
    fn head_lost(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        let Inbound::Head { ordinal, .. } = std::mem::take(&mut self.inbound) else { return };
        self.resyncs += 1;
        self.tell(Some(ordinal), What::NoRequest, sink);
        if let Some(open) = self.open.iter_mut().find(|open| open.ordinal == ordinal) {
            open.ghost = true;
            // Should it be none after all, the next request is not kept waiting by it.
            open.doubtful = true;
        }
    }

    /// What started is no request.
    fn no_request(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        let Inbound::Head { ordinal, .. } = std::mem::take(&mut self.inbound) else { return };
        self.tell(Some(ordinal), What::NoRequest, sink);
        self.open.retain(|open| open.ordinal != ordinal);
    }
}

/// Whether what was taken for the start of a request shows by its first line that it is none.
fn is_no_request(head: &[u8]) -> bool {
    if memchr::memchr(b'\n', head).is_some() {
        return !starts_request_line(head);
    }
    !starts_request(head) && !may_start_request(head)
}
