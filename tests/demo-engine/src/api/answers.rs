//! Between a request that is tokenised and its answer: ADD to the engine, outputs from it, text to the client.

use super::{Active, INPUT, Server, Tokenized};
use crate::generation::{Generation, Progress};
use crate::http;
use crate::metrics::Counter;
use crate::openai::{Choice, Kind, Reject, Usage};
use crate::sys;
use crate::wire::{self, Add, Outputs};
use crate::zmtp::Message;

impl Server {
    pub(super) fn submit(&mut self, job: Tokenized) {
        let Tokenized { connection, identity, base_id, plan, prompts, arrival, keep_alive } = job;
        if !self.connections.contains_key(&connection) {
            self.metrics.add(Counter::Unheard, prompts.len() as u64 * u64::from(plan.n));
            return;
        }
        let limit = self.config.limits.max_model_len;
        if let Some(long) = prompts.iter().map(Vec::len).find(|len| *len >= limit) {
            let Reject { status, body } = Reject::too_long(limit, long);
            for part in http::json(status, &body, keep_alive) {
                self.write(connection, part);
            }
            return self.end(connection, path(plan.kind), status, keep_alive);
        }
        if plan.stream {
            self.write(connection, http::stream_head(keep_alive));
        }
        let key = self.next;
        self.next += 1;
        let mut live = Vec::new();
        let mut adds = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let external_id = if plan.kind == Kind::Chat { base_id.clone() } else { format!("{base_id}-{index}") };
            let engine_id = format!("{external_id}-{:08x}", self.random() as u32);
            let sampling = plan.sampling.clone().map(|mut sampling| {
                let room = (limit - prompt.len()) as u32;
                sampling.max_tokens = if sampling.max_tokens == 0 { room } else { sampling.max_tokens.min(room) };
                sampling
            });
            let mut ids = Vec::new();
            for child in 0..plan.n as usize {
                let request_id = if plan.n > 1 { format!("{child}_{engine_id}") } else { engine_id.clone() };
                let add = Add {
                    request_id: request_id.clone(),
                    external_id: external_id.clone(),
                    prompt: prompt.clone(),
                    sampling: sampling.clone(),
                    arrival,
                    client_index: self.config.index as u32,
                };
                let choice = index * plan.n as usize + child;
                self.generations.insert(request_id.clone(), Generation::new(key, choice, &add));
                ids.push(request_id);
                adds.push(add);
            }
            live.push(ids);
        }
        let choices = (0..adds.len() as u32).map(|index| Choice { index, ..Choice::default() }).collect();
        let usage = Usage {
            prompt_tokens: prompts.iter().map(|prompt| prompt.len() as u64).sum(),
            completion_tokens: 0,
            cached_tokens: self.config.prompt_tokens_details.then_some(0),
        };
        let active = Active {
            connection,
            identity,
            stream: plan.stream,
            include_usage: plan.include_usage,
            keep_alive,
            opened: false,
            vectors: vec![Vec::new(); adds.len()],
            choices,
            usage,
            live,
        };
        self.active.insert(key, active);
        for add in adds {
            self.io.send(INPUT, add.encode());
        }
        self.config.troubles.sent(&plan);
    }

    pub(super) fn outputs(&mut self, message: &Message, announce: &impl Fn()) {
        if let Some(decoder) = self.decoder {
            decoder.call();
        }
        let now = sys::wall();
        let outputs = match Outputs::decode(message) {
            Ok(outputs) => outputs,
            Err(error) => return eprintln!("demo-engine: {error}"),
        };
        if outputs.utility.is_some() {
            self.metrics.set_ready();
            announce();
        }
        if let Some(stats) = &outputs.stats {
            self.metrics.scheduler(stats, outputs.timestamp);
        }
        let mut news = Vec::new();
        let mut stopped = Vec::new();
        for output in outputs.outputs {
            let id = output.request_id.clone();
            // An output after an abort belongs to nobody.
            let Some(generation) = self.generations.get_mut(&id) else {
                self.metrics.add(Counter::GivenUpTokens, output.tokens.len() as u64);
                let prompt = output.prefill.map_or(0, |prefill| prefill.prompt_tokens);
                self.metrics.add(Counter::GivenUpPromptTokens, u64::from(prompt));
                continue;
            };
            let progress = generation.update(output, outputs.timestamp, now, &self.tokenizer, &self.metrics);
            news.push((id.clone(), generation.request, generation.choice, progress));
            if news.last().is_some_and(|(.., progress)| progress.finish_reason.is_some()) {
                self.generations.remove(&id);
            }
            if news.last().is_some_and(|(.., progress)| progress.abort) {
                stopped.push(id);
            }
        }
        if !stopped.is_empty() {
            self.io.send(INPUT, wire::encode_abort(&stopped));
        }
        for (id, request, choice, progress) in news {
            self.deliver(&id, request, choice, progress);
        }
    }

    /// Passes news of one generation on to its client.
    fn deliver(&mut self, id: &str, request: u64, index: usize, progress: Progress) {
        if progress.finish_reason == Some("error") {
            return self.fail(request);
        }
        let Some(active) = self.active.get_mut(&request) else { return };
        active.usage.completion_tokens += progress.tokens;
        if let Some(cached) = &mut active.usage.cached_tokens {
            *cached += progress.cached_tokens;
        }
        let finished = progress.finish_reason.is_some();
        let mut chunks = Vec::new();
        if active.stream {
            if active.identity.kind == Kind::Chat && !active.opened {
                chunks.extend((0..active.choices.len() as u32).map(|i| http::event(&active.identity.role_chunk(i))));
            }
            active.opened = true;
            let choice = Choice {
                index: index as u32,
                text: progress.text,
                finish_reason: progress.finish_reason,
                stop_reason: progress.stop_reason,
            };
            chunks.push(http::event(&active.identity.chunk(&choice)));
        } else if let Some(choice) = active.choices.get_mut(index) {
            choice.text.push_str(&progress.text);
            choice.finish_reason = progress.finish_reason;
            choice.stop_reason = progress.stop_reason;
        }
        if let Some((vector, embedding)) = active.vectors.get_mut(index).zip(progress.embedding) {
            *vector = embedding;
        }
        if finished {
            for ids in &mut active.live {
                ids.retain(|live| live != id);
            }
        }
        let whole = active.live.iter().all(Vec::is_empty);
        if whole {
            if active.stream {
                if active.include_usage {
                    chunks.push(http::event(&active.identity.usage_chunk(active.usage)));
                }
                chunks.push(http::event("[DONE]"));
                chunks.push(http::LAST_CHUNK.to_vec());
            } else {
                let body = if active.identity.kind == Kind::Embedding {
                    active.identity.embeddings(&active.vectors, active.usage)
                } else {
                    active.identity.response(&active.choices, active.usage)
                };
                chunks.extend(http::json(200, &body, active.keep_alive));
            }
        }
        let (connection, kind, keep_alive) = (active.connection, active.identity.kind, active.keep_alive);
        for chunk in chunks {
            self.write(connection, chunk);
        }
        if whole && self.active.remove(&request).is_some() {
            self.end(connection, path(kind), 200, keep_alive);
        }
    }
}

impl Server {
    /// The engine gave one of a request's generations up: the others are cancelled, and the client is told, in vLLM's words.
    fn fail(&mut self, request: u64) {
        const ERROR: &str =
            r#"{"error":{"message":"Internal server error","type":"InternalServerError","param":null,"code":500}}"#;
        let Some(active) = self.active.remove(&request) else { return };
        for ids in active.live.iter().filter(|ids| !ids.is_empty()) {
            self.generations.retain(|id, _| !ids.contains(id));
            self.io.send(INPUT, wire::encode_abort(ids));
        }
        let (status, chunks) = if active.stream {
            (200, vec![http::event(ERROR), http::event("[DONE]"), http::LAST_CHUNK.to_vec()])
        } else {
            (500, http::json(500, ERROR, active.keep_alive).to_vec())
        };
        for chunk in chunks {
            self.write(active.connection, chunk);
        }
        self.end(active.connection, path(active.identity.kind), status, active.keep_alive);
    }
}

fn path(kind: Kind) -> &'static str {
    match kind {
        Kind::Chat => "/v1/chat/completions",
        Kind::Completion => "/v1/completions",
        Kind::Embedding => "/v1/embeddings",
    }
}
