//! The OpenAI API as vLLM serves it: what a request asks for, and the JSON it gets back, in vLLM's field order.
//!
//! Enters: paths and bodies from anybody. Leaves: a [`Plan`], or a [`Reject`] with vLLM's status and words.

use std::fmt::Write as _;

use serde_json::Value;

use crate::wire::Sampling;

/// Which endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Completion,
    Embedding,
}

impl Kind {
    pub fn of_path(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completion),
            "/v1/embeddings" => Some(Self::Embedding),
            _ => None,
        }
    }

    /// What vLLM puts before a request id.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Completion => "cmpl",
            Self::Embedding => "embd",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub kind: Kind,
    pub prompts: Vec<Prompt>,
    pub n: u32,
    pub stream: bool,
    pub include_usage: bool,
    /// `None` for embeddings. `max_tokens` 0: as many as fit.
    pub sampling: Option<Sampling>,
}

/// A 4xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub status: u16,
    pub body: String,
}

impl Reject {
    fn new(status: u16, kind: &str, param: Option<&str>, message: &str) -> Self {
        let param = param.map_or_else(|| "null".to_owned(), quote);
        let message = quote(message);
        let body =
            format!("{{\"error\":{{\"message\":{message},\"type\":\"{kind}\",\"param\":{param},\"code\":{status}}}}}");
        Self { status, body }
    }

    fn bad(param: &str, message: &str) -> Self {
        Self::new(400, "BadRequestError", Some(param), message)
    }

    /// The prompt does not fit.
    pub fn too_long(max_model_len: usize, tokens: usize) -> Self {
        Self::bad(
            "input_tokens",
            &format!(
                "This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least \
                 {tokens} input tokens, which exceeds this limit even without any output tokens. Please reduce the length \
                 of the input prompt. (parameter=input_tokens, value={tokens})"
            ),
        )
    }
}

/// A JSON string.
pub fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// Reads a body.
pub fn plan(kind: Kind, body: &[u8], model: &str) -> Result<Plan, Reject> {
    let body: Value = serde_json::from_slice(body).map_err(|error| {
        let message =
            format!("[{{'type': 'json_invalid', 'loc': ('body', {}), 'msg': 'JSON decode error'}}]", error.column());
        Reject::new(400, "Bad Request", None, &message)
    })?;
    if let Some(asked) = body["model"].as_str().filter(|asked| *asked != model) {
        let message = format!("The model `{asked}` does not exist. Valid aliases: {model}.");
        return Err(Reject::new(404, "NotFoundError", Some("model"), &message));
    }
    let prompts = match kind {
        Kind::Chat => vec![Prompt::Text(template(&body["messages"])?)],
        Kind::Completion => prompts(&body["prompt"], "prompt")?,
        Kind::Embedding => prompts(&body["input"], "input")?,
    };
    let stream = kind != Kind::Embedding && body["stream"] == true;
    let sampling = (kind != Kind::Embedding).then(|| sampling(kind, &body, stream)).transpose()?;
    Ok(Plan {
        kind,
        prompts,
        n: body["n"].as_u64().unwrap_or(1).clamp(1, 64) as u32,
        stream,
        include_usage: body["stream_options"]["include_usage"] == true,
        sampling,
    })
}

fn template(messages: &Value) -> Result<String, Reject> {
    let messages = messages.as_array().ok_or_else(|| match messages {
        Value::Null => Reject::bad("messages", "Field required: messages"),
        // As pydantic does, it repeats what it got.
        other => {
            let said = format!("{{'type': 'list_type', 'loc': ('body', 'messages'), 'msg': 'Input should be a valid list', 'input': {other}}}");
            Reject::new(400, "Bad Request", None, &format!("[{said}]"))
        }
    })?;
    let mut text = String::new();
    for message in messages {
        let role = message["role"].as_str().unwrap_or("user");
        let content = message["content"].as_str().unwrap_or_default();
        // A string takes every byte.
        let _ = write!(text, "<|{role}|>\n{content}\n");
    }
    text.push_str("<|assistant|>\n");
    Ok(text)
}

/// A string, a list of strings, token ids, or a list of lists of token ids.
fn prompts(value: &Value, field: &str) -> Result<Vec<Prompt>, Reject> {
    let refuse = || Reject::bad(field, &format!("Either prompt or prompt_embeds must be provided: {field}"));
    let tokens = |items: &[Value]| -> Option<Vec<u32>> {
        items.iter().map(|item| item.as_u64().and_then(|token| u32::try_from(token).ok())).collect()
    };
    let found = match value {
        Value::String(text) => vec![Prompt::Text(text.clone())],
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            vec![Prompt::Tokens(tokens(items).ok_or_else(refuse)?)]
        }
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Some(Prompt::Text(text.clone())),
                Value::Array(ids) => tokens(ids).map(Prompt::Tokens),
                _ => None,
            })
            .collect::<Option<_>>()
            .ok_or_else(refuse)?,
        _ => return Err(refuse()),
    };
    if found.is_empty() { Err(refuse()) } else { Ok(found) }
}

fn sampling(kind: Kind, body: &Value, stream: bool) -> Result<Sampling, Reject> {
    let temperature = body["temperature"].as_f64().unwrap_or(1.0);
    if temperature < 0.0 {
        let message = format!(
            "temperature must be non-negative, got {temperature:?}. (parameter=temperature, value={temperature:?})"
        );
        return Err(Reject::bad("temperature", &message));
    }
    let asked = body["max_completion_tokens"].as_u64().or_else(|| body["max_tokens"].as_u64());
    if asked == Some(0) {
        return Err(Reject::bad("max_tokens", "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"));
    }
    Ok(Sampling {
        temperature,
        max_tokens: asked.unwrap_or(if kind == Kind::Chat { 0 } else { 16 }) as u32,
        stop: match &body["stop"] {
            Value::String(stop) => vec![stop.clone()],
            Value::Array(stops) => stops.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        },
        ignore_eos: body["ignore_eos"] == true,
        output_kind: if stream { 1 } else { 2 },
        seed: body["seed"].as_u64(),
    })
}

/// What every response of a request repeats.
#[derive(Debug, Clone)]
pub struct Identity {
    pub kind: Kind,
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    pub model: String,
}

/// One choice of a response.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    pub index: u32,
    pub text: String,
    pub finish_reason: Option<&'static str>,
    /// The stop string that ended it.
    pub stop_reason: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// `Some` only where the server was told to say it.
    pub cached_tokens: Option<u64>,
}

const FINGERPRINT: &str = "\"system_fingerprint\":\"vllm-0.32.0-demo0000\"";

impl Usage {
    fn json(self) -> String {
        let Self { prompt_tokens, completion_tokens, cached_tokens } = self;
        let total = prompt_tokens + completion_tokens;
        let details = cached_tokens.map_or_else(|| "null".into(), |cached| format!("{{\"cached_tokens\":{cached}}}"));
        format!(
            "\"usage\":{{\"prompt_tokens\":{prompt_tokens},\"total_tokens\":{total},\
             \"completion_tokens\":{completion_tokens},\"prompt_tokens_details\":{details}}}"
        )
    }
}

fn optional(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), quote)
}

impl Identity {
    fn head(&self, object: &str) -> String {
        let Self { id, created, model, .. } = self;
        format!("\"id\":{},\"object\":\"{object}\",\"created\":{created},\"model\":{}", quote(id), quote(model))
    }

    /// The chunk that opens a chat stream.
    pub fn role_chunk(&self, index: u32) -> String {
        format!(
            "{{{},\"choices\":[{{\"index\":{index},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\
             \"finish_reason\":null}}],\"prompt_token_ids\":null,\"prompt_text\":null}}",
            self.head("chat.completion.chunk")
        )
    }

    /// A chunk with new text.
    pub fn chunk(&self, choice: &Choice) -> String {
        let text = quote(&choice.text);
        let index = choice.index;
        let finish = optional(choice.finish_reason);
        let stop = optional(choice.stop_reason.as_deref());
        if self.kind == Kind::Chat {
            let stop = choice.finish_reason.map_or_else(String::new, |_| format!(",\"stop_reason\":{stop}"));
            format!(
                "{{{},\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":{text}}},\"logprobs\":null,\
                 \"finish_reason\":{finish}{stop},\"token_ids\":null}}]}}",
                self.head("chat.completion.chunk")
            )
        } else {
            format!(
                "{{{},\"choices\":[{{\"index\":{index},\"text\":{text},\"logprobs\":null,\"finish_reason\":{finish},\
                 \"stop_reason\":{stop},\"prompt_token_ids\":null,\"token_ids\":null}}]}}",
                self.head("text_completion")
            )
        }
    }

    /// The chunk with the usage, when it was asked for.
    pub fn usage_chunk(&self, usage: Usage) -> String {
        let object = if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
        format!("{{{},\"choices\":[],{},{FINGERPRINT}}}", self.head(object), usage.json())
    }

    /// The whole response.
    pub fn response(&self, choices: &[Choice], usage: Usage) -> String {
        let chat = self.kind == Kind::Chat;
        let choices: Vec<String> = choices
            .iter()
            .map(|choice| {
                let text = quote(&choice.text);
                let body = if chat {
                    format!(
                        "\"message\":{{\"role\":\"assistant\",\"content\":{text},\"refusal\":null,\"annotations\":null,\
                         \"audio\":null,\"function_call\":null,\"reasoning\":null}}"
                    )
                } else {
                    format!("\"text\":{text}")
                };
                format!(
                    "{{\"index\":{},{body},\"logprobs\":null,\"finish_reason\":{},\"stop_reason\":{},\"token_ids\":null}}",
                    choice.index,
                    optional(choice.finish_reason),
                    optional(choice.stop_reason.as_deref())
                )
            })
            .collect();
        format!(
            "{{{},\"choices\":[{}],\"service_tier\":null,{FINGERPRINT},{},\"kv_transfer_params\":null}}",
            self.head(if chat { "chat.completion" } else { "text_completion" }),
            choices.join(","),
            usage.json()
        )
    }

    /// The response of an embedding request.
    pub fn embeddings(&self, vectors: &[Vec<f32>], usage: Usage) -> String {
        let data: Vec<String> = vectors
            .iter()
            .enumerate()
            .map(|(index, vector)| {
                let values: Vec<String> = vector.iter().map(|value| format!("{value:?}")).collect();
                format!("{{\"index\":{index},\"object\":\"embedding\",\"embedding\":[{}]}}", values.join(","))
            })
            .collect();
        format!("{{{},\"data\":[{}],{}}}", self.head("list"), data.join(","), usage.json())
    }
}
