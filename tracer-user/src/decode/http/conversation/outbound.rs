//! The responses that go out: their heads, contents and ends.
//!
//! Invariant: a response that is going has an owner only if a request was open when its head was seen; what happens to it
//! later is told to that one alone.

use super::super::body::{Body, Progress};
use super::super::head::{Assembly, Head};
use super::super::message::{ResponseHead, parse_response};
use super::super::{starts_response, starts_status_line};
use super::{Conversation, Direction, HttpEvent, Method, Piece, What};
use crate::decode::json::{ResponseBody, ResponseFields};
use crate::decode::sse;

/// Where the outgoing direction is.
#[derive(Debug, Default)]
pub(super) enum Outbound {
    #[default]
    Idle,
    Head(Head),
    Body(Going),
}

/// A response that is going.
#[derive(Debug)]
pub(super) struct Going {
    owner: Option<u64>,
    body: Body,
    content: Content,
    /// Its end may be in what is missing.
    doubtful: bool,
    /// It has no body.
    empty: bool,
}

#[derive(Debug)]
enum Content {
    Events(sse::Lines),
    Json(Box<ResponseBody>),
}

impl Outbound {
    pub(super) fn owner(&self) -> Option<u64> {
        match self {
            Self::Body(going) => going.owner,
            _ => None,
        }
    }

    pub(super) fn set_owner(&mut self, owner: u64) {
        if let Self::Body(going) = self {
            going.owner = Some(owner);
        }
    }

    /// The response goes on without owner.
    pub(super) fn disown(&mut self) {
        if let Self::Body(going) = self {
            going.owner = None;
        }
    }

    pub(super) fn is_doubtful(&self) -> bool {
        matches!(self, Self::Body(going) if going.doubtful)
    }

    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::Idle => 0,
            Self::Head(head) => head.held_bytes(),
            Self::Body(going) => match &going.content {
                Content::Events(lines) => lines.held_bytes(),
                Content::Json(body) => body.held_bytes(),
            },
        }
    }
}

impl Conversation {
    pub(super) fn push_out(&mut self, piece: Piece<'_>, sink: &mut impl FnMut(HttpEvent)) {
        let gap = piece.len.saturating_sub(piece.bytes.len() as u64);
        if piece.starts && starts_status_line(piece.bytes) {
            // A status line starts a call: whatever came before it is over.
            match &self.outbound {
                Outbound::Idle => {}
                Outbound::Head(_) => {
                    self.headless(sink);
                    self.outbound = Outbound::Idle;
                }
                Outbound::Body(_) => self.abandon_response(sink),
            }
        }
        let mut rest = piece.bytes;
        if let Outbound::Body(going) = &mut self.outbound {
            if piece.starts && gap == 0 && going.body.misses_bytes_before(rest) {
                going.body.lose();
                self.missing(sink);
            }
            if let Outbound::Body(going) = &mut self.outbound
                && going.body.is_lost()
            {
                rest = going.body.recover(rest, piece.starts, gap == 0).map_or(&[], |at| &rest[at..]);
            }
        }
        while !rest.is_empty() {
            rest = self.step_out(rest, sink);
        }
        if gap > 0 {
            self.cut(gap, sink);
        }
    }

    /// The capture cap cut `gap` bytes off.
    fn cut(&mut self, gap: u64, sink: &mut impl FnMut(HttpEvent)) {
        let Outbound::Body(going) = &mut self.outbound else {
            if matches!(std::mem::take(&mut self.outbound), Outbound::Head(_)) {
                self.headless(sink);
            }
            return;
        };
        let over = matches!(going.body, Body::Length(left) if gap > left);
        let ended = going.body.miss(Some(gap));
        let lost = going.body.is_lost();
        self.gap_of_content(sink);
        if ended {
            self.response_complete(sink);
            if over {
                // The next response started in the cut.
                self.headless(sink);
            }
        } else if lost && let Outbound::Body(going) = &mut self.outbound {
            going.doubtful = true;
        }
    }

    pub(super) fn lost_out(&mut self, bytes: Option<u64>, sink: &mut impl FnMut(HttpEvent)) {
        // A loss that ends where the body does, at most, took nothing of the responses behind it.
        if !matches!((&self.outbound, bytes), (Outbound::Body(Going { body: Body::Length(left), .. }), Some(n)) if n <= *left)
        {
            self.doubt_unanswered();
        }
        match &mut self.outbound {
            Outbound::Idle => {}
            Outbound::Head(_) => {
                self.headless(sink);
                self.outbound = Outbound::Idle;
            }
            Outbound::Body(going) => {
                let ended = going.body.miss(bytes);
                self.missing(sink);
                if ended {
                    self.abandon_response(sink);
                }
            }
        }
    }

    /// Lets go of what is held of the response that is going.
    pub(super) fn drop_out(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        match &self.outbound {
            Outbound::Head(_) => {
                self.headless(sink);
                self.outbound = Outbound::Idle;
            }
            Outbound::Body(_) if self.outbound.held_bytes() > 0 => self.gap_of_content(sink),
            Outbound::Idle | Outbound::Body(_) => {}
        }
    }

    pub(super) fn close_out(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        match &self.outbound {
            Outbound::Body(Going { body: Body::UntilClose, .. }) => self.response_complete(sink),
            Outbound::Body(going) if going.doubtful => self.abandon_response(sink),
            _ => {}
        }
        self.outbound = Outbound::Idle;
    }

    /// The response that is going is over, and its end was not seen.
    pub(super) fn abandon_response(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        let Outbound::Body(going) = std::mem::take(&mut self.outbound) else { return };
        match going.content {
            Content::Events(mut lines) => {
                lines.gap(&mut |line| self.line(going.owner, line, sink));
            }
            Content::Json(body) => {
                // What was read of it may be all that tells whose it is.
                let fields = ResponseFields { content: false, ..body.give_up() };
                if fields != ResponseFields::default() {
                    self.tell(going.owner, What::Chunk(fields), sink);
                }
            }
        }
        if let Some(at) = going.owner.and_then(|owner| self.open.iter().position(|open| open.ordinal == owner)) {
            self.unseen(at, sink);
        }
    }

    /// Bytes that do not belong to a known response go out: the front request's is without head.
    fn headless(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        let Some(open) = self.open.front_mut() else { return };
        if !open.headless {
            open.headless = true;
            open.doubtful = true;
            let ordinal = open.ordinal;
            self.tell(Some(ordinal), What::Gap(Direction::Out), sink);
        }
    }

    /// Bytes of the response that is going are missing, and maybe its end.
    fn missing(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        if let Outbound::Body(going) = &mut self.outbound {
            going.doubtful = true;
        }
        self.gap_of_content(sink);
    }

    fn gap_of_content(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        let Outbound::Body(mut going) = std::mem::take(&mut self.outbound) else { return };
        match &mut going.content {
            Content::Events(lines) => lines.gap(&mut |line| self.line(going.owner, line, sink)),
            Content::Json(body) => body.gap(),
        }
        self.tell(going.owner, What::Gap(Direction::Out), sink);
        self.outbound = Outbound::Body(going);
    }

    /// Consumes some of `bytes` (not empty); returns what is left.
    fn step_out<'b>(&mut self, bytes: &'b [u8], sink: &mut impl FnMut(HttpEvent)) -> &'b [u8] {
        match std::mem::take(&mut self.outbound) {
            Outbound::Idle => {
                if starts_response(bytes) || b"HTTP/1.".starts_with(bytes) {
                    self.outbound = Outbound::Head(Head::default());
                    return bytes;
                }
                // The end of a response that was given up may still come.
                if !matches!(bytes, b"0\r\n\r\n" | b"\r\n") {
                    self.headless(sink);
                }
                &[]
            }
            Outbound::Head(mut head) => match head.push(bytes) {
                Assembly::More => {
                    self.outbound = Outbound::Head(head);
                    &[]
                }
                Assembly::TooLong => {
                    self.headless(sink);
                    &[]
                }
                Assembly::Whole(used) => {
                    let Some(head) = parse_response(head.bytes()) else {
                        self.headless(sink);
                        return &[];
                    };
                    self.response_head(head, sink);
                    if self.foreign { &[] } else { &bytes[used..] }
                }
            },
            Outbound::Body(mut going) => {
                let owner = going.owner;
                let content = &mut going.content;
                let progress = going.body.advance(bytes, &mut |data| match content {
                    Content::Events(lines) => lines.push(data, &mut |line| self.line(owner, line, sink)),
                    Content::Json(body) => body.push(data),
                });
                let lost = going.body.is_lost();
                self.outbound = Outbound::Body(going);
                if lost {
                    self.missing(sink);
                }
                let Progress::Ended(used) = progress else { return &[] };
                self.response_complete(sink);
                &bytes[used..]
            }
        }
    }

    fn response_head(&mut self, head: ResponseHead, sink: &mut impl FnMut(HttpEvent)) {
        // 1xx: the real response follows; but 101 is one.
        if (100..200).contains(&head.status) && head.status != 101 {
            return;
        }
        let owner = self.bind(sink);
        let method = self.open.front().filter(|_| owner.is_some()).map_or(Method::Other, |open| open.method);
        self.tell(owner, What::ResponseHead { status: head.status, stream: head.stream }, sink);
        let tunnel = method == Method::Connect && (200..300).contains(&head.status);
        self.foreign = head.status == 101 || tunnel;
        let content = if head.stream { Content::Events(sse::Lines::default()) } else { Content::Json(Box::default()) };
        let empty = self.foreign || method == Method::Head || matches!(head.body, Body::Length(0));
        let body = if empty { Body::Length(0) } else { head.body };
        self.outbound = Outbound::Body(Going { owner, body, content, doubtful: false, empty });
        if empty {
            self.response_complete(sink);
        }
    }

    /// The response that is going ended where it should.
    fn response_complete(&mut self, sink: &mut impl FnMut(HttpEvent)) {
        let Outbound::Body(going) = std::mem::take(&mut self.outbound) else { return };
        let fields = match going.content {
            Content::Events(mut lines) => {
                lines.gap(&mut |line| self.line(going.owner, line, sink));
                None
            }
            Content::Json(_) if going.empty => None,
            Content::Json(body) => Some(body.finish()),
        };
        let Some(owner) = going.owner else { return };
        let asked = self.open.iter().find(|open| open.ordinal == owner).map_or(0, |open| open.call);
        if going.doubtful {
            // What was lost lay in this response: those that wait behind it are not touched.
            self.open.iter_mut().filter(|open| !open.headless && !open.ghost).for_each(|open| open.doubtful = false);
        } else if self.open.iter().any(|open| open.call > asked) {
            self.pipelines = true;
        }
        self.finish_request(owner, sink);
        self.tell(Some(owner), What::Complete(fields), sink);
        self.finish(owner, sink);
    }

    fn line(&self, owner: Option<u64>, line: sse::Line<'_>, sink: &mut impl FnMut(HttpEvent)) {
        if line.data == b"[DONE]" {
            self.tell(owner, What::DoneMark, sink);
            return;
        }
        let mut fields = ResponseFields::read(line.data);
        fields.error |= line.event == b"error";
        self.tell(owner, What::Chunk(fields), sink);
    }
}
