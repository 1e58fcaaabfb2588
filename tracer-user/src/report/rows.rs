//! What is kept of each request: some numbers.
//!
//! Enters: a request's tree and record. Leaves: a [`Row`]. At most [`MAX_ROWS`] and [`MAX_MODELS`]; what is over is counted.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::output::{AccessRecord, EngineStep, Missing, Outcome, Trace};
use crate::recall::Taker;

/// Requests of which the numbers are kept: about 300 MB of them.
pub const MAX_ROWS: usize = 1_000_000;
/// Models that are told apart; a client can invent as many as it likes.
pub const MAX_MODELS: usize = 64;
/// What the model of a request is called that is one too many.
const OTHERS: &str = "(others)";
/// What it is called where nothing says it.
const UNNAMED: &str = "(unknown)";

/// A request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Place in [`Rows::models`].
    pub model: usize,
    pub outcome: Outcome,
    /// When it was over, unix ns.
    pub end_ns: u64,
    pub times: Times,
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub preemptions: u64,
}

/// One of a request's times.
pub type TimeOf = fn(&Times) -> Option<f64>;

/// Seconds; `None` where it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Times {
    pub ttft: Option<f64>,
    pub e2e: Option<f64>,
    pub parse: Option<f64>,
    pub tokenize: Option<f64>,
    pub queue: Option<f64>,
    pub prefill: Option<f64>,
    pub decode: Option<f64>,
    pub detokenize: Option<f64>,
    /// Of the engine request that took longest: its decode by the tokens behind its first.
    pub per_token: Option<f64>,
}

#[derive(Debug, Clone, Default)]
pub struct Rows {
    pub rows: Vec<Row>,
    /// In the order in which they came.
    pub models: Vec<String>,
    /// Place there of all those over [`MAX_MODELS`], which are no model.
    pub others: Option<usize>,
    /// Requests over [`MAX_ROWS`].
    pub over: u64,
    pub missing: BTreeMap<Missing, u64>,
}

impl Row {
    /// Prompt tokens that were computed.
    pub fn uncached(&self) -> Option<u64> {
        Some(self.prompt_tokens?.saturating_sub(self.cached_tokens.unwrap_or(0)))
    }

    pub fn went_well(&self) -> bool {
        matches!(self.outcome, Outcome::Stop | Outcome::Length)
    }
}

impl Rows {
    pub fn take(&mut self, record: &AccessRecord) {
        for missing in record.incomplete.missing() {
            *self.missing.entry(*missing).or_default() += 1;
        }
        if self.rows.len() == MAX_ROWS {
            self.over = self.over.saturating_add(1);
            return;
        }
        let seconds = &record.seconds;
        let times = Times {
            ttft: seconds.ttft,
            e2e: seconds.e2e,
            parse: seconds.parse,
            tokenize: seconds.tokenize,
            queue: seconds.queue,
            prefill: seconds.prefill,
            decode: seconds.decode,
            detokenize: seconds.detokenize,
            per_token: record.per_token(),
        };
        let model = self.model(record.model.as_deref());
        self.rows.push(Row {
            model,
            outcome: record.outcome,
            end_ns: record.time.0,
            times,
            prompt_tokens: record.prompt_tokens,
            cached_tokens: record.cached_tokens,
            output_tokens: record.output_tokens,
            preemptions: record.preemptions.unwrap_or(0),
        });
    }

    fn model(&mut self, model: Option<&str>) -> usize {
        let name = super::name(model.unwrap_or(UNNAMED));
        if let Some(at) = self.place(&name) {
            return at;
        }
        let place = self.models.len();
        if place < MAX_MODELS {
            self.models.push(name);
            return place;
        }
        *self.others.get_or_insert_with(|| {
            self.models.push(OTHERS.to_owned());
            place
        })
    }

    /// The models that are told apart, each with its place.
    pub fn named(&self) -> impl Iterator<Item = (usize, &String)> {
        self.models.iter().enumerate().filter(|(at, _)| Some(*at) != self.others)
    }

    /// Where a model is, if it is told apart.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.named().find(|(_, known)| *known == name).map(|(at, _)| at)
    }
}

/// Takes the numbers of a file's requests, and nothing else.
#[derive(Debug, Default)]
pub struct Collected(pub Rows);

impl Taker for Collected {
    fn request(&mut self, _trace: &Arc<Trace>, record: Option<&Arc<AccessRecord>>) {
        if let Some(record) = record {
            self.0.take(record);
        }
    }

    fn step(&mut self, _step: &Arc<EngineStep>) {}
}
