//! Any server of the OpenAI API, by its HTTP side alone.
//!
//! Enters: command lines of servers that are known, requests and responses. Leaves: what the API itself says: times of a stream's pieces,
//! and the tokens of `usage`. It is one process as far as this goes: what happens inside is not looked at, so nothing of it is told.

mod program;
mod routes;

use super::process::{Invocation, Launch, Program};
use super::{Engine, Identity, Operation};

#[derive(Debug, Clone, Copy, Default)]
pub struct OpenAi;

impl Engine for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn program(&self, invocation: &Invocation<'_>) -> Option<Program> {
        program::program(invocation)
    }

    fn options(&self, words: &[&str]) -> Launch {
        program::launch(words)
    }

    fn has_messages(&self) -> bool {
        false
    }

    fn operation(&self, method: &str, path: &str) -> Option<&'static Operation> {
        routes::operation_of(method, path)
    }

    fn identify(&self, id: &str, external: Option<&str>) -> Identity {
        let external = external.unwrap_or(id).to_owned();
        Identity { client: external.clone(), external, ..Identity::default() }
    }
}
