//! The kinds of requests of a mixed load, and how each is sent and judged.

use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::{Client, Random, Response, Sent};

/// Starts every request that is to hit a stop string.
pub(super) const STOP_PROMPT: &str = "Tell me a long story about the sea";
/// 4 KB that several requests share as their beginning, so that the prefix cache has something to find.
const SHARED_WORDS: usize = 90;

macro_rules! kinds {
    ($($(#[doc = $help:literal])+ $kind:ident = $name:literal),* $(,)?) => {
        /// A kind of request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum Kind { $($(#[doc = $help])+ #[serde(rename = $name)] $kind),* }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }

            /// One line of help.
            pub fn help(self) -> &'static str {
                match self { $(Self::$kind => concat!($($help),+)),* }
            }
        }
    };
}

kinds! {
    /// a completion, answered at once
    Completion = "completion",
    /// a streaming completion
    CompletionStream = "completion_stream",
    /// a chat, answered at once
    Chat = "chat",
    /// a streaming chat
    ChatStream = "chat_stream",
    /// a completion with n=2
    Two = "completion_n2",
    /// a streaming chat with n=2
    TwoStream = "chat_n2_stream",
    /// a list of prompts
    List = "prompt_list",
    /// a prompt of token ids
    Tokens = "prompt_tokens",
    /// a prompt that shares its beginning with others
    Shared = "shared_prefix",
    /// a long prompt of its own and a long answer, streaming
    Long = "long_stream",
    /// a stop string that occurs
    Stop = "stop_string",
    /// the same, streaming
    StopStream = "stop_string_stream",
    /// a stream that its client leaves
    AbortStream = "abort_stream",
    /// an answer that its client does not wait for
    AbortWait = "abort_wait",
    /// a model that is not there (404)
    UnknownModel = "unknown_model",
    /// a body that is no JSON (400)
    BadJson = "bad_json",
    /// a prompt that does not fit (400)
    TooLong = "too_long",
    /// a request written in pieces
    Split = "split_write",
    /// two requests in one write
    Pipelined = "pipelined",
    /// embeddings (not on a model that only generates)
    Embedding = "embedding",
    /// requests that are no generation: /health, /v1/models, /tokenize
    Noise = "noise",
}

impl Kind {
    /// What a model that only generates answers.
    pub fn generating() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|kind| *kind != Self::Embedding).collect()
    }
}

/// One client's side of the load.
pub(super) struct Session {
    client: Client,
    model: String,
    stop: String,
    random: Random,
    seed: u64,
    count: u64,
}

/// A request about to be sent.
struct Draft {
    kind: Kind,
    path: &'static str,
    body: String,
    stream: bool,
    generations: usize,
    request_id: Option<String>,
    trace: Option<(String, String)>,
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Session {
    pub(super) fn new(url: &str, model: &str, stop: &str, seed: u64) -> Self {
        let client = Client::new(url);
        Self { client, model: model.to_owned(), stop: stop.to_owned(), random: Random::new(seed), seed, count: 0 }
    }

    /// Sends one request (two when pipelined) and reads the answer.
    pub(super) fn perform(&mut self, kind: Kind) -> io::Result<Vec<Sent>> {
        // Clients of the real world pause, and hang up now and then.
        std::thread::sleep(Duration::from_millis(self.random.within(0..20)));
        if self.random.one_in(4) {
            self.client.hang_up();
        }
        match kind {
            Kind::Noise => self.noise().map(|()| Vec::new()),
            Kind::AbortStream => self.abort_stream().map(|sent| vec![sent]),
            Kind::AbortWait => self.abort_wait().map(|sent| vec![sent]),
            Kind::Pipelined => self.pipelined(),
            _ => {
                let draft = self.draft(kind);
                let bytes = self.bytes(&draft);
                let start = Instant::now();
                if kind == Kind::Split {
                    // Anywhere, and often within the request line.
                    let most = if self.random.one_in(2) { 12 } else { bytes.len() as u64 };
                    let cut = self.random.within(1..most) as usize;
                    let later = cut + (bytes.len() - cut) / 2;
                    self.client.send(&[&bytes[..cut], &bytes[cut..later], &bytes[later..]])?;
                } else {
                    self.client.send(&[&bytes])?;
                }
                self.answer(draft, start).map(|sent| vec![sent])
            }
        }
    }

    /// One long greedy answer: its text, and the request.
    pub(super) fn probe(&mut self) -> io::Result<(String, Sent)> {
        let mut draft = self.draft(Kind::Completion);
        draft.body = json!({"model": self.model, "prompt": STOP_PROMPT, "max_tokens": 48, "temperature": 0,
            "ignore_eos": true})
        .to_string();
        let start = Instant::now();
        let response = self.client.exchange(&self.bytes(&draft))?;
        let mut seen = Seen::default();
        seen.body(&response.body);
        let body: Value = serde_json::from_str(&response.body).unwrap_or_default();
        let text = body["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
        Ok((text, draft.sent(Some(&response), seen, start, false)))
    }

    fn words(&mut self, count: u64) -> String {
        const WORDS: [&str; 12] =
            ["the", "license", "of", "this", "server", "waits", "for", "every", "token", "import", "return", "under"];
        let words: Vec<&str> = (0..count).map(|_| WORDS[self.random.within(0..12) as usize]).collect();
        words.join(" ")
    }

    fn draft(&mut self, kind: Kind) -> Draft {
        self.count += 1;
        let mut generations = 1;
        let chat = matches!(kind, Kind::Chat | Kind::ChatStream | Kind::TwoStream);
        let stream = matches!(
            kind,
            Kind::CompletionStream
                | Kind::ChatStream
                | Kind::TwoStream
                | Kind::Long
                | Kind::StopStream
                | Kind::AbortStream
        );
        let count = self.random.within(2..20);
        let text = self.words(count);
        let temperature = if self.random.one_in(2) { 0.0 } else { 0.8 };
        let mut body = json!({"model": self.model, "max_tokens": self.random.within(1..40), "temperature": temperature,
            "ignore_eos": !self.random.one_in(3)});
        if chat {
            body["messages"] = json!([{"role": "user", "content": text}]);
        } else {
            body["prompt"] = json!(text);
        }
        if stream {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
        }
        generations = self.vary(kind, &text, count, &mut body).unwrap_or(generations);
        let mut body = body.to_string();
        if kind == Kind::BadJson {
            body.truncate(body.len() / 2);
            generations = 0;
        }
        if matches!(kind, Kind::UnknownModel | Kind::TooLong) {
            generations = 0;
        }
        let (named, traced) = (!self.random.one_in(4), self.random.one_in(2));
        let path = match kind {
            _ if chat => "/v1/chat/completions",
            Kind::Embedding => "/v1/embeddings",
            _ => "/v1/completions",
        };
        Draft {
            kind,
            path,
            body,
            stream,
            generations,
            request_id: named.then(|| format!("rid-{}-{}", self.seed, self.count)),
            trace: traced.then(|| {
                let id = u128::from(self.random.number()) << 64 | u128::from(self.random.number() | 1);
                (format!("{id:032x}"), format!("{:016x}", self.random.number() | 1))
            }),
        }
    }

    /// What a kind asks for besides; its engine requests, where that is not one.
    fn vary(&mut self, kind: Kind, text: &str, count: u64, body: &mut Value) -> Option<usize> {
        match kind {
            Kind::Two | Kind::TwoStream => {
                body["n"] = json!(2);
                body["temperature"] = json!(0.8);
            }
            Kind::List => {
                body["prompt"] = json!([text, self.words(4), "one more"]);
            }
            Kind::Tokens => {
                let ids: Vec<u64> = (0..count).map(|_| self.random.within(300..2000)).collect();
                body["prompt"] = json!(ids);
            }
            Kind::Shared => {
                let shared = Session::new("", "", "", 1).words(SHARED_WORDS as u64);
                body["prompt"] = json!(format!("{shared} {text}"));
            }
            Kind::Long => {
                body["prompt"] = json!(self.words(60));
                body["max_tokens"] = json!(self.random.within(80..140));
                body["ignore_eos"] = json!(true);
            }
            Kind::Stop | Kind::StopStream => {
                body["prompt"] = json!(STOP_PROMPT);
                body["max_tokens"] = json!(120);
                body["temperature"] = json!(0);
                body["ignore_eos"] = json!(true);
                body["stop"] = json!([self.stop, "\u{0}never said"]);
            }
            Kind::AbortStream | Kind::AbortWait => {
                body["max_tokens"] = json!(400);
                body["ignore_eos"] = json!(true);
            }
            Kind::UnknownModel => body["model"] = json!("no-such-model"),
            Kind::TooLong => body["prompt"] = json!(self.words(2000)),
            Kind::Embedding => *body = json!({"model": self.model, "input": text}),
            _ => {}
        }
        match kind {
            Kind::Two | Kind::TwoStream => Some(2),
            Kind::List => Some(3),
            _ => None,
        }
    }

    fn bytes(&self, draft: &Draft) -> Vec<u8> {
        let traceparent = draft.trace.as_ref().map(|(trace, span)| format!("00-{trace}-{span}-01"));
        let mut headers = Vec::new();
        if let Some(id) = &draft.request_id {
            headers.push(("X-Request-Id", id.as_str()));
        }
        if let Some(traceparent) = &traceparent {
            headers.push(("traceparent", traceparent.as_str()));
        }
        self.client.request("POST", draft.path, &headers, &draft.body)
    }

    /// Reads the answer and holds it against what the kind asks for.
    fn answer(&mut self, draft: Draft, start: Instant) -> io::Result<Sent> {
        let mut seen = Seen::default();
        let response = self.client.receive(&mut |event| {
            seen.event(event);
            ControlFlow::Continue(())
        })?;
        if !draft.stream || response.status != 200 {
            seen.body(&response.body);
        }
        let expected = match draft.kind {
            Kind::UnknownModel => 404,
            Kind::BadJson | Kind::TooLong => 400,
            _ => 200,
        };
        if response.status != expected || !response.whole {
            return Err(wrong(format!("expected {expected}, got {response:?}")));
        }
        let reasons = seen.finish_reasons.len();
        if expected == 200 && draft.kind != Kind::Embedding && reasons != draft.generations {
            return Err(wrong(format!("{reasons} finish reasons for {} generations: {response:?}", draft.generations)));
        }
        Ok(draft.sent(Some(&response), seen, start, false))
    }

    /// Reads some events, then leaves.
    fn abort_stream(&mut self) -> io::Result<Sent> {
        let draft = self.draft(Kind::AbortStream);
        let wanted = self.random.within(1..12);
        let bytes = self.bytes(&draft);
        let start = Instant::now();
        self.client.send(&[&bytes])?;
        let mut seen = Seen::default();
        let response = self.client.receive(&mut |event| {
            seen.event(event);
            if seen.events >= wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.client.hang_up();
        if response.status != 200 || response.whole {
            return Err(wrong(format!("the stream was over before it was left: {response:?}")));
        }
        Ok(draft.sent(Some(&response), seen, start, true))
    }

    /// Waits a moment, then leaves without an answer.
    fn abort_wait(&mut self) -> io::Result<Sent> {
        let draft = self.draft(Kind::AbortWait);
        let bytes = self.bytes(&draft);
        let start = Instant::now();
        self.client.send(&[&bytes])?;
        std::thread::sleep(Duration::from_millis(self.random.within(40..160)));
        self.client.hang_up();
        Ok(draft.sent(None, Seen::default(), start, true))
    }

    /// Two requests in one write, answered in order.
    fn pipelined(&mut self) -> io::Result<Vec<Sent>> {
        let mut first = self.draft(Kind::Completion);
        let mut second = self.draft(Kind::Chat);
        first.kind = Kind::Pipelined;
        second.kind = Kind::Pipelined;
        let bytes = [self.bytes(&first), self.bytes(&second)].concat();
        let start = Instant::now();
        self.client.send(&[&bytes])?;
        Ok(vec![self.answer(first, start)?, self.answer(second, start)?])
    }

    fn noise(&mut self) -> io::Result<()> {
        let requests = [
            self.client.request("GET", "/health", &[], ""),
            self.client.request("GET", "/v1/models", &[], ""),
            self.client.request("POST", "/tokenize", &[], &json!({"model": self.model, "prompt": "a b"}).to_string()),
        ];
        for request in requests {
            let response = self.client.exchange(&request)?;
            if response.status != 200 {
                return Err(wrong(format!("expected 200, got {response:?}")));
            }
        }
        Ok(())
    }
}

/// What a response said.
#[derive(Debug, Default)]
struct Seen {
    id: Option<String>,
    finish_reasons: Vec<String>,
    usage: Option<Value>,
    events: u64,
}

impl Seen {
    fn event(&mut self, data: &str) {
        let value: Value = serde_json::from_str(data).unwrap_or_default();
        // The chunk that opens a chat has a role and no token.
        if value["choices"][0]["delta"]["role"].is_null() && value["choices"][0].is_object() {
            self.events += 1;
        }
        self.value(&value);
    }

    fn body(&mut self, body: &str) {
        self.value(&serde_json::from_str(body).unwrap_or_default());
    }

    fn value(&mut self, value: &Value) {
        if let Some(id) = value["id"].as_str() {
            self.id = Some(id.to_owned());
        }
        for choice in value["choices"].as_array().into_iter().flatten() {
            self.finish_reasons.extend(choice["finish_reason"].as_str().map(str::to_owned));
        }
        if value["usage"].is_object() {
            self.usage = Some(value["usage"].clone());
        }
    }
}

impl Draft {
    fn sent(self, response: Option<&Response>, seen: Seen, start: Instant, aborted: bool) -> Sent {
        let usage = |key: &str| seen.usage.as_ref().and_then(|usage| usage[key].as_u64());
        Sent {
            kind: self.kind,
            method: "POST",
            path: self.path,
            request_id: self.request_id,
            trace: self.trace,
            stream: self.stream,
            status: response.map(|response| response.status),
            prompt_tokens: usage("prompt_tokens"),
            completion_tokens: usage("completion_tokens"),
            cached_tokens: seen.usage.as_ref().and_then(|u| u["prompt_tokens_details"]["cached_tokens"].as_u64()),
            id: seen.id,
            finish_reasons: seen.finish_reasons,
            generations: self.generations,
            events: seen.events,
            started: super::wall() - start.elapsed().as_secs_f64(),
            ttft: response.and_then(|response| response.first_byte).map(|first| first.as_secs_f64()),
            e2e: start.elapsed().as_secs_f64(),
            aborted,
        }
    }
}
