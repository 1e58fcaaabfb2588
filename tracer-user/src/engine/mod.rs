//! What is known of each engine: its processes, its routes, its messages and its ids.
//!
//! Enters: command lines, paths, whole messages, ids. Leaves: what they are, in words that every engine shares ([`process`],
//! [`EngineMessage`], [`Identity`]). A folder an engine and a line in [`ENGINES`]; nothing outside this room knows an engine's
//! layouts. Refused: a message whose shape is not known is [`EngineMessage::Other`], never a guess. Pure.

pub mod openai;
pub mod process;
pub mod vllm;

use std::path::Path;

use serde::{Deserialize, Serialize};

use self::process::{Invocation, Launch, Program, Title};
use crate::decode::zmtp::Message;

/// Every engine. The first one that recognises a process has it; the first of all is meant where nothing says which.
pub static ENGINES: [&dyn Engine; 2] = [&vllm::Vllm, &openai::OpenAi];

/// The engine with this name; the first one where there is none.
pub fn by_name(name: &str) -> &'static dyn Engine {
    ENGINES.into_iter().find(|engine| engine.name() == name).unwrap_or(ENGINES[0])
}

/// What a process is by its title, whichever engine gave it.
pub fn title(first_argument: &str, comm: &str) -> Option<Title> {
    ENGINES.into_iter().find_map(|engine| engine.title(first_argument, comm))
}

/// Whose message it is, and what it says: the first engine's that makes sense of it.
pub fn decode(message: &Message) -> Option<(&'static dyn Engine, EngineMessage)> {
    let mut said = ENGINES.into_iter().map(|engine| (engine, engine.decode(message)));
    said.find(|(_, said)| !matches!(said, EngineMessage::Other | EngineMessage::Unreadable))
}

/// Knows one engine.
pub trait Engine: std::fmt::Debug + Send + Sync {
    /// `gen_ai.provider.name`, and the service's name where it has none of its own.
    fn name(&self) -> &'static str;

    /// What a process is by its command line; `None` when that is not this engine's.
    fn program(&self, invocation: &Invocation<'_>) -> Option<Program>;

    /// The options of a program of somebody's own that takes this engine's.
    fn options(&self, words: &[&str]) -> Launch;

    /// What a process is by its title: its first argument, and its name in the kernel, which is cut.
    fn title(&self, _first_argument: &str, _comm: &str) -> Option<Title> {
        None
    }

    /// Whether a mapped file is a library of the engine's own, which with ZeroMQ's threads makes a server of any Python program.
    fn is_library(&self, _path: &Path) -> bool {
        false
    }

    /// Its Python package, whose version is its own.
    fn package(&self) -> Option<Package> {
        None
    }

    /// The oldest version that is read, when there is one (major, minor).
    fn oldest(&self) -> Option<(u32, u32)> {
        None
    }

    /// Front ends and engines are processes that send each other messages that are read here.
    fn has_messages(&self) -> bool;

    /// The operation that `method path` asks for; `None` for everything that does not generate.
    fn operation(&self, method: &str, path: &str) -> Option<&'static Operation>;

    /// Whether a piece of a call, `len` bytes of the stream that begin with `bytes`, starts what carries its messages.
    fn starts_message(&self, _len: u64, _bytes: &[u8]) -> bool {
        false
    }

    fn decode(&self, _message: &Message) -> EngineMessage {
        EngineMessage::Other
    }

    /// What the ids of an engine request say: the engine's own, and the one that it was sent with, where that is known.
    fn identify(&self, id: &str, external: Option<&str>) -> Identity;
}

/// A Python package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    /// The distributions that hold it, in order of preference.
    pub distributions: &'static [&'static str],
}

/// An endpoint that makes the model work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// `gen_ai.operation.name`: the semantic convention's word where it has one.
    pub name: &'static str,
    /// `http.route`.
    pub route: &'static str,
    /// What its response ids start with, if anything fixed.
    pub id_prefix: Option<&'static str>,
}

/// How an engine request belongs to a response, as its ids say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The id that it was sent with; the samples of one prompt share it.
    pub external: String,
    /// Which of several samples of its prompt.
    pub sample: Option<u32>,
    /// The response ids that it may belong to, and which of the response's prompts it then is.
    pub responses: Vec<(String, Option<u32>)>,
    /// The id that a client sees, when no response showed it.
    pub client: String,
    /// What the engine requests of one beam search share.
    pub search: Option<String>,
}

impl Identity {
    /// Bytes that its texts take.
    pub fn held_bytes(&self) -> usize {
        let search = self.search.as_ref().map_or(0, String::capacity);
        let responses: usize = self.responses.iter().map(|(id, _)| size_of::<(String, u64)>() + id.capacity()).sum();
        self.external.capacity() + self.client.capacity() + search + responses
    }

    /// Which prompt of the response `response` it is, when that has several.
    pub fn prompt_of(&self, response: &str) -> Option<u32> {
        self.responses.iter().find(|(id, _)| id == response).and_then(|(_, prompt)| *prompt)
    }
}

/// What an engine and its front ends tell each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EngineMessage {
    /// Front end → engine: run this.
    Add(Add),
    /// Front end → engine: forget these.
    Abort(Vec<String>),
    /// Engine → front end: what a step gave.
    Outputs(Outputs),
    /// Engine → front end: it died.
    Dead,
    /// Engine → front end at start-up: who it is.
    Ready {
        version: Option<String>,
    },
    /// Known by its start, and its rest makes no sense.
    Unreadable,
    Other,
}

/// A request for the engine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Add {
    /// The engine's own id, unique while it runs.
    pub id: String,
    /// The id that the front end derives the response's id from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// When the front end took the request up, unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrival: Option<f64>,
    /// `arrival` was stamped before tokenising (docs/support-matrix.md says by which versions); otherwise after, or not known.
    pub arrival_before_tokenizing: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Its output is to be of a grammar: a JSON schema, a regular expression, a choice.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub structured_output: bool,
    /// W3C trace context that the front end passed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The message was cut; fields at its end are missing.
    pub cut: bool,
}

/// One message of an engine to one front end, after one step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outputs {
    /// Engine index (data-parallel rank).
    pub engine: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<RequestOutput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<SchedulerStats>,
    /// Engine clock (`time.monotonic()`), seconds; `None` when the message was cut before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<f64>,
    /// It answers a utility call and belongs to no step.
    pub utility: bool,
    /// Requests of the step that are not in `outputs`, or only in part, because the message was cut.
    pub missing: u64,
}

/// What a step gave for one request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestOutput {
    pub id: String,
    /// Tokens generated.
    pub tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish: Option<FinishReason>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<LifeEvent>,
    /// Given with the first output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
}

/// Why a generation ended, in the order of the first engine's own numbers; the label `finish_reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    Stop,
    Length,
    Abort,
    Error,
    Repetition,
}

impl FinishReason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
            Self::Repetition => "repetition",
        }
    }
}

/// A scheduler event of a request. `at`: engine clock, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LifeEvent {
    pub kind: LifeEventKind,
    pub at: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LifeEventKind {
    Queued,
    Scheduled,
    Preempted,
}

/// The scheduler's state after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerStats {
    pub running: u64,
    pub waiting: u64,
    /// 0 to 1.
    pub kv_cache_usage: f64,
    /// Tokens looked up in the prefix cache since the previous message.
    pub prefix_queries: u64,
    /// Tokens found there since the previous message.
    pub prefix_hits: u64,
}
