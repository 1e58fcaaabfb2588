//! Takes what is in a file, and keeps what a report needs of it.
//!
//! Enters: requests and steps, in the order of the file. Leaves: a [`Report`]. Of each request numbers are kept; of what is whole, as much as
//! [`STORE`] lets.

use std::sync::Arc;

use super::histogram::Histogram;
use super::rows::Rows;
use super::slowest::Slowest;
use super::steps::StepDigest;
use super::summary::{self, Counted};
use super::{FileSaid, LossSaid, Report, SCHEMA, phases};
use crate::model::keys::{attribute, span};
use crate::output::{AccessRecord, EngineStep, Span, Trace, Value};
use crate::recall::{About, Taker};
use crate::store::{Limits, Store};

/// What is kept whole, to say why a request was slow: its neighbours and its steps.
const STORE: Limits = Limits { bytes: 64 << 20, age_ns: u64::MAX, notable_age_ns: u64::MAX };
/// The slowest are looked at again after so many requests.
const JUDGE_EVERY: u64 = 64;

#[derive(Debug)]
pub struct Digest {
    pub rows: Rows,
    inter_token: Histogram,
    steps: StepDigest,
    slowest: Slowest,
    store: Store,
    open: u64,
    taken: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            rows: Rows::default(),
            inter_token: Histogram::default(),
            steps: StepDigest::default(),
            slowest: Slowest::default(),
            store: Store::new(STORE),
            open: 0,
            taken: 0,
        }
    }
}

impl Taker for Digest {
    fn request(&mut self, trace: &Arc<Trace>, record: Option<&Arc<AccessRecord>>) {
        trace.spans.iter().for_each(|of| between_tokens(of, &mut self.inter_token));
        match record {
            Some(record) => {
                self.rows.take(record);
                self.slowest.take(trace, record);
            }
            None => self.open += 1,
        }
        Taker::request(&mut self.store, trace, record);
        self.taken += 1;
        if self.taken.is_multiple_of(JUDGE_EVERY) {
            self.slowest.judge(&self.store, false);
        }
    }

    fn step(&mut self, step: &Arc<EngineStep>) {
        self.steps.take(step);
        Taker::step(&mut self.store, step);
    }
}

impl Digest {
    /// Nothing more comes.
    pub fn report(mut self, path: &str, about: &About) -> Report {
        self.slowest.judge(&self.store, true);
        let file = FileSaid::of(path, about);
        let incomplete = self.rows.missing.iter().map(|(what, count)| Counted { what: what.name(), count: *count });
        Report {
            schema: SCHEMA,
            requests: summary::requests(&self.rows, self.open, file.seconds),
            latency: summary::latencies(&self.rows.rows, &self.inter_token),
            phases: phases::phases(&self.rows.rows),
            slowest: self.slowest.said(),
            steps: self.steps.said(),
            incomplete: incomplete.collect(),
            losses: about.losses.iter().map(LossSaid::of).collect(),
            file,
        }
    }
}

/// The times between a request's tokens that a span stands for. Of those that are folded into one the smallest, the largest and the median
/// are known, which stands for the rest.
fn between_tokens(of: &Span, to: &mut Histogram) {
    if of.name == span::DECODE_STEP {
        to.add(of.end_ns.saturating_sub(of.start_ns) as f64 / 1e9, 1);
    }
    if of.name != span::DECODE_STEPS {
        return;
    }
    let value = |key| of.attributes.iter().find(|(known, _)| *known == key).map(|(_, value)| value);
    let seconds = |key| match value(key) {
        Some(Value::Float(seconds)) => Some(*seconds),
        Some(Value::Int(seconds)) => Some(*seconds as f64),
        _ => None,
    };
    let Some(Value::Int(count)) = value(attribute::STEP_COUNT) else { return };
    let count = u64::try_from(*count).unwrap_or(0);
    let ends = [attribute::STEP_MIN, attribute::STEP_MAX];
    for (key, _) in ends.iter().zip(0..count) {
        to.add(seconds(key).unwrap_or(f64::NAN), 1);
    }
    to.add(seconds(attribute::STEP_P50).unwrap_or(f64::NAN), count.saturating_sub(2));
}
