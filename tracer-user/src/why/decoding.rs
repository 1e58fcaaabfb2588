//! Other requests' prompts inside its decode steps: what such a step took over a usual one.
//!
//! Steps of the engine say how many tokens of prompts they computed; a prompt that is computed over several steps counts whole in the last
//! of them, so the others are told by the times in which prompts of others were computed, seen or, where no trace tells of one, inferred.

use super::Kind;
use super::case::{int, took};
use super::judge::{Charge, Judge};
use super::ledger::Ledger;
use super::limits;
use super::untold::is_slowed;
use super::usual::{has_others, overlaps, took_of};
use super::words::{count, number, time};
use crate::model::keys::attribute;
use crate::output::{EngineStep, Span};

/// A step that was slower than usual.
#[derive(Debug, Clone, Copy)]
struct Slowed {
    from: u64,
    to: u64,
    excess: u64,
    usual: u64,
    /// Tokens of others' prompts that ended in it; 0 where that is not known.
    tokens: u64,
}

pub(super) fn judge(judge: &mut Judge<'_>) {
    let Some(decode) = judge.case.decode else { return };
    let of_engine = judge.steps_within(decode.start_ns, decode.end_ns);
    let (slowed, steps): (Vec<Slowed>, u64) = if of_engine.is_empty() {
        (of_tree(judge), judge.case.pieces.len() as u64)
    } else {
        (of_engine.iter().filter_map(|step| slowed(judge, step)).collect(), of_engine.len() as u64)
    };
    let Some(worst) = slowed.iter().copied().max_by_key(|of| of.excess) else { return };
    let tokens = slowed.iter().fold(0_u64, |sum, of| sum.saturating_add(of.tokens)).max(prompts(judge, &slowed));
    let which = number_of(judge, &worst);
    let floor = judge.floor(limits::LEAST, limits::LEAST_SHARE_OF_WORK);
    let charge = Charge { kind: Kind::PrefillOfOthers, inferred: true, floor };
    let claim = |ledger: &mut Ledger| slowed.iter().map(|of| ledger.claim_some(of.from, of.to, of.excess)).sum();
    judge.blame(&charge, claim, |_| {
        let tokens = if tokens > 0 { format!(" ({})", count(tokens, "token")) } else { String::new() };
        format!(
            "prompts of other requests{tokens} were computed in {} of its {steps} steps, the most in {which}: {} instead of {}",
            number(slowed.len() as u64),
            time(worst.to.saturating_sub(worst.from)),
            time(worst.usual),
        )
    });
}

fn slowed(judge: &Judge<'_>, step: &EngineStep) -> Option<Slowed> {
    let usual = judge.usual.step(step.requests)?;
    let excess = took_of(step).saturating_sub(usual);
    let own = judge.case.own_prompt_in((step.trace_id, step.span_id));
    let tokens = step.prefill_tokens.saturating_sub(own);
    let has_some = tokens >= limits::FEW || (tokens == 0 && has_others(step, judge.case, &judge.others));
    let is_slowed = is_slowed(took_of(step), usual) && has_some;
    is_slowed.then_some(Slowed { from: step.start_ns, to: step.end_ns, excess, usual, tokens })
}

/// Where the engine's steps are not kept: the steps that the tree shows one by one.
fn of_tree(judge: &Judge<'_>) -> Vec<Slowed> {
    let Some(usual) = judge.usual.any() else { return Vec::new() };
    let shown = judge.case.pieces.iter().filter(|piece| int(piece, attribute::STEP).is_some());
    let slow = shown.filter_map(|piece| {
        let excess = took(piece).saturating_sub(usual);
        let is_slowed = is_slowed(took(piece), usual) && overlaps(piece.start_ns, piece.end_ns, &judge.others);
        is_slowed.then_some(Slowed { from: piece.start_ns, to: piece.end_ns, excess, usual, tokens: 0 })
    });
    slow.collect()
}

/// Tokens of the prompts that were computed in steps, each prompt once.
fn prompts(judge: &Judge<'_>, slowed: &[Slowed]) -> u64 {
    let (Some(first), Some(last)) = (slowed.first(), slowed.last()) else { return 0 };
    let is_in = |from: u64, to: u64| {
        let at = slowed.partition_point(|of| of.to <= from);
        slowed.get(at).is_some_and(|of| of.from < to)
    };
    let prompts = judge.others.within(first.from, last.to).filter(|(of, _)| is_in(of.start_ns, of.end_ns));
    prompts.filter_map(|(of, _)| of.tokens).fold(0, u64::saturating_add)
}

/// Which of its decode steps that was.
fn number_of(judge: &Judge<'_>, of: &Slowed) -> String {
    let middle = of.from / 2 + of.to / 2;
    let around = |piece: &&&Span| piece.start_ns <= middle && middle < piece.end_ns;
    let Some(piece) = judge.case.pieces.iter().find(around) else { return "one".to_owned() };
    let number = |key| int(piece, key);
    match (number(attribute::STEP), number(attribute::FIRST_STEP), number(attribute::LAST_STEP)) {
        (Some(step), _, _) => format!("step {step}"),
        (None, Some(first), Some(last)) => format!("one of the steps {first} to {last}"),
        _ => "one".to_owned(),
    }
}
