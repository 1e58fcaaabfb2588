//! What steps of an engine usually take.
//!
//! Enters: the steps that are known before and during a request. Leaves: medians of steps that are alike: no prompt in them, and batches of
//! the same power of two, or of a larger one that took less. Too few of a like, and nothing is usual.

use std::collections::BTreeMap;

use super::case::{Case, float, took};
use super::judge::middle;
use super::limits;
use super::others::Others;
use crate::model::keys::{attribute, span};
use crate::output::EngineStep;

#[derive(Debug, Default)]
pub(super) struct Usual {
    before: BTreeMap<u32, Vec<u64>>,
    all: BTreeMap<u32, Vec<u64>>,
    /// Of any batch.
    any: Option<u64>,
}

/// Batches that are alike have this in common.
fn like(requests: u64) -> u32 {
    requests.max(1).ilog2()
}

pub(super) fn took_of(step: &EngineStep) -> u64 {
    step.end_ns.saturating_sub(step.start_ns)
}

/// Whether a prompt of others was computed in a step, as far as that is seen.
pub(super) fn has_others(step: &EngineStep, case: &Case<'_>, others: &Others) -> bool {
    let own = case.own_prompt_in((step.trace_id, step.span_id));
    step.prefill_tokens > own || overlaps(step.start_ns, step.end_ns, others)
}

/// Whether prompts of others fill enough of a time.
pub(super) fn overlaps(from: u64, to: u64, others: &Others) -> bool {
    others.overlap(from, to) as f64 > to.saturating_sub(from) as f64 * limits::OVERLAP
}

impl Usual {
    pub(super) fn of(case: &Case<'_>, before: &[&EngineStep], during: &[&EngineStep], others: &Others) -> Self {
        let own = case.prefill.map_or((0, 0), |prefill| (prefill.start_ns, prefill.end_ns));
        let is_own = |step: &EngineStep| step.start_ns < own.1 && step.end_ns > own.0;
        let is_plain = |step: &EngineStep| step.requests > 0 && step.prefill_tokens == 0 && step.first_tokens == 0;
        let mut usual = Self::default();
        for step in before.iter().filter(|step| is_plain(step)) {
            usual.before.entry(like(step.requests)).or_default().push(took_of(step));
            usual.all.entry(like(step.requests)).or_default().push(took_of(step));
        }
        for step in during.iter().filter(|step| is_plain(step) && !is_own(step)) {
            if !overlaps(step.start_ns, step.end_ns, others) {
                usual.all.entry(like(step.requests)).or_default().push(took_of(step));
            }
        }
        usual.before.values_mut().chain(usual.all.values_mut()).for_each(|of| of.sort_unstable());
        let all: Vec<u64> = usual.all.values().flatten().copied().collect();
        usual.any = if all.len() >= limits::LIKE { middle(all) } else { of_tree(case) };
        usual
    }

    /// A step of a batch like this one.
    pub(super) fn step(&self, requests: u64) -> Option<u64> {
        enough(&self.all, requests).or(self.any)
    }

    /// The same, before the request came.
    pub(super) fn step_before(&self, requests: u64) -> Option<u64> {
        enough(&self.before, requests)
    }

    /// The part of all time that slow steps took over the median of their like, before the request came: on a host that has other work it
    /// is some. 0 where too few are known.
    pub(super) fn slow_before(&self) -> f64 {
        let (mut over, mut all) = (0.0, 0.0);
        for took in self.before.values().filter(|took| took.len() >= limits::LIKE) {
            let median = took[took.len() / 2];
            let slow = took.iter().filter(|took| **took > median.saturating_mul(limits::SLOW_STEP));
            over += slow.map(|took| (took - median) as f64).sum::<f64>();
            all += took.iter().map(|took| *took as f64).sum::<f64>();
        }
        if all > 0.0 { over / all } else { 0.0 }
    }

    /// Steps that took at least so long before the request came.
    pub(super) fn as_slow_before(&self, took: u64) -> usize {
        self.before.values().map(|known| known.iter().filter(|known| **known >= took).count()).sum()
    }

    /// A step of any batch.
    pub(super) fn any(&self) -> Option<u64> {
        self.any
    }
}

/// The median, where there are enough of a like. A larger batch takes no less, so that one which took less is a measure as well.
fn enough(of: &BTreeMap<u32, Vec<u64>>, requests: u64) -> Option<u64> {
    let known = of.range(like(requests)..).filter(|(_, took)| took.len() >= limits::LIKE);
    known.map(|(_, took)| took[took.len() / 2]).min()
}

/// As the request's own tree tells it: the median of its steps, those that are folded by their own.
fn of_tree(case: &Case<'_>) -> Option<u64> {
    let mut weighted: Vec<(u64, u64)> = Vec::new();
    for piece in &case.pieces {
        let count = super::case::int(piece, attribute::STEP_COUNT).unwrap_or(1);
        let median = match piece.name {
            span::DECODE_STEPS => super::words::ns(float(piece, attribute::STEP_P50)?),
            _ => took(piece),
        };
        weighted.push((median, count));
    }
    weighted.sort_unstable();
    let steps = weighted.iter().fold(0_u64, |sum, of| sum.saturating_add(of.1));
    let mut seen = 0_u64;
    let found = weighted.iter().find(|of| {
        seen = seen.saturating_add(of.1);
        seen > steps / 2
    });
    found.filter(|_| steps >= limits::LIKE as u64).map(|of| of.0)
}
