//! Steps that took longer than such steps do, for no reason that is seen: single ones, or all of them since before it came.
//!
//! Steps that may be parts of a prompt of others that has not ended are left out: [`super::unseen`] tells of them.

use super::Kind;
use super::judge::{Charge, Judge, middle};
use super::ledger::Ledger;
use super::limits;
use super::usual::{has_others, took_of};
use super::words::{count, number, time};
use crate::output::EngineStep;

pub(super) fn judge(judge: &mut Judge<'_>) {
    let Some((from, to)) = judge.case.in_engine() else { return };
    // A short prompt of its own makes no step longer.
    let is_plain = |step: &&&EngineStep| {
        let is_short = step.prefill_tokens < limits::LONG_PROMPT;
        is_short && step.requests > 0 && !judge.may_be_a_prompts(step) && !has_others(step, judge.case, &judge.others)
    };
    let steps: Vec<&EngineStep> = judge.steps_within(from, to).iter().filter(is_plain).copied().collect();
    if !all(judge, &steps) {
        // A first token's step is another kind of step, however short the prompt.
        let of_tokens: Vec<&EngineStep> = steps.into_iter().filter(|step| step.prefill_tokens == 0).collect();
        single(judge, &of_tokens);
    }
}

fn charge(judge: &Judge<'_>, share: f64) -> Charge {
    let floor = judge.floor(limits::LEAST_ON_A_BUSY_HOST, share);
    Charge { kind: Kind::SlowSteps, inferred: true, floor }
}

/// The engine became slow.
fn all(judge: &mut Judge<'_>, steps: &[&EngineStep]) -> bool {
    let batch = middle(steps.iter().map(|step| step.requests).collect());
    let now = middle(steps.iter().map(|step| took_of(step)).collect());
    let (Some(batch), Some(now)) = (batch, now) else { return false };
    let Some(before) = judge.usual.step_before(batch) else { return false };
    if steps.len() < limits::LIKE || now < before.saturating_mul(limits::SLOW_ENGINE) {
        return false;
    }
    let claim = |ledger: &mut Ledger| {
        let over = |step: &&EngineStep| took_of(step).saturating_sub(before);
        steps.iter().map(|step| ledger.claim_some(step.start_ns, step.end_ns, over(step))).sum()
    };
    judge.blame(&charge(judge, limits::LEAST_SHARE_OF_WORK), claim, |_| {
        format!("its steps took {}, such steps before it came {} (batches of {batch})", time(now), time(before))
    })
}

/// Some of them were.
fn single(judge: &mut Judge<'_>, steps: &[&EngineStep]) {
    let slow = steps.iter().filter_map(|step| {
        let usual = judge.usual.step(step.requests)?;
        (took_of(step) > usual.saturating_mul(limits::SLOW_STEP)).then_some((*step, usual))
    });
    let slow: Vec<(&EngineStep, u64)> = slow.collect();
    let over: f64 = slow.iter().map(|(step, usual)| took_of(step).saturating_sub(*usual) as f64).sum();
    let all: f64 = steps.iter().map(|step| took_of(step) as f64).sum();
    let Some((worst, usual)) = slow.iter().copied().max_by_key(|(step, _)| took_of(step)) else { return };
    let longest = took_of(worst);
    let is_stall = longest >= limits::STALL && judge.usual.as_slow_before(longest / 2) < limits::USUAL_STALLS;
    // No more than there always is.
    if !is_stall && over < all * judge.usual.slow_before() * limits::MORE_THAN_BEFORE {
        return;
    }
    let is_long = is_stall && longest >= limits::LONG_STALL;
    let share = if is_long { limits::LEAST_SHARE } else { limits::LEAST_SHARE_OF_STEPS };
    let claim = |ledger: &mut Ledger| {
        let claims = slow
            .iter()
            .map(|(step, usual)| ledger.claim_some(step.start_ns, step.end_ns, took_of(step).saturating_sub(*usual)));
        claims.sum()
    };
    judge.blame(&charge(judge, share), claim, |_| {
        format!(
            "{} of its {} took more than {} times as long as usual, the longest {} instead of {} (batch of {})",
            number(slow.len() as u64),
            count(steps.len() as u64, "step"),
            limits::SLOW_STEP,
            time(longest),
            time(usual),
            worst.requests,
        )
    });
}
