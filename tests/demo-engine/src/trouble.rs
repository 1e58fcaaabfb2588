//! What goes wrong on purpose, for requests whose prompt has a mark: so that one server has troubled and untroubled requests side by side.
//!
//! Enters: how long or when (flags), and prompts. Leaves: delays, a stopped process, a failed request. A mark whose flag is not given does
//! nothing. Queueing, preemptions, long prefills and refused writes need no mark: `--max-num-seqs`, `--blocks`, `--max-num-batched-tokens`
//! and `--send-buffer` make them.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, c_void};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::openai::{Plan, Prompt};
use crate::tokenizer::Tokenizer;
use crate::wire::{Add, ERROR, Output};

pub const SLOW_TOKENIZER: &str = "#slow-tokenizer#";
pub const BLOCK_FRONT_END: &str = "#block-front-end#";
pub const STALL_FRONT_END: &str = "#stall-front-end#";
pub const SLOW_STEPS: &str = "#slow-steps#";
pub const ENGINE_ERROR: &str = "#engine-error#";

#[derive(Debug, Clone, Copy, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[command(next_help_heading = "Troubles, for requests whose prompt has a mark")]
pub struct Troubles {
    /// Tokenising a prompt with `#slow-tokenizer#` takes so much longer; prompts behind it wait.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    slow_tokenizer_ms: u64,
    /// Once a request with `#block-front-end#` is sent to the engine, the API server's event loop stands still for so long: what its other
    /// threads receive meanwhile is taken up late.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    block_front_end_ms: u64,
    /// Once a request with `#stall-front-end#` is sent to the engine, the API server's process is stopped for so long (SIGSTOP), as one that
    /// has used up its share of CPU time: nothing is received meanwhile.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    stall_front_end_ms: u64,
    /// Steps that compute for a request with `#slow-steps#` take so much longer, for all of their batch.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    slow_step_ms: u64,
    /// A request with `#engine-error#` fails in the engine when it has given so many tokens; 0: none does.
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    engine_error_after: u64,
}

fn has(plan: &Plan, mark: &str) -> bool {
    plan.prompts.iter().any(|prompt| matches!(prompt, Prompt::Text(text) if text.contains(mark)))
}

impl Troubles {
    /// On the pool thread, before a prompt is tokenised.
    pub(crate) fn tokenizing(&self, plan: &Plan) {
        if has(plan, SLOW_TOKENIZER) {
            thread::sleep(Duration::from_millis(self.slow_tokenizer_ms));
        }
    }

    /// On the event loop, when a request was sent to the engine.
    pub(crate) fn sent(&self, plan: &Plan) {
        if has(plan, BLOCK_FRONT_END) {
            thread::sleep(Duration::from_millis(self.block_front_end_ms));
        }
        if self.stall_front_end_ms > 0 && has(plan, STALL_FRONT_END) {
            let seconds = format!("{:.3}", self.stall_front_end_ms as f64 / 1e3);
            let script = "(kill -STOP $0; sleep $1; kill -CONT $0) &";
            let pid = std::process::id().to_string();
            if let Err(error) = Command::new("/bin/sh").args(["-c", script, &pid, &seconds]).status() {
                eprintln!("demo-engine: cannot stop itself: {error}");
            }
        }
    }
}

/// The engine's side: it sees tokens, not text.
#[derive(Debug)]
pub(crate) struct Troubled {
    troubles: Troubles,
    slow_mark: Vec<u32>,
    error_mark: Vec<u32>,
    slow: HashSet<String>,
    /// With the tokens that each has left to give.
    failing: HashMap<String, u64>,
}

impl Troubled {
    pub(crate) fn new(troubles: Troubles) -> Self {
        let tokenizer = Tokenizer::default();
        Self {
            troubles,
            // No syllable has a `#`, so a mark's tokens are the same wherever it stands.
            slow_mark: tokenizer.encode(SLOW_STEPS),
            error_mark: tokenizer.encode(ENGINE_ERROR),
            slow: HashSet::new(),
            failing: HashMap::new(),
        }
    }

    pub(crate) fn added(&mut self, add: &Add) {
        let has = |mark: &[u32]| add.prompt.windows(mark.len()).any(|window| window == mark);
        if self.troubles.slow_step_ms > 0 && has(&self.slow_mark) {
            self.slow.insert(add.request_id.clone());
        }
        if self.troubles.engine_error_after > 0 && has(&self.error_mark) {
            self.failing.insert(add.request_id.clone(), self.troubles.engine_error_after);
        }
    }

    /// How much longer a step for these takes.
    pub(crate) fn delay(&self, step: &[(String, usize)]) -> Duration {
        let is_slow = step.iter().any(|(id, _)| self.slow.contains(id));
        Duration::from_millis(if is_slow { self.troubles.slow_step_ms } else { 0 })
    }

    /// Marks what fails; gives its ids, to be forgotten.
    pub(crate) fn gave(&mut self, outputs: &mut [(u32, Output)]) -> Vec<String> {
        let mut failed = Vec::new();
        for (_, output) in outputs {
            if let Some(left) = self.failing.get_mut(&output.request_id) {
                *left = left.saturating_sub(output.tokens.len() as u64);
                if *left == 0 {
                    output.finish = Some(ERROR);
                }
            }
            if output.finish.is_some() {
                self.slow.remove(&output.request_id);
                if self.failing.remove(&output.request_id).is_some() && output.finish == Some(ERROR) {
                    failed.push(output.request_id.clone());
                }
            }
        }
        failed
    }
}

/// A function of a library that is called for every message that the front end takes up, as msgspec's decoder is: where a probe sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoder(extern "C" fn());

impl Decoder {
    /// Loads the library for the rest of the process's life.
    pub(crate) fn load(library: &Path) -> anyhow::Result<Self> {
        let path = CString::new(library.as_os_str().as_encoded_bytes())?;
        // SAFETY: a NUL-terminated path; what its constructors do is the library's own.
        let loaded = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        ensure!(!loaded.is_null(), "cannot load {}", library.display());
        // SAFETY: a library that stays loaded, and a NUL-terminated name.
        let found = unsafe { libc::dlsym(loaded, c"Decoder_decode".as_ptr()) };
        ensure!(!found.is_null(), "{} has no function Decoder_decode", library.display());
        // SAFETY: `--decoder` asks for a function without arguments and result.
        Ok(Self(unsafe { std::mem::transmute::<*mut c_void, extern "C" fn()>(found) }))
    }

    pub(crate) fn call(self) {
        (self.0)();
    }
}

/// Loads the decoder, where one is named.
pub(crate) fn decoder(library: Option<&Path>) -> anyhow::Result<Option<Decoder>> {
    library.map(Decoder::load).transpose().context("--decoder")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(id: &str, prompt: &str) -> Add {
        Add { request_id: id.into(), prompt: Tokenizer::default().encode(prompt), ..Add::default() }
    }

    fn output(id: &str) -> (u32, Output) {
        (0, Output { request_id: id.into(), tokens: vec![300], ..Output::default() })
    }

    #[test]
    fn marks_are_found_in_tokens_wherever_they_stand() {
        let mut troubled = Troubled::new(Troubles { slow_step_ms: 7, ..Troubles::default() });
        troubled.added(&add("a", "stand trust#slow-steps#shop"));
        troubled.added(&add("b", "stand trust slow-steps shop"));
        let delay = |id: &str| troubled.delay(&[(id.to_owned(), 1)]).as_millis();
        assert_eq!((delay("a"), delay("b")), (7, 0));
    }

    #[test]
    fn a_marked_request_fails_after_its_tokens_and_no_other() {
        let mut troubled = Troubled::new(Troubles { engine_error_after: 2, ..Troubles::default() });
        troubled.added(&add("a", "#engine-error#"));
        for failed in [&[] as &[&str], &["a"], &[]] {
            let mut outputs = [output("a"), output("b")];
            assert_eq!(troubled.gave(&mut outputs), failed);
            assert_eq!(outputs[0].1.finish.is_some(), !failed.is_empty());
            assert_eq!(outputs[1].1.finish, None);
        }
    }
}
