//! Prompts that no trace tells of: of requests that are still open, or are not kept.
//!
//! Enters: the steps of an engine, those that came next with them, and the prompts that are known. Leaves: prompts, inferred from the steps:
//! a step says how many tokens the prompts had that it ended, so that slow steps before it were parts of what no known prompt explains; and
//! from when on steps were slow until now, with requests in them that gave nothing, of which it is open what they were.

use super::case::{Case, took, uncached};
use super::others::Others;
use super::usual::{Usual, overlaps, took_of};
use super::{Prefill, limits};
use crate::output::EngineStep;

#[derive(Debug, Default)]
pub(super) struct Untold {
    pub(super) prompts: Vec<Prefill>,
    /// Steps from here on may be parts of a prompt that has not ended, unix ns.
    pub(super) open_from: Option<u64>,
}

impl Untold {
    /// `steps` of one engine, by their ends.
    pub(super) fn of(case: &Case<'_>, steps: &[&EngineStep], usual: &Usual, others: &Others) -> Self {
        let mut untold = Self::default();
        // Of several engines one says nothing of the other.
        if case.engine.is_none() {
            return untold;
        }
        let mut run = 0;
        for (at, step) in steps.iter().enumerate() {
            let tokens = others.untold_in(step, case);
            if tokens >= limits::LONG_PROMPT {
                // Parts that are shorter make no step longer.
                let parts = usize::try_from(tokens / limits::LONG_PROMPT).unwrap_or(usize::MAX);
                let first = at - run.min(parts - 1);
                untold.prompts.push(Prefill {
                    trace: step.trace_id,
                    engine: step.engine,
                    start_ns: steps[first].start_ns,
                    end_ns: step.end_ns,
                    tokens: Some(tokens),
                });
                run = 0;
            } else if is_part(step, case, usual, others) {
                run += 1;
            } else {
                run = 0;
            }
        }
        let open = &steps[steps.len() - run..];
        // Who runs and gives no token has its prompt computed.
        let is_silent = |step: &&&EngineStep| step.stats.is_none_or(|stats| stats.running > step.requests);
        if open.iter().filter(is_silent).count() * 2 > run {
            untold.open_from = open.first().map(|step| step.start_ns);
        }
        untold
    }
}

/// It was slow, and no prompt is known to be why.
fn is_part(step: &EngineStep, case: &Case<'_>, usual: &Usual, others: &Others) -> bool {
    let is_own = |step: &EngineStep| {
        let own = case.prefill.filter(|own| uncached(own).is_none_or(|tokens| tokens >= limits::LONG_PROMPT));
        own.is_some_and(|own| took(own) > 0 && step.start_ns < own.end_ns && step.end_ns > own.start_ns)
    };
    let is_slow = usual.step(step.requests).is_some_and(|usual| is_slowed(took_of(step), usual));
    let is_plain = step.requests > 0 && step.prefill_tokens < limits::LONG_PROMPT;
    is_slow && is_plain && !is_own(step) && !overlaps(step.start_ns, step.end_ns, others)
}

/// It took longer than a usual one by what a prompt in it takes.
pub(super) fn is_slowed(took: u64, usual: u64) -> bool {
    took.saturating_sub(usual) as f64 > usual as f64 * limits::SLOWED
}
