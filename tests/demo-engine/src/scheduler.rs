//! Continuous batching, after vLLM V1's scheduler: running requests first, then waiting ones, within a token budget.
//!
//! Pure: time comes in, outputs come out. A prompt may be computed over several steps (chunked prefill); when the KV pool
//! is exhausted the youngest running request is preempted and starts over.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::blocks::{BlockId, BlockPool};
use crate::tokenizer::{END, next_token};
use crate::wire::{Add, LENGTH, Output, PREEMPTED, Prefill, PrefixStats, QUEUED, SCHEDULED, STOP, Stats};

/// Values of an embedding: 128 floats are 512 bytes, enough for a frame of their own.
const EMBEDDING: usize = 128;

/// What the engine may hold and compute at once.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    pub max_num_seqs: usize,
    /// Tokens a step may compute.
    pub max_num_batched_tokens: usize,
    pub max_model_len: usize,
    pub blocks: usize,
    pub block_size: usize,
}

#[derive(Debug)]
struct Request {
    add: Add,
    /// Prompt and what was generated.
    tokens: Vec<u32>,
    computed: usize,
    blocks: Vec<BlockId>,
    events: Vec<(u8, f64)>,
    prefill: Option<Prefill>,
    preemptions: u32,
}

/// What one step computes: request id and how many of its tokens.
pub type Step = Vec<(String, usize)>;

#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    requests: HashMap<String, Request>,
    waiting: VecDeque<String>,
    running: Vec<String>,
    prefix: PrefixStats,
    finished: bool,
}

impl Scheduler {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pool: BlockPool::new(limits.blocks, limits.block_size),
            requests: HashMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefix: PrefixStats::default(),
            finished: false,
        }
    }

    /// A request arrives at `now` (monotonic seconds).
    pub fn add(&mut self, add: Add, now: f64) {
        let id = add.request_id.clone();
        let request = Request {
            tokens: add.prompt.clone(),
            add,
            computed: 0,
            blocks: Vec::new(),
            events: vec![(QUEUED, now)],
            prefill: None,
            preemptions: 0,
        };
        self.requests.insert(id.clone(), request);
        self.waiting.push_back(id);
    }

    /// Forgets these requests; unknown ones finished meanwhile.
    pub fn abort(&mut self, ids: &[String]) {
        for id in ids {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: &str) {
        if let Some(mut request) = self.requests.remove(id) {
            self.pool.free(&mut request.blocks);
            self.waiting.retain(|waiting| waiting != id);
            self.running.retain(|running| running != id);
            self.finished = true;
        }
    }

    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Whether something finished since the last call: vLLM runs one more step then, whose message has no outputs.
    pub fn take_finished(&mut self) -> bool {
        std::mem::take(&mut self.finished)
    }

    /// Chooses what the next step computes.
    pub fn schedule(&mut self, now: f64) -> Step {
        let mut budget = self.limits.max_num_batched_tokens;
        let mut step = Step::new();
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let id = self.running[index].clone();
            let Some(request) = self.requests.get_mut(&id) else { break };
            let count = (request.tokens.len() - request.computed).min(budget);
            if self.pool.allocate(&mut request.blocks, &[], request.computed + count) {
                budget -= count;
                step.push((id, count));
                index += 1;
                continue;
            }
            preempted = true;
            let Some(victim) = self.running.pop() else { break };
            self.preempt(&victim, now);
            if victim == id {
                break;
            }
        }
        while !preempted && budget > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(id) = self.waiting.front().cloned() else { break };
            let Some(request) = self.requests.get_mut(&id) else { break };
            let shared = self.pool.lookup(&request.tokens);
            let cached = shared.len() * self.limits.block_size;
            let count = (request.tokens.len() - cached).min(budget);
            if !self.pool.allocate(&mut request.blocks, &shared, cached + count) {
                break;
            }
            let (tokens, hits) = (request.tokens.len() as u32, cached as u32);
            if request.preemptions > 0 {
                self.prefix.preempted_requests += 1;
                self.prefix.preempted_queries += tokens;
                self.prefix.preempted_hits += hits;
            } else {
                self.prefix.requests += 1;
                self.prefix.queries += tokens;
                self.prefix.hits += hits;
                request.prefill =
                    Some(Prefill { prompt_tokens: tokens, cached_tokens: hits, cache_creation_tokens: 0 });
            }
            request.events.push((SCHEDULED, now));
            request.computed = cached;
            budget -= count;
            self.waiting.pop_front();
            self.running.push(id.clone());
            step.push((id, count));
        }
        step
    }

    fn preempt(&mut self, id: &str, now: f64) {
        if let Some(request) = self.requests.get_mut(id) {
            self.pool.free(&mut request.blocks);
            request.computed = 0;
            request.preemptions += 1;
            request.events.push((PREEMPTED, now));
            self.waiting.push_front(id.to_owned());
        }
    }

    /// The step is computed: outputs by client index. Requests aborted meanwhile have none.
    pub fn complete(&mut self, step: &Step) -> Vec<(u32, Output)> {
        let mut outputs = Vec::new();
        for (id, count) in step {
            // A request preempted after it was chosen is not in the step's result.
            if !self.running.contains(id) {
                continue;
            }
            let Some(request) = self.requests.get_mut(id) else { continue };
            request.computed += count;
            let cached = self.pool.cache(&request.blocks, &request.tokens, request.computed) * self.limits.block_size;
            if request.computed < request.tokens.len() {
                continue;
            }
            let mut output = Output { request_id: id.clone(), ..Output::default() };
            if let Some(sampling) = &request.add.sampling {
                // At a temperature every sequence goes its own way, as with an unseeded sampler.
                let own = id.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
                let seed = if sampling.temperature > 0.0 { sampling.seed.unwrap_or(own) } else { 0 };
                let token = next_token(seed, &request.tokens, !sampling.ignore_eos);
                request.tokens.push(token);
                output.tokens.push(token);
                let generated = request.tokens.len() - request.add.prompt.len();
                output.finish = if token == END {
                    Some(STOP)
                } else if generated >= sampling.max_tokens as usize || request.tokens.len() >= self.limits.max_model_len
                {
                    Some(LENGTH)
                } else {
                    None
                };
            } else {
                output.embedding = Some(embed(&request.tokens));
                output.finish = Some(STOP);
            }
            output.events = std::mem::take(&mut request.events);
            output.prefill = request.prefill.take().map(|prefill| Prefill {
                cache_creation_tokens: (cached as u32).min(prefill.prompt_tokens) - prefill.cached_tokens,
                ..prefill
            });
            let client = request.add.client_index;
            if output.finish.is_some() {
                self.forget(id);
            }
            outputs.push((client, output));
        }
        outputs
    }

    /// The statistics of a message; prefix-cache deltas start over.
    pub fn stats(&mut self) -> Stats {
        Stats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            kv_cache_usage: self.pool.usage(),
            prefix: std::mem::take(&mut self.prefix),
        }
    }
}

/// A unit vector out of the tokens.
fn embed(tokens: &[u32]) -> Vec<f32> {
    let mut values: Vec<f32> = (0..EMBEDDING as u64).map(|i| next_token(i, tokens, false) as f32 - 1024.0).collect();
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt().max(1.0);
    for value in &mut values {
        *value /= length;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Sampling;

    fn scheduler(blocks: usize, budget: usize) -> Scheduler {
        Scheduler::new(Limits {
            max_num_seqs: 4,
            max_num_batched_tokens: budget,
            max_model_len: 512,
            blocks,
            block_size: 16,
        })
    }

    fn request(id: &str, prompt: u32, max_tokens: u32) -> Add {
        Add {
            request_id: id.into(),
            prompt: (300..300 + prompt).collect(),
            sampling: Some(Sampling { max_tokens, ignore_eos: true, ..Sampling::default() }),
            ..Add::default()
        }
    }

    fn run(scheduler: &mut Scheduler) -> Vec<Output> {
        let mut all = Vec::new();
        for now in 1..10_000 {
            if !scheduler.has_requests() {
                return all;
            }
            let step = scheduler.schedule(f64::from(now));
            all.extend(scheduler.complete(&step).into_iter().map(|(_, output)| output));
        }
        panic!("the scheduler does not come to an end");
    }

    #[test]
    fn a_long_prompt_is_computed_in_chunks() {
        let mut scheduler = scheduler(64, 100);
        scheduler.add(request("a", 250, 1), 0.0);
        for expected in [0, 0, 1] {
            let step = scheduler.schedule(1.0);
            assert_eq!(scheduler.complete(&step).len(), expected);
        }
    }

    #[test]
    fn every_request_gets_all_its_tokens_through_preemptions() {
        let mut scheduler = scheduler(8, 256);
        for id in ["a", "b", "c", "d"] {
            scheduler.add(request(id, 20, 60), 0.0);
        }
        let outputs = run(&mut scheduler);
        let preempted = outputs.iter().flat_map(|output| &output.events).filter(|(kind, _)| *kind == PREEMPTED).count();
        assert!(preempted > 0, "eight blocks cannot hold four sequences of 80 tokens");
        for id in ["a", "b", "c", "d"] {
            assert_eq!(outputs.iter().filter(|output| output.request_id == id).count(), 60);
        }
        assert!((scheduler.stats().kv_cache_usage - 0.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_repeated_prompt_is_a_prefix_hit() {
        let mut scheduler = scheduler(64, 256);
        scheduler.add(request("a", 40, 2), 0.0);
        run(&mut scheduler);
        scheduler.add(request("b", 40, 2), 0.0);
        let outputs = run(&mut scheduler);
        assert_eq!(outputs[0].prefill.map(|prefill| prefill.cached_tokens), Some(32));
        assert_eq!(scheduler.stats().prefix.hits, 32);
    }

    #[test]
    fn an_aborted_request_frees_its_blocks_and_says_nothing_more() {
        let mut scheduler = scheduler(64, 256);
        scheduler.add(request("a", 40, 50), 0.0);
        let step = scheduler.schedule(1.0);
        scheduler.abort(&["a".to_owned()]);
        assert!(scheduler.complete(&step).is_empty());
        assert!(scheduler.take_finished());
        assert!((scheduler.stats().kv_cache_usage - 0.0).abs() < f64::EPSILON);
    }
}
