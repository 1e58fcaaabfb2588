//! One made-up request: its ids, its HTTP bytes and its ADD.

use inferspan_demo_engine::http;
use inferspan_demo_engine::openai::{Choice, Identity, Kind, Usage};
use inferspan_demo_engine::wire::{Add, Sampling};
use inferspan_demo_engine::zmtp::Message;

use super::log::WALL;

/// Status line and headers of a stream, which leave alone.
pub(super) const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 02:05:02 GMT\r\nserver: uvicorn\r\n\
    content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n";

/// The first port of the clients.
const PORT: usize = 10_000;

#[derive(Debug)]
pub(super) struct Request {
    /// The API server's end of the client's connection.
    pub socket: String,
    pub engine_id: String,
    /// Tokens so far.
    pub done: u32,
    number: usize,
    stream: bool,
    identity: Identity,
    /// A token's event, the same for each.
    event: Vec<u8>,
}

/// Sixteen digits that look drawn.
fn digits(number: usize) -> u64 {
    (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Request {
    /// The request `number`, on the connection `slot`.
    pub(super) fn new(number: usize, slot: usize, stream: bool) -> Self {
        let id = format!("cmpl-{:016x}", digits(number));
        let identity = Identity { kind: Kind::Completion, id, created: WALL, model: "tiny".to_owned() };
        let event = if stream { http::event(&identity.chunk(&choice(false))) } else { Vec::new() };
        // More connections than one client's address has ports.
        let (host, port) = (1 + slot / 50_000, PORT + slot % 50_000);
        Self {
            socket: format!("TCP:[127.0.0.1:8000->10.0.0.{host}:{port}]"),
            engine_id: format!("{}-0-{:08x}", identity.id, (digits(number) >> 7) as u32),
            done: 0,
            number,
            stream,
            identity,
            event,
        }
    }

    /// Its next token: of two bytes for msgpack, as most are.
    pub(super) fn token(&self) -> u32 {
        300 + (self.number as u32 + self.done) % 1_500
    }

    /// As the `openai` package sends it.
    pub(super) fn http(&self, max_tokens: u32) -> Vec<u8> {
        let stream = if self.stream { ", \"stream\": true, \"stream_options\": {\"include_usage\": true}" } else { "" };
        let body = format!(
            "{{\"model\": \"tiny\", \"prompt\": \"what there is to say\", \"max_tokens\": {max_tokens}, \
             \"temperature\": 0.0{stream}}}"
        );
        format!(
            "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept-Encoding: gzip, deflate\r\n\
             Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n\
             User-Agent: AsyncOpenAI/Python 3.54.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Async: async:asyncio\r\n\
             Authorization: Bearer none\r\nx-stainless-retry-count: 0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    pub(super) fn add(&self, prompt: u32, max_tokens: u32, arrival: f64) -> Message {
        let sampling = Sampling { max_tokens, output_kind: if self.stream { 1 } else { 2 }, ..Sampling::default() };
        Add {
            request_id: self.engine_id.clone(),
            external_id: format!("{}-0", self.identity.id),
            prompt: (0..prompt).map(|index| 300 + index % 1_500).collect(),
            sampling: Some(sampling),
            arrival,
            client_index: 0,
        }
        .encode()
    }

    /// What is written when a token has come, write by write.
    pub(super) fn answer(&self, over: bool, prompt: u32) -> Vec<Vec<u8>> {
        let usage =
            Usage { prompt_tokens: u64::from(prompt), completion_tokens: u64::from(self.done), cached_tokens: None };
        match (self.stream, over) {
            (true, false) => vec![self.event.clone()],
            (true, true) => vec![
                http::event(&self.identity.chunk(&choice(true))),
                http::event(&self.identity.usage_chunk(usage)),
                http::event("[DONE]"),
                http::LAST_CHUNK.to_vec(),
            ],
            (false, false) => Vec::new(),
            (false, true) => {
                let mut choice = choice(true);
                choice.text = choice.text.repeat(self.done.min(10_000) as usize);
                http::json(200, &self.identity.response(&[choice], usage), true).to_vec()
            }
        }
    }
}

fn choice(over: bool) -> Choice {
    Choice { text: " word".to_owned(), finish_reason: over.then_some("length"), ..Choice::default() }
}
