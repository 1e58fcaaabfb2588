//! Made-up syscall logs of an API server and its engine, of any size: what a recording of thousands of open requests would be.
//!
//! Enters: a [`Plan`]. Leaves: a syscall log (`inferspan replay` reads it) and the [`Account`] of what must be counted. The
//! bytes are those of vLLM 0.32 (`inferspan_demo_engine::wire` is checked against frames of the real one), cut where libzmq cuts them;
//! what is made up is when. Nothing is random: the same plan makes the same log. No request names itself, so that one that
//! does not stream is known only by its response.

pub mod cuda;
mod log;
mod request;

use std::io::{self, Write};

use serde::Serialize;

use self::log::{Log, WALL};
use self::request::Request;
use inferspan_demo_engine::wire::{LENGTH, Output, Outputs, Prefill, PrefixStats, QUEUED, SCHEDULED, Stats};

/// Between a step's last call and the next step.
const STEP_MICROS: u64 = 5_000;
/// The engine's monotonic clock is this much behind the wall's.
const BEHIND: u64 = WALL - 1_100;

/// What the log holds.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Generations open at once; as soon as one is over the next begins.
    pub open: usize,
    /// Generations that are finished, in all.
    pub requests: usize,
    /// Tokens of each.
    pub tokens: u32,
    /// Prompt tokens of each.
    pub prompt: u32,
    pub stream: bool,
    /// Outputs of an engine step's message; 0: of every open generation.
    pub per_message: usize,
    /// Requests that do not stream and are never scheduled.
    pub waiting: usize,
    /// The calls of the engine's ends of the sockets too, not the API server's alone.
    pub both_ends: bool,
    /// The HTTP side.
    pub http: bool,
    /// As many calls of as many bytes that say nothing, to tell what reading costs.
    pub blank: bool,
}

/// What a log holds, and what must be counted from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Account {
    pub calls: u64,
    /// Moved by these calls.
    pub bytes: u64,
    pub requests: u64,
    pub generation_tokens: u64,
    pub prompt_tokens: u64,
    pub prefix_queries: u64,
    /// Generations that ended by length; those that wait never end.
    pub finished: u64,
    pub waiting: u64,
}

/// Writes the log.
pub fn write(plan: &Plan, out: impl Write) -> io::Result<Account> {
    let mut world = World { plan, log: Log::new(out, plan.blank)?, account: Account::default(), begun: 0 };
    let waiting: Vec<Request> =
        (0..plan.waiting).map(|number| Request::new(plan.requests + number, plan.open + number, false)).collect();
    for request in &waiting {
        world.begin(request, false)?;
    }
    let mut slots: Vec<Option<Request>> = Vec::new();
    for slot in 0..plan.open {
        let next = world.next(slot);
        if let Some(request) = &next {
            world.begin(request, plan.stream)?;
        }
        slots.push(next);
    }
    let mut turn = 0;
    loop {
        world.log.wait(STEP_MICROS);
        let open: Vec<usize> = (0..slots.len()).filter(|slot| slots[*slot].is_some()).collect();
        if open.is_empty() {
            break;
        }
        let count = if plan.per_message == 0 { open.len() } else { plan.per_message.min(open.len()) };
        let batch: Vec<usize> = (0..count).map(|index| open[(turn + index) % open.len()]).collect();
        turn += count;
        world.step(&mut slots, &batch, open.len())?;
        // While nothing begins and nothing ends, one message is as the other but for its stamp.
        if count == open.len() && !plan.http && !plan.both_ends {
            world.steady(&mut slots, &batch)?;
        }
    }
    world.account.waiting = plan.waiting as u64;
    (world.account.calls, world.account.bytes) = world.log.finish()?;
    Ok(world.account)
}

struct World<'a, W: Write> {
    plan: &'a Plan,
    log: Log<W>,
    account: Account,
    /// Generations begun.
    begun: usize,
}

impl<W: Write> World<'_, W> {
    /// The next request for a slot; it takes over the slot's connection.
    fn next(&mut self, slot: usize) -> Option<Request> {
        let number = self.begun;
        (number < self.plan.requests).then(|| {
            self.begun += 1;
            Request::new(number, slot, self.plan.stream)
        })
    }

    /// HTTP request read, response head of a stream written, ADD sent.
    fn begin(&mut self, request: &Request, stream: bool) -> io::Result<()> {
        self.account.requests += 1;
        if self.plan.http {
            self.log.http("read", &request.socket, &request.http(self.plan.tokens))?;
            if stream {
                self.log.http("write", &request.socket, request::STREAM_HEAD)?;
            }
        }
        let arrival = self.log.seconds(0);
        let add = request.add(self.plan.prompt, self.plan.tokens, arrival);
        self.log.engine_input(&add, self.plan.both_ends)
    }

    /// One engine step: its message, and what the API server writes of it.
    fn step(&mut self, slots: &mut [Option<Request>], batch: &[usize], running: usize) -> io::Result<()> {
        let now = self.log.seconds(BEHIND);
        let mut outputs = Vec::with_capacity(batch.len());
        let mut prefix = PrefixStats::default();
        for slot in batch {
            let Some(request) = &mut slots[*slot] else { continue };
            let mut output =
                Output { request_id: request.engine_id.clone(), tokens: vec![request.token()], ..Output::default() };
            if request.done == 0 {
                output.events = vec![(QUEUED, now - 0.004), (SCHEDULED, now - 0.003)];
                output.prefill = Some(Prefill { prompt_tokens: self.plan.prompt, ..Prefill::default() });
                prefix.requests += 1;
                prefix.queries += self.plan.prompt;
                self.account.prompt_tokens += u64::from(self.plan.prompt);
            }
            request.done += 1;
            output.finish = (request.done == self.plan.tokens).then_some(LENGTH);
            outputs.push(output);
        }
        self.account.generation_tokens += outputs.len() as u64;
        self.account.prefix_queries += u64::from(prefix.queries);
        let stats = Stats { running: running as u32, waiting: self.plan.waiting as u32, kv_cache_usage: 0.25, prefix };
        let outputs = Outputs { outputs, stats: Some(stats), timestamp: now, utility: None };
        self.log.engine_output(&outputs.encode()[0], self.plan.both_ends)?;
        for slot in batch {
            let Some(request) = &slots[*slot] else { continue };
            let over = request.done == self.plan.tokens;
            if self.plan.http {
                for bytes in request.answer(over, self.plan.prompt) {
                    self.log.http("write", &request.socket, &bytes)?;
                }
            }
            if over {
                self.account.finished += 1;
                slots[*slot] = self.next(*slot);
                if let Some(request) = &slots[*slot] {
                    self.begin(request, self.plan.stream)?;
                }
            }
        }
        Ok(())
    }

    /// The steps until the next one begins or ends, from one message.
    fn steady(&mut self, slots: &mut [Option<Request>], batch: &[usize]) -> io::Result<()> {
        let open = || batch.iter().filter_map(|slot| slots[*slot].as_ref());
        let left = open().map(|request| self.plan.tokens - request.done).min().unwrap_or(0).saturating_sub(1);
        if left < 2 || open().count() < batch.len() || open().any(|request| request.done == 0) {
            return Ok(());
        }
        let output = |request: &Request| Output {
            request_id: request.engine_id.clone(),
            tokens: vec![request.token()],
            ..Output::default()
        };
        let stats = Stats {
            running: batch.len() as u32,
            waiting: self.plan.waiting as u32,
            kv_cache_usage: 0.25,
            prefix: PrefixStats::default(),
        };
        let outputs =
            Outputs { outputs: open().map(output).collect(), stats: Some(stats), timestamp: 0.0, utility: None };
        self.log.repeat_engine_output(&outputs.encode()[0], left, STEP_MICROS, BEHIND)?;
        self.account.generation_tokens += u64::from(left) * batch.len() as u64;
        for slot in batch {
            if let Some(request) = &mut slots[*slot] {
                request.done += left;
            }
        }
        Ok(())
    }
}
