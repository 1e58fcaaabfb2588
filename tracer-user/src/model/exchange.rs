//! One HTTP request and its response: what the connection showed of it.

use super::blocked::Blocked;
use super::generation::seconds;
use crate::decode::http::RequestHead;
use crate::decode::json::{RequestFields, ResponseFields};
use crate::engine::Operation;
use crate::input::{End, EventNanos};

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The last byte of the response was written.
    Complete,
    /// The client went away first.
    Disconnected,
    /// It went quiet after its engine requests were cancelled; the log shows no close.
    Cancelled,
    /// The server closed the connection, and the client had not.
    ServerClosed,
    /// The server's process ended.
    ServerExited,
    /// It is over, as what came later on the connection shows, and how was not seen.
    Unseen,
}

impl Ending {
    /// The client went away, as far as is known.
    pub fn is_clients(self) -> bool {
        matches!(self, Self::Disconnected | Self::Cancelled)
    }

    /// The server gave up.
    pub fn is_servers(self) -> bool {
        matches!(self, Self::ServerClosed | Self::ServerExited)
    }
}

/// What the response says of the tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Exchange {
    pub end: End,
    /// The front end's process; 0 when not known.
    pub process: u32,
    /// First request byte read.
    pub started: EventNanos,
    /// How many requests before it started in the same call.
    pub place: u32,
    pub head: RequestHead,
    pub operation: &'static Operation,
    /// Last request byte read.
    pub complete: Option<EventNanos>,
    /// When the response to the request before it on the connection ended, where that was later: a server answers in order.
    pub waited_until: Option<EventNanos>,
    pub fields: RequestFields,
    pub status: Option<u16>,
    pub stream: Option<bool>,
    pub response_id: Option<String>,
    pub response_model: Option<String>,
    /// A choice of the answer ended by length.
    pub by_length: bool,
    pub usage: Usage,
    /// The body reported an error after a 200.
    pub error: bool,
    /// First and last write that carried output.
    pub first_content: Option<EventNanos>,
    pub last_content: Option<EventNanos>,
    /// First and last write that carried the model's words.
    pub first_text: Option<EventNanos>,
    pub last_text: Option<EventNanos>,
    /// Sum over the content writes of the time since the newest output was received, ns; and how many there were.
    pub detokenize_total: u64,
    pub content_writes: u64,
    /// The content write up to which `detokenize_total` counts.
    pub counted_until: Option<EventNanos>,
    /// Last byte written so far.
    pub last_write: Option<EventNanos>,
    /// Its client took no more bytes.
    pub blocked: Blocked,
    pub disconnected: Option<EventNanos>,
    pub ending: Option<(EventNanos, Ending)>,
    /// When an end that was not seen was noticed.
    pub noticed: EventNanos,
    /// Its engine requests, in the order they were sent.
    pub generations: Vec<u64>,
    /// Records were lost while it was open.
    pub lost: bool,
}

impl Exchange {
    pub fn new(end: End, process: u32, started: EventNanos, head: RequestHead, operation: &'static Operation) -> Self {
        Self {
            end,
            process,
            started,
            place: 0,
            head,
            operation,
            complete: None,
            waited_until: None,
            fields: RequestFields::default(),
            status: None,
            stream: None,
            response_id: None,
            response_model: None,
            by_length: false,
            usage: Usage::default(),
            error: false,
            first_content: None,
            last_content: None,
            first_text: None,
            last_text: None,
            detokenize_total: 0,
            content_writes: 0,
            counted_until: None,
            last_write: None,
            blocked: Blocked::default(),
            disconnected: None,
            ending: None,
            noticed: 0,
            generations: Vec::new(),
            lost: false,
        }
    }

    /// Bytes that it takes, without its engine requests.
    pub fn held_bytes(&self) -> usize {
        let texts = [&self.head.request_id, &self.head.traceparent, &self.head.tracestate, &self.fields.model];
        let learned = [&self.fields.request_id, &self.response_id, &self.response_model];
        let text = |text: &&Option<String>| text.as_ref().map_or(0, String::capacity);
        size_of::<Self>()
            + self.head.method.capacity()
            + self.head.path.capacity()
            + self.blocked.held_bytes()
            + texts.iter().chain(&learned).map(text).sum::<usize>()
    }

    /// The request is whole.
    pub fn request_complete(&mut self, at: EventNanos, fields: RequestFields) {
        self.complete = Some(at);
        self.fields = fields;
    }

    /// The response began.
    pub fn response_head(&mut self, at: EventNanos, status: u16, stream: bool) {
        self.last_write = Some(at);
        self.status = Some(status);
        self.stream = Some(stream);
    }

    /// A chunk of a stream was written; true when the response's id became known by it.
    pub fn chunk(&mut self, at: EventNanos, fields: ResponseFields) -> bool {
        self.last_write = Some(at);
        if fields.content {
            self.content(at);
        }
        if fields.texts > 0 {
            self.first_text.get_or_insert(at);
            self.last_text = Some(at);
        }
        self.fields_seen(fields)
    }

    /// The response is whole; true when its id became known by this.
    pub fn response_complete(&mut self, at: EventNanos, fields: Option<ResponseFields>) -> bool {
        self.last_write = Some(at);
        self.blocked.ends(at);
        self.ending = Some((at, Ending::Complete));
        let Some(fields) = fields else { return false };
        self.content(at);
        self.fields_seen(fields)
    }

    fn content(&mut self, at: EventNanos) {
        self.first_content.get_or_insert(at);
        self.last_content = Some(at);
        self.content_writes += 1;
    }

    fn fields_seen(&mut self, fields: ResponseFields) -> bool {
        self.error |= fields.error;
        self.usage.completion_tokens = fields.completion_tokens.or(self.usage.completion_tokens);
        self.usage.prompt_tokens = fields.prompt_tokens.or(self.usage.prompt_tokens);
        self.usage.cached_tokens = fields.cached_tokens.or(self.usage.cached_tokens);
        self.by_length |= fields.finish_reasons.iter().any(|reason| reason == "length");
        if self.response_model.is_none() {
            self.response_model = fields.model;
        }
        let learned = self.response_id.is_none() && fields.id.is_some() && !fields.error;
        if learned {
            self.response_id = fields.id;
        }
        learned
    }

    /// The connection is over with the response under way: the client's doing when it was seen leaving, else `ending`.
    pub fn close(&mut self, at: EventNanos, ending: Ending) {
        let ending = if self.disconnected.is_some() { Ending::Disconnected } else { ending };
        self.blocked.ends(at);
        self.ending.get_or_insert((at, ending));
    }

    /// When the server could take it up: it was whole, and those before it on the connection were answered.
    pub fn ready(&self) -> Option<EventNanos> {
        let complete = self.complete?;
        Some(self.waited_until.map_or(complete, |at| at.max(complete)))
    }

    /// How long it was whole while those before it on its connection were not answered, ns; nothing where they were.
    pub fn waited(&self) -> Option<u64> {
        self.ready()?.checked_sub(self.complete?).filter(|waited| *waited > 0)
    }

    /// The id that its engine requests' external ids are made of, when the client chose it.
    pub fn chosen_id(&self) -> Option<String> {
        let base = self.head.request_id.as_ref().or(self.fields.request_id.as_ref())?;
        Some(format!("{}{base}", self.operation.id_prefix?))
    }

    /// Whether a client could have asked this exchange for the engine request `external` by its kind.
    pub fn kind_fits(&self, external: &str) -> bool {
        self.operation.id_prefix.is_none_or(|prefix| external.starts_with(prefix))
    }

    /// First request byte → last response byte, seconds.
    pub fn e2e_seconds(&self) -> Option<f64> {
        seconds(self.started, self.ending?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static CHAT: Operation = Operation { name: "chat", route: "/v1/chat/completions", id_prefix: Some("chatcmpl-") };

    fn exchange(started: EventNanos) -> Exchange {
        Exchange::new(End(1), 7, started, RequestHead::default(), &CHAT)
    }

    fn fields(id: Option<&str>) -> ResponseFields {
        ResponseFields { id: id.map(str::to_owned), ..ResponseFields::default() }
    }

    #[test]
    fn the_first_id_that_a_response_shows_is_its_own() {
        // role (no id) ─ words with an id ─ words with another one ─ an error never names it
        let mut one = exchange(10);
        assert!(!one.chunk(20, fields(None)));
        assert!(one.chunk(21, fields(Some("chatcmpl-a"))));
        assert!(!one.chunk(22, fields(Some("chatcmpl-b"))));
        assert_eq!((one.response_id.as_deref(), one.last_write), (Some("chatcmpl-a"), Some(22)));
        let mut failed = exchange(10);
        assert!(!failed.chunk(20, ResponseFields { error: true, ..fields(Some("chatcmpl-a")) }));
        assert_eq!((failed.response_id, failed.error), (None, true));
    }

    #[test]
    fn content_and_words_are_told_apart() {
        // role 20 (content, no words) ─ words 30, 40 ─ usage 50 (neither)
        let mut one = exchange(10);
        let content = |texts| ResponseFields { content: true, texts, ..fields(None) };
        one.chunk(20, content(0));
        one.chunk(30, content(1));
        one.chunk(40, content(2));
        one.chunk(50, ResponseFields { completion_tokens: Some(2), ..fields(None) });
        assert_eq!((one.first_content, one.last_content, one.content_writes), (Some(20), Some(40), 3));
        assert_eq!((one.first_text, one.last_text, one.last_write), (Some(30), Some(40), Some(50)));
        assert_eq!(one.usage.completion_tokens, Some(2));
    }

    #[test]
    fn a_close_ends_it_once_and_by_the_client_where_that_was_seen_leaving() {
        let close = |disconnected: Option<u64>, before: Option<(u64, Ending)>| {
            let mut one = exchange(10);
            (one.disconnected, one.ending) = (disconnected, before);
            one.close(90, Ending::ServerExited);
            one.ending
        };
        assert_eq!(close(None, None), Some((90, Ending::ServerExited)));
        assert_eq!(close(Some(50), None), Some((90, Ending::Disconnected)));
        assert_eq!(close(Some(50), Some((40, Ending::Complete))), Some((40, Ending::Complete)));
    }

    #[test]
    fn an_id_that_the_client_chose_counts_from_the_head_or_the_body() {
        let mut one = exchange(10);
        assert_eq!(one.chosen_id(), None);
        one.request_complete(20, RequestFields { request_id: Some("body".into()), ..RequestFields::default() });
        assert_eq!(one.chosen_id().as_deref(), Some("chatcmpl-body"));
        one.head.request_id = Some("head".into());
        assert_eq!(one.chosen_id().as_deref(), Some("chatcmpl-head"));
        assert!(one.kind_fits("chatcmpl-x") && !one.kind_fits("cmpl-x"));
    }

    #[test]
    fn times_at_both_ends_of_the_clock_give_a_time_or_none() {
        for (started, ended, seconds) in [(u64::MAX, 0, None), (0, u64::MAX, Some(u64::MAX as f64 / 1e9))] {
            let mut one = exchange(started);
            (one.complete, one.waited_until) = (Some(started), Some(ended));
            one.close(ended, Ending::ServerClosed);
            assert_eq!((one.e2e_seconds(), one.ready()), (seconds, Some(u64::MAX)));
        }
    }
}
