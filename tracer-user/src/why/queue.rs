//! Waits for the engine: for a first place in its batch, and for another one after a preemption.
//!
//! What is waited for is told by how full the KV cache and the batch were meanwhile; where that says nothing, so does the evidence.

use super::Kind;
use super::case::{float, int, is, took};
use super::judge::{Charge, Judge};
use super::limits;
use super::words::{count, number, percent, time};
use crate::model::keys::attribute;
use crate::output::{EngineStep, Span};

pub(super) fn judge(judge: &mut Judge<'_>) {
    let waits: Vec<&Span> = judge.case.waits_for("admission").collect();
    for wait in waits {
        admission(judge, wait);
    }
    preemptions(judge);
}

fn admission(judge: &mut Judge<'_>, wait: &Span) {
    let usual = judge.usual.any().unwrap_or(0).saturating_mul(limits::WAIT_STEPS);
    let floor = judge.floor(limits::LEAST, limits::LEAST_SHARE).max(usual.saturating_add(1));
    let full = Fullness::of(judge, wait);
    let times = (wait.start_ns, wait.end_ns);
    if let Some(prompt) = behind_a_prompt(judge, wait).filter(|_| full.kv.is_none_or(|kv| kv < limits::KV_FULL)) {
        let charge = Charge { kind: Kind::PrefillOfOthers, inferred: true, floor };
        judge.blame(&charge, |ledger| ledger.claim(times.0, times.1), |_| prompt);
        return;
    }
    if let Some(room) = full.room.as_deref().filter(|_| is(judge.case.root, attribute::STRUCTURED_OUTPUT)) {
        let charge = Charge { kind: Kind::Grammar, inferred: true, floor };
        let evidence =
            format!("not scheduled although there was room ({room}): the grammar of its output is compiled first");
        judge.blame(&charge, |ledger| ledger.claim(times.0, times.1), |_| evidence);
        return;
    }
    let charge = Charge { kind: Kind::Queued, inferred: false, floor };
    judge.blame(&charge, |ledger| ledger.claim(times.0, times.1), |_| full.words());
}

/// What is known of an engine while a request waited for it.
struct Fullness {
    /// Those that waited already.
    waiting: Option<u64>,
    running: Option<u64>,
    /// The most of it.
    kv: Option<f64>,
    /// As many ran as ever did, and as had before it came.
    is_batch_full: bool,
    /// Fewer ran all the time than had before it came, or none, and the KV cache was free: how many, and how free.
    room: Option<String>,
}

impl Fullness {
    fn of(judge: &Judge<'_>, wait: &Span) -> Self {
        let steps: Vec<&EngineStep> = judge.steps_within(wait.start_ns, wait.end_ns).to_vec();
        let stats = || steps.iter().filter_map(|step| step.stats);
        let first = stats().next();
        let kv = float(wait, attribute::QUEUE_KV_USAGE).or(stats().map(|of| of.kv_cache_usage).reduce(f64::max));
        Self {
            waiting: int(wait, attribute::QUEUE_WAITING).or(first.map(|of| of.waiting.saturating_sub(1))),
            running: stats().map(|of| of.running).max().or(int(wait, attribute::QUEUE_RUNNING)),
            kv,
            is_batch_full: is_batch_full(judge, &steps),
            room: room(judge, wait, &steps, kv),
        }
    }

    fn words(&self) -> String {
        let behind = match self.waiting {
            Some(0) => "queued with nobody before it".to_owned(),
            Some(others) => format!("queued behind {}", count(others, "request")),
            None => "queued, behind how many is not known".to_owned(),
        };
        if let Some(room) = self.room.as_deref().filter(|_| self.waiting == Some(0)) {
            return format!("{behind}, although there was room ({room})");
        }
        let ran = self.running.map(|running| format!(" ({} ran)", number(running))).unwrap_or_default();
        let reason = match self.kv {
            Some(kv) if kv >= limits::KV_FULL => format!("KV cache {} full", percent(kv)),
            Some(kv) if self.is_batch_full => format!("batch full{ran}, KV cache {} used", percent(kv)),
            Some(kv) if kv < limits::KV_FREE => format!("for a place in the batch{ran}, KV cache {} used", percent(kv)),
            Some(kv) => {
                format!("whether for KV cache ({} used) or a place in the batch{ran} cannot be told", percent(kv))
            }
            None => format!("for KV cache or a place in the batch{ran}: the scheduler does not say"),
        };
        format!("{behind}, {reason}")
    }
}

/// Requests in a step: of a full batch those that end are gone when the step says how many run.
fn batch(step: &EngineStep) -> Option<u64> {
    step.stats.map(|stats| stats.running.max(step.requests))
}

/// The most requests that ran in a step before it came, where enough of them are known.
fn ran_before(judge: &Judge<'_>) -> Option<u64> {
    let before: Vec<u64> = judge.before.iter().filter_map(|step| batch(step)).collect();
    before.iter().copied().max().filter(|_| before.len() >= limits::LIKE)
}

fn room(judge: &Judge<'_>, wait: &Span, steps: &[&EngineStep], kv: Option<f64>) -> Option<String> {
    let said = [attribute::QUEUE_RUNNING, attribute::QUEUE_MAX_RUNNING].into_iter().filter_map(|key| int(wait, key));
    let most = said.chain(steps.iter().filter_map(|step| batch(step))).max()?;
    let kv = kv.filter(|kv| *kv < limits::KV_FREE)?;
    let before = ran_before(judge).filter(|before| *before > most);
    let ran = match before {
        Some(before) => format!("{} ran, {} did before", number(most), number(before)),
        None if most == 0 => "none ran".to_owned(),
        None => return None,
    };
    Some(format!("{ran}, KV cache {} used", percent(kv)))
}

/// Whether as many ran in these steps as ever did. That so many had run before it came, and no more, is what tells a full batch from one that
/// just did not grow: where that is not known, neither is this.
fn is_batch_full(judge: &Judge<'_>, steps: &[&EngineStep]) -> bool {
    let before_it = ran_before(judge).unwrap_or(0);
    let ever = judge.steps.iter().filter_map(|step| batch(step)).fold(before_it, u64::max);
    let is_full = |running: u64| running > 0 && running.saturating_mul(10) >= ever.saturating_mul(9);
    let said: Vec<u64> = steps.iter().filter_map(|step| batch(step)).collect();
    let full = said.iter().filter(|running| is_full(**running)).count();
    full > 0 && full as f64 >= said.len() as f64 * limits::BATCH_FULL && is_full(before_it)
}

/// What is said where one other prompt fills the wait: it took the tokens that a step may compute.
fn behind_a_prompt(judge: &Judge<'_>, wait: &Span) -> Option<String> {
    let usual = judge.usual.any()?.saturating_mul(limits::PREFILL_STEPS);
    let within = judge.others.within(wait.start_ns, wait.end_ns);
    let (prompt, overlap) = within.max_by_key(|(_, overlap)| *overlap)?;
    let fills = overlap as f64 >= took(wait) as f64 * limits::WAIT_BEHIND_PROMPT;
    let is_long = prompt.end_ns.saturating_sub(prompt.start_ns) > usual
        && prompt.tokens.is_some_and(|tokens| tokens >= limits::LONG_PROMPT);
    let tokens = prompt.tokens.filter(|_| fills && is_long)?;
    Some(format!("waited while the prompt of another request was computed ({})", count(tokens, "token")))
}

fn preemptions(judge: &mut Judge<'_>) {
    let waits: Vec<&Span> = judge.case.waits_for("preemption").collect();
    let Some(first) = waits.first() else { return };
    let lost: Vec<(u64, u64)> = waits.iter().map(|wait| (wait.start_ns, regained(judge, wait))).collect();
    let times = judge.case.preemptions.max(waits.len() as u64);
    let waited = waits.iter().fold(0, |sum: u64, wait| sum.saturating_add(took(wait)));
    let kv = waits.iter().filter_map(|wait| float(wait, attribute::QUEUE_KV_USAGE)).reduce(f64::max);
    let of_steps = judge.steps_within(first.start_ns, first.end_ns).iter().filter_map(|step| step.stats);
    let kv = kv.or(of_steps.map(|stats| stats.kv_cache_usage).reduce(f64::max));
    let kv = kv.map(|kv| format!(", KV cache {} full", percent(kv))).unwrap_or_default();
    let floor = judge.floor(limits::LEAST, limits::LEAST_SHARE);
    let charge = Charge { kind: Kind::Preempted, inferred: false, floor };
    let claim = |ledger: &mut super::ledger::Ledger| lost.iter().map(|of| ledger.claim(of.0, of.1)).sum();
    judge.blame(&charge, claim, |taken| {
        let again = taken.saturating_sub(waited);
        let again = if again > 0 { format!(" and computed again for {}", time(again)) } else { String::new() };
        format!("preempted {}{kv}: waited {}{again}", count(times, "time"), time(waited.min(taken)))
    });
}

/// When it was where it had been: the next token, where that is seen.
fn regained(judge: &Judge<'_>, wait: &Span) -> u64 {
    let case = judge.case;
    let is_around = |of: &&Span| of.start_ns <= wait.start_ns && of.end_ns >= wait.end_ns;
    // Of a run of steps that are folded the whole is no measure.
    let step = case.pieces.iter().copied().filter(|piece| int(piece, attribute::STEP).is_some()).find(is_around);
    step.or(case.prefill.filter(|prefill| is_around(prefill))).map_or(wait.end_ns, |of| of.end_ns)
}
