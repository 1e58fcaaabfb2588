//! One HTTP request and its response: what the connection showed of it.

use super::generation::seconds;
use super::operation::Operation;
use crate::decode::http::{RequestHead, ResponseEvent};
use crate::decode::json::{RequestFields, ResponseFields};
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
    pub fields: RequestFields,
    pub status: Option<u16>,
    pub stream: Option<bool>,
    pub response_id: Option<String>,
    pub response_model: Option<String>,
    /// A choice of the answer ended by length.
    pub by_length: bool,
    pub completion_tokens: Option<u64>,
    /// The body reported an error after a 200.
    pub error: bool,
    /// First and last write that carried output.
    pub first_content: Option<EventNanos>,
    pub last_content: Option<EventNanos>,
    /// Sum over the content writes of the time since the newest output was received, ns; and how many there were.
    pub detokenize_total: u64,
    pub content_writes: u64,
    /// Last byte written so far.
    pub last_write: Option<EventNanos>,
    pub disconnected: Option<EventNanos>,
    pub ending: Option<(EventNanos, Ending)>,
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
            fields: RequestFields::default(),
            status: None,
            stream: None,
            response_id: None,
            response_model: None,
            by_length: false,
            completion_tokens: None,
            error: false,
            first_content: None,
            last_content: None,
            detokenize_total: 0,
            content_writes: 0,
            last_write: None,
            disconnected: None,
            ending: None,
            generations: Vec::new(),
            lost: false,
        }
    }

    /// The request is whole.
    pub fn request_complete(&mut self, at: EventNanos, fields: RequestFields) {
        self.complete = Some(at);
        self.fields = fields;
    }

    /// The response goes on; true when its id became known by this.
    pub fn response(&mut self, at: EventNanos, event: ResponseEvent) -> bool {
        self.last_write = Some(at);
        match event {
            ResponseEvent::Head { status, stream } => {
                self.status = Some(status);
                self.stream = Some(stream);
                false
            }
            ResponseEvent::Chunk(fields) => {
                if fields.content {
                    self.content(at);
                }
                self.fields_seen(fields)
            }
            ResponseEvent::DoneMark => false,
            ResponseEvent::Complete(fields) => {
                self.ending = Some((at, Ending::Complete));
                let Some(fields) = fields else { return false };
                self.content(at);
                self.fields_seen(fields)
            }
        }
    }

    fn content(&mut self, at: EventNanos) {
        self.first_content.get_or_insert(at);
        self.last_content = Some(at);
        self.content_writes += 1;
    }

    fn fields_seen(&mut self, fields: ResponseFields) -> bool {
        self.error |= fields.error;
        self.completion_tokens = fields.completion_tokens.or(self.completion_tokens);
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

    /// The connection ended, or its peer did.
    pub fn disconnect(&mut self, at: EventNanos) {
        self.disconnected.get_or_insert(at);
        if self.ending.is_none() {
            self.ending = Some((at, Ending::Disconnected));
        }
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
