//! One engine request as the API server follows it: its text, its stop strings, and vLLM's statistics about it.
//!
//! The rules are those of `OutputProcessor` and `IterationStats`: the first output of a request counts its prompt and its
//! time to first token, every later one an inter-token latency; a finished request counts its intervals; an aborted one
//! nothing more.

use crate::metrics::{Counter, Histogram, Metrics};
use crate::tokenizer::Tokenizer;
use crate::wire::{self, Output};

#[derive(Debug, Default)]
struct Times {
    queued: f64,
    scheduled: Option<f64>,
    first_token: f64,
    last_token: f64,
}

#[derive(Debug)]
pub struct Generation {
    /// The HTTP request it belongs to.
    pub request: u64,
    /// Place of its text in the response.
    pub choice: usize,
    /// Unix seconds.
    arrival: f64,
    prompt_tokens: usize,
    stop: Vec<String>,
    /// Bytes of text held back while they may be the beginning of a stop string (streaming only).
    hold: usize,
    prefilling: bool,
    tokens: u64,
    times: Times,
    bytes: Vec<u8>,
    text: String,
    sent: usize,
}

/// What an output changes for the client.
#[derive(Debug, Default)]
pub struct Progress {
    pub text: String,
    pub tokens: u64,
    pub cached_tokens: u64,
    pub finish_reason: Option<&'static str>,
    pub stop_reason: Option<String>,
    pub embedding: Option<Vec<f32>>,
    /// Finished here but not in the engine: it must be told.
    pub abort: bool,
}

impl Generation {
    pub fn new(request: u64, choice: usize, add: &wire::Add) -> Self {
        let (stop, stream) =
            add.sampling.as_ref().map_or_else(Default::default, |s| (s.stop.clone(), s.output_kind == 1));
        let longest = stop.iter().map(String::len).max().unwrap_or(0);
        Self {
            request,
            choice,
            arrival: add.arrival,
            prompt_tokens: add.prompt.len(),
            stop,
            hold: if stream { longest.saturating_sub(1) } else { 0 },
            prefilling: true,
            tokens: 0,
            times: Times::default(),
            bytes: Vec::new(),
            text: String::new(),
            sent: 0,
        }
    }

    /// Takes an output of a step that ended at `timestamp` (monotonic) and reached us at `now` (unix), in seconds.
    pub fn update(
        &mut self,
        output: Output,
        timestamp: f64,
        now: f64,
        tokenizer: &Tokenizer,
        metrics: &Metrics,
    ) -> Progress {
        let mut progress = Progress { tokens: output.tokens.len() as u64, ..Progress::default() };
        self.tokens += progress.tokens;
        metrics.add(Counter::GenerationTokens, progress.tokens);
        for (kind, at) in &output.events {
            match *kind {
                wire::QUEUED => self.times.queued = *at,
                wire::SCHEDULED => self.times.scheduled = self.times.scheduled.or(Some(*at)),
                _ => metrics.add(Counter::Preemptions, 1),
            }
        }
        if self.prefilling {
            self.prefilling = false;
            if let Some(prefill) = output.prefill {
                let (prompt, cached) = (u64::from(prefill.prompt_tokens), u64::from(prefill.cached_tokens));
                progress.cached_tokens = cached;
                metrics.add(Counter::PromptTokens, prompt);
                metrics.add(Counter::PromptTokensComputed, prompt - cached);
                metrics.add(Counter::PromptTokensHit, cached);
                metrics.add(Counter::PromptTokensCached, cached);
            }
            metrics.observe(Histogram::TimeToFirstToken, now - self.arrival);
            self.times.first_token = timestamp;
        } else {
            metrics.observe(Histogram::InterToken, timestamp - self.times.last_token);
        }
        self.times.last_token = timestamp;
        let ended = output.finish == Some(wire::STOP) && output.embedding.is_none();
        self.detokenize(&output.tokens, ended, tokenizer);
        progress.finish_reason = match output.finish {
            Some(wire::STOP) => Some("stop"),
            Some(wire::LENGTH) => Some("length"),
            Some(_) => Some("error"),
            None => None,
        };
        if let Some((at, stop)) = self.stopped().filter(|_| !ended) {
            self.text.truncate(at);
            progress.abort = progress.finish_reason.is_none();
            progress.finish_reason = Some("stop");
            progress.stop_reason = Some(stop);
        }
        let mut until = self.text.len();
        if progress.finish_reason.is_none() {
            until = self.text.floor_char_boundary(until.saturating_sub(self.hold)).max(self.sent);
        }
        self.sent = self.sent.min(until);
        progress.text.push_str(&self.text[self.sent..until]);
        self.sent = until;
        progress.embedding = output.embedding;
        if let Some(reason) = progress.finish_reason {
            self.finished(reason, now, metrics);
        }
        progress
    }

    fn detokenize(&mut self, tokens: &[u32], ended: bool, tokenizer: &Tokenizer) {
        // The end token has no text.
        let kept = tokens.len() - usize::from(ended && !tokens.is_empty());
        for token in &tokens[..kept] {
            self.bytes.extend(tokenizer.piece(*token));
        }
        for chunk in std::mem::take(&mut self.bytes).utf8_chunks() {
            self.text.push_str(chunk.valid());
            self.bytes = chunk.invalid().to_vec();
            // Four bytes are a character or never will be.
            if self.bytes.len() >= 4 {
                self.bytes.clear();
                self.text.push('\u{fffd}');
            }
        }
    }

    /// The first stop string in the text, if any, and where it begins.
    fn stopped(&self) -> Option<(usize, String)> {
        self.stop.iter().filter_map(|stop| Some((self.text.find(stop)?, stop.clone()))).min()
    }

    fn finished(&self, reason: &str, now: f64, metrics: &Metrics) {
        metrics.add(
            match reason {
                "stop" => Counter::SuccessStop,
                "length" => Counter::SuccessLength,
                _ => Counter::SuccessError,
            },
            1,
        );
        let Times { queued, first_token, last_token, .. } = self.times;
        let scheduled = self.times.scheduled.unwrap_or(0.0);
        let decode = last_token - first_token;
        metrics.observe(Histogram::EndToEnd, now - self.arrival);
        metrics.observe(Histogram::Queue, scheduled - queued);
        metrics.observe(Histogram::Prefill, first_token - scheduled);
        metrics.observe(Histogram::Inference, last_token - scheduled);
        metrics.observe(Histogram::Decode, decode);
        metrics.observe(Histogram::RequestPromptTokens, self.prompt_tokens as f64);
        metrics.observe(Histogram::RequestGenerationTokens, self.tokens as f64);
        let per_token = if self.tokens > 1 { decode / (self.tokens - 1) as f64 } else { 0.0 };
        metrics.observe(Histogram::TimePerOutputToken, per_token);
    }
}
