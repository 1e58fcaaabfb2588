//! What is open now, for displays: read-only, and made when it is asked for.
//!
//! Enters: the core. Leaves: a row a request that is open, and a row an engine that was heard of and whose process is not gone. Nothing here
//! changes anything, so looking more or less often gives the same outputs.

use super::Core;
use crate::input::{EventNanos, Server};
use crate::model::exchange::Exchange;
use crate::model::generation::{Generation, Phase};

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its bytes are coming in, or the front end has them and has not sent it on.
    FrontEnd,
    /// It was sent to the engine, which gave nothing yet.
    Waiting,
    /// Gives tokens.
    Producing,
    /// The engine is done with it, its response is not over.
    Finishing,
}

/// A request that is open.
#[derive(Debug, Clone, PartialEq)]
pub struct Open<'a> {
    /// As the response shows it, or the client chose it, or the engine calls it.
    pub id: Option<String>,
    /// `http.route`; `None` where only the engine's side of it was seen.
    pub route: Option<&'a str>,
    /// As the request names it.
    pub model: Option<&'a str>,
    pub process: u32,
    /// First byte read, or when it was first heard of.
    pub since: EventNanos,
    pub stage: Stage,
    /// Of its first engine request: when it was sent to the engine, and, once the engine said so, first scheduled and gave a token.
    pub sent: Option<EventNanos>,
    pub scheduled: Option<EventNanos>,
    pub first_token: Option<EventNanos>,
    /// Of all its engine requests.
    pub preemptions: u64,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: u64,
    /// The engine that runs it, once it gave something.
    pub engine: Option<u32>,
    /// Records that may have been its were lost.
    pub lost: bool,
}

/// An engine, as its newest messages left it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineNow {
    /// Its number (data-parallel rank).
    pub engine: u32,
    /// The process that sends its outputs; `None` where that was not seen.
    pub process: Option<u32>,
    /// Requests that its scheduler runs, and that wait for it; `None` where it keeps no statistics.
    pub running: Option<u64>,
    pub waiting: Option<u64>,
    /// 0 to 1.
    pub kv_cache_usage: Option<f64>,
    /// Tokens that it gave since it was first heard of.
    pub tokens: u64,
    /// Its newest step.
    pub step: Option<StepNow>,
}

/// An engine's newest step, as far as its messages have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepNow {
    pub ended: EventNanos,
    /// Requests that it gave something for.
    pub batch: u64,
    /// Tokens of the prompts whose computation ended in it, without cached ones; and tokens of requests that had given some before.
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
}

/// The state of a core at a moment.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    core: &'a Core,
}

impl Core {
    pub fn view(&self) -> View<'_> {
        View { core: self }
    }
}

impl<'a> View<'a> {
    /// The newest event's time.
    pub fn now(&self) -> EventNanos {
        self.core.now
    }

    /// Whose core it is, as far as it was told.
    pub fn server(&self) -> &'a Server {
        &self.core.about.server
    }

    /// What is open: HTTP requests in the order in which they came, then engine requests that belong to none.
    pub fn open(&self) -> impl Iterator<Item = Open<'a>> {
        let generations = &self.core.requests.generations;
        let exchanges = self.core.requests.exchanges.iter().map(|(_, exchange)| {
            let of: Vec<&Generation> = exchange.generations.iter().filter_map(|&key| generations.get(key)).collect();
            row(Some(exchange), &of)
        });
        let alone = generations
            .iter()
            .filter(|(key, generation)| generation.exchange.is_none() && !generations.has_lead(*key))
            .map(|(_, generation)| row(None, &[generation]));
        exchanges.chain(alone)
    }

    /// The engines that were heard of, by their numbers. None where an engine's messages are not read.
    pub fn engines(&self) -> impl Iterator<Item = EngineNow> {
        let processes = self.core.about.engine_processes();
        self.core.steps.now().map(|(engine, now)| EngineNow {
            engine,
            process: processes.get(&engine).copied(),
            running: now.stats.map(|stats| stats.running),
            waiting: now.stats.map(|stats| stats.waiting),
            kv_cache_usage: now.stats.map(|stats| stats.kv_cache_usage),
            tokens: now.tokens,
            step: now.step.map(|(_, ended)| StepNow {
                ended,
                batch: now.requests,
                prefill_tokens: now.prefill_tokens,
                decode_tokens: now.decode_tokens,
            }),
        })
    }
}

fn row<'a>(exchange: Option<&'a Exchange>, generations: &[&'a Generation]) -> Open<'a> {
    let first = generations.first();
    let own = exchange.and_then(|exchange| exchange.response_id.clone().or_else(|| exchange.chosen_id()));
    let engine = generations.iter().find(|generation| generation.first.is_some()).map(|generation| generation.engine);
    let stage = if generations.is_empty() {
        Stage::FrontEnd
    } else if generations.iter().all(|generation| generation.settled()) {
        Stage::Finishing
    } else if generations.iter().any(|generation| generation.phase == Phase::Producing) {
        Stage::Producing
    } else {
        Stage::Waiting
    };
    Open {
        id: own.or_else(|| first.map(|generation| generation.identity.external.clone())),
        route: exchange.map(|exchange| exchange.operation.route),
        model: exchange.and_then(|exchange| exchange.fields.model.as_deref()),
        process: exchange.map_or_else(|| first.map_or(0, |generation| generation.process), |exchange| exchange.process),
        since: exchange.map_or_else(|| first.map_or(0, |generation| generation.seen), |exchange| exchange.started),
        stage,
        sent: first.and_then(|generation| generation.added),
        scheduled: first.and_then(|generation| generation.scheduled),
        first_token: first.and_then(|generation| generation.first).map(|tokens| tokens.at),
        preemptions: generations.iter().map(|generation| generation.preemptions).sum(),
        prompt_tokens: first.and_then(|generation| generation.prompt_tokens),
        output_tokens: generations.iter().map(|generation| generation.output_tokens).sum(),
        engine,
        lost: exchange.is_some_and(|exchange| exchange.lost) || generations.iter().any(|generation| generation.lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::batches::Batch;
    use crate::core::exchanges::tests::completion;
    use crate::core::{Config, Core};
    use crate::engine::{ENGINES, SchedulerStats};
    use crate::model::step::Share;

    /// An engine request without its HTTP side, heard of at `seen`.
    fn generation(id: &str, seen: EventNanos) -> Generation {
        Generation::new(id.into(), ENGINES[0].identify(id, None), seen)
    }

    #[test]
    fn each_request_is_one_row_however_many_engine_requests_it_has() {
        // request (chosen id `a`) with samples 0 and 1 · an engine request alone · a beam below another one: no row of its own
        let mut core = Core::new(Config::default());
        let key = core.requests.key();
        let mut exchange = completion(10);
        exchange.head.request_id = Some("a".into());
        core.requests.begin(key, exchange);
        for (id, tokens) in [("0_cmpl-a-0-0123abcd", 3), ("1_cmpl-a-0-0123abcd", 4)] {
            let mut generation = generation(id, 20);
            (generation.added, generation.output_tokens, generation.prompt_tokens) = (Some(20), tokens, Some(5));
            let sent = core.requests.insert(generation);
            core.requests.join().by_id(sent);
        }
        for id in ["cmpl-b-0-0123abcd", "x-0011223344556677-beam-0-0123abcd", "x-8899aabbccddeeff-beam-0-0123abcd"] {
            core.requests.insert(generation(id, 30));
        }
        let rows: Vec<_> = core.view().open().map(|open| (open.id, open.since, open.output_tokens)).collect();
        let id = |id: &str| Some(id.to_owned());
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[..2], [(id("cmpl-a"), 10, 7), (id("cmpl-b-0"), 30, 0)]);
    }

    #[test]
    fn an_engine_s_row_is_what_its_newest_messages_said() {
        // engine 1: a step with statistics: 8 tokens of a prompt, a token of another · engine 3: a step without statistics
        let mut core = Core::new(Config::default());
        assert_eq!(core.view().engines().count(), 0);
        core.about.hears_of(1, Some(20));
        let stats = SchedulerStats { running: 2, waiting: 1, kv_cache_usage: 0.5, ..SchedulerStats::default() };
        let share = Share { requests: 2, tokens: 2, stats: Some(stats), ..Share::default() };
        let (step, _) = core.steps.message(1, 5, 50, share);
        core.steps.add(step, Batch { keys: vec![1, 2], prefill_tokens: 8, decode_tokens: 1, tokens: 2 });
        core.steps.message(3, 6, 60, Share::default());
        let rows: Vec<EngineNow> = core.view().engines().collect();
        let newest = StepNow { ended: 50, batch: 2, prefill_tokens: 8, decode_tokens: 1 };
        let first = EngineNow {
            engine: 1,
            process: Some(20),
            running: Some(2),
            waiting: Some(1),
            kv_cache_usage: Some(0.5),
            tokens: 2,
            step: Some(newest),
        };
        assert_eq!(rows[0], first);
        assert_eq!((rows[1].engine, rows[1].running, rows[1].process, rows[1].tokens), (3, None, None, 0));
    }
}
