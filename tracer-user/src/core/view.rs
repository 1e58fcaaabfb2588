//! What is open now, for displays: read-only, and made when it is asked for.
//!
//! Enters: the core. Leaves: a row a request that is open, and a summary an engine. Nothing here changes anything, so looking more or
//! less often gives the same outputs.

use super::Core;
use crate::input::EventNanos;
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
    pub process: u32,
    /// First byte read, or when it was first heard of.
    pub since: EventNanos,
    pub stage: Stage,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: u64,
    /// The engine that runs it, once it gave something.
    pub engine: Option<u32>,
    /// Records that may have been its were lost.
    pub lost: bool,
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

    /// What is open: HTTP requests in the order in which they came, then engine requests that belong to none.
    pub fn open(&self) -> impl Iterator<Item = Open<'a>> {
        let generations = &self.core.generations;
        let exchanges = self.core.exchanges.iter().map(|(_, exchange)| {
            let of: Vec<&Generation> = exchange.generations.iter().filter_map(|&key| generations.get(key)).collect();
            row(Some(exchange), &of)
        });
        let alone = generations
            .iter()
            .filter(|(key, generation)| generation.exchange.is_none() && !generations.has_lead(*key))
            .map(|(_, generation)| row(None, &[generation]));
        exchanges.chain(alone)
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
        process: exchange.map_or_else(|| first.map_or(0, |generation| generation.process), |exchange| exchange.process),
        since: exchange.map_or_else(|| first.map_or(0, |generation| generation.seen), |exchange| exchange.started),
        stage,
        prompt_tokens: first.and_then(|generation| generation.prompt_tokens),
        output_tokens: generations.iter().map(|generation| generation.output_tokens).sum(),
        engine,
        lost: exchange.is_some_and(|exchange| exchange.lost) || generations.iter().any(|generation| generation.lost),
    }
}
