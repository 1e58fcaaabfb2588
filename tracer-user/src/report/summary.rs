//! Requests by outcome and model, and how long their parts took.
//!
//! Enters: rows. Leaves: counts and distributions.

use std::collections::BTreeMap;

use serde::Serialize;

use super::histogram::Histogram;
use super::rows::{Row, Rows, TimeOf};
use super::samples::Samples;
use crate::output::Outcome;

/// Bars of a distribution.
pub const BARS: usize = 20;

/// Of what a distribution is.
pub const LATENCIES: [(&str, TimeOf); 8] = [
    ("ttft", |times| times.ttft),
    ("e2e", |times| times.e2e),
    ("tokenize", |times| times.tokenize),
    ("queue", |times| times.queue),
    ("prefill", |times| times.prefill),
    ("decode", |times| times.decode),
    ("detokenize", |times| times.detokenize),
    ("per_token", |times| times.per_token),
];

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Requests {
    pub count: u64,
    /// Still open when the file ends.
    pub open: u64,
    /// Over what is kept of each; in no distribution and no sum.
    pub left_out: u64,
    pub per_second: Option<f64>,
    /// Null where requests were left out.
    pub output_tokens_per_second: Option<f64>,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    pub preemptions: u64,
    pub outcomes: Vec<Counted>,
    pub models: Vec<Model>,
}

/// Something, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counted {
    pub what: &'static str,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    pub model: String,
    pub requests: u64,
    /// Neither `stop` nor `length`.
    pub not_well: u64,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    pub ttft_p50: Option<f64>,
    pub per_token_p50: Option<f64>,
}

/// A distribution, seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latency {
    pub name: &'static str,
    pub count: u64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
    /// Between the smallest and the largest, each as many times wider than the one before: where it ends, and how many.
    pub bars: Vec<(f64, u64)>,
}

pub fn requests(rows: &Rows, open: u64, seconds: Option<f64>) -> Requests {
    let sum = |of: fn(&Row) -> u64| rows.rows.iter().map(of).fold(0, u64::saturating_add);
    let count = rows.rows.len() as u64 + rows.over;
    let output_tokens = sum(|row| row.output_tokens.unwrap_or(0));
    let per_second = |n: u64| seconds.filter(|s| *s > 0.0).map(|s| n as f64 / s);
    let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
    rows.rows.iter().for_each(|row| *outcomes.entry(row.outcome).or_default() += 1);
    Requests {
        count,
        open,
        left_out: rows.over,
        per_second: per_second(count),
        output_tokens_per_second: per_second(output_tokens).filter(|_| rows.over == 0),
        prompt_tokens: sum(|row| row.prompt_tokens.unwrap_or(0)),
        cached_tokens: sum(|row| row.cached_tokens.unwrap_or(0)),
        output_tokens,
        preemptions: sum(|row| row.preemptions),
        outcomes: outcomes.into_iter().map(|(outcome, count)| Counted { what: outcome.name(), count }).collect(),
        models: models(rows),
    }
}

fn models(rows: &Rows) -> Vec<Model> {
    let mut models: Vec<Model> = rows.models.iter().enumerate().map(|(at, name)| model(rows, at, name)).collect();
    models.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.model.cmp(&b.model)));
    models
}

fn model(rows: &Rows, at: usize, name: &str) -> Model {
    let of = || rows.rows.iter().filter(move |row| row.model == at);
    let sum = |tokens: fn(&Row) -> Option<u64>| of().filter_map(tokens).fold(0, u64::saturating_add);
    let median = |time: fn(&Row) -> Option<f64>| of().filter_map(time).collect::<Samples>().median();
    Model {
        model: name.to_owned(),
        requests: of().count() as u64,
        not_well: of().filter(|row| !row.went_well()).count() as u64,
        prompt_tokens: sum(|row| row.prompt_tokens),
        output_tokens: sum(|row| row.output_tokens),
        ttft_p50: median(|row| row.times.ttft),
        per_token_p50: median(|row| row.times.per_token),
    }
}

/// The distributions of what is known of any request, the times between tokens among them.
pub fn latencies(rows: &[Row], inter_token: &Histogram) -> Vec<Latency> {
    let mut out: Vec<Latency> = LATENCIES
        .iter()
        .filter_map(|(name, of)| exact(name, &rows.iter().filter_map(|row| of(&row.times)).collect()))
        .collect();
    let at = out.iter().position(|latency| latency.name != "ttft").unwrap_or(out.len());
    out.splice(at..at, approximate("inter_token", inter_token));
    out
}

fn exact(name: &'static str, of: &Samples) -> Option<Latency> {
    let q = |q| of.quantile(q);
    let bars = bars(of.sorted().iter().map(|seconds| (*seconds, 1)), q(0.0)?, of.max()?);
    let count = of.count() as u64;
    Some(Latency { name, count, p50: q(0.5)?, p95: q(0.95)?, p99: q(0.99)?, max: of.max()?, bars })
}

fn approximate(name: &'static str, of: &Histogram) -> Option<Latency> {
    let q = |q| of.quantile(q);
    let bars = bars(of.iter(), q(0.0)?, q(1.0)?);
    Some(Latency { name, count: of.count(), p50: q(0.5)?, p95: q(0.95)?, p99: q(0.99)?, max: q(1.0)?, bars })
}

/// Counts by size, from the smallest to the largest in equal steps of their logarithm.
fn bars(all: impl Iterator<Item = (f64, u64)>, least: f64, most: f64) -> Vec<(f64, u64)> {
    // Below a microsecond nothing is told apart.
    let (least, most) = (least.max(1e-6), most.max(1e-6));
    let width = (most / least).ln() / BARS as f64;
    let mut bars: Vec<(f64, u64)> = (1..=BARS).map(|at| (least * (width * at as f64).exp(), 0)).collect();
    for (seconds, times) in all {
        let at = if width > 0.0 { ((seconds.max(least) / least).ln() / width) as usize } else { 0 };
        bars[at.min(BARS - 1)].1 += times;
    }
    bars
}
