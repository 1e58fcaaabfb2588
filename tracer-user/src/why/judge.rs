//! What the families of causes share: the case, what went on around it, and what is blamed already.

use std::fmt::Write as _;

use super::case::{Case, int, took};
use super::ledger::Ledger;
use super::others::{Others, Times};
use super::untold::Untold;
use super::usual::{Usual, took_of};
use super::words::{count, time};
use super::{Around, Cause, Kind, Verdict, limits};
use crate::model::keys::attribute;
use crate::output::{EngineStep, Outcome};

#[derive(Debug)]
pub(super) struct Judge<'a> {
    pub(super) case: &'a Case<'a>,
    /// The steps of its engine that overlap it.
    pub(super) steps: Vec<&'a EngineStep>,
    /// Those that were over before it came.
    pub(super) before: Vec<&'a EngineStep>,
    pub(super) usual: Usual,
    pub(super) others: Others,
    /// From here on its steps may be parts of a prompt that has not ended, unix ns.
    pub(super) open_from: Option<u64>,
    /// Times in which prompts of others were tokenized, apart and in order.
    pub(super) tokenizing: Times,
    ledger: Ledger,
    causes: Vec<Cause>,
}

/// A cause that is to be blamed if it cost enough.
#[derive(Debug)]
pub(super) struct Charge {
    pub(super) kind: Kind,
    pub(super) inferred: bool,
    /// Below this it is not named.
    pub(super) floor: u64,
}

impl<'a> Judge<'a> {
    pub(super) fn new(case: &'a Case<'a>, around: &'a Around) -> Self {
        let is_its = |step: &&EngineStep| case.engine.is_none_or(|engine| step.engine == engine);
        let steps: Vec<&EngineStep> = around.steps.iter().map(|step| &**step).filter(is_its).collect();
        let before: Vec<&EngineStep> = around.before.iter().map(|step| &**step).filter(is_its).collect();
        let told = Others::of(case, around);
        let usual = Usual::of(case, &before, &steps, &told);
        let next = around.after.iter().map(|step| &**step).filter(is_its);
        let known: Vec<&EngineStep> = steps.iter().copied().chain(next).collect();
        let untold = Untold::of(case, &known, &usual, &told);
        let others = told.with(untold.prompts);
        let usual = Usual::of(case, &before, &steps, &others);
        let ledger = Ledger::new(case.root.start_ns, case.root.end_ns);
        let tokenizing = Times::of(around.tokenizing.iter().copied());
        Self { case, steps, before, usual, others, open_from: untold.open_from, tokenizing, ledger, causes: Vec::new() }
    }

    pub(super) fn is_below_noise(&self) -> bool {
        self.case.whole() < limits::NOISE
    }

    /// The time from which on something is named: `least` ns, and this share of the request.
    pub(super) fn floor(&self, least: u64, share: f64) -> u64 {
        least.max((self.case.whole() as f64 * share) as u64)
    }

    /// Takes times out of the ledger, as `claim` does, and blames them; nothing happens where they are under the floor. `evidence` is told
    /// what was taken, ns.
    pub(super) fn blame(
        &mut self,
        charge: &Charge,
        claim: impl FnOnce(&mut Ledger) -> u64,
        evidence: impl FnOnce(u64) -> String,
    ) -> bool {
        let mut ledger = self.ledger.clone();
        let taken = claim(&mut ledger);
        if taken < charge.floor {
            return false;
        }
        self.ledger = ledger;
        let whole = self.case.whole().max(1);
        let (seconds, share, evidence) = (taken as f64 / 1e9, taken as f64 / whole as f64, evidence(taken));
        match self.causes.iter_mut().find(|known| known.kind == charge.kind) {
            Some(known) => {
                known.seconds += seconds;
                known.share += share;
                known.inferred |= charge.inferred;
                known.evidence = format!("{}; {evidence}", known.evidence);
            }
            None => {
                self.causes.push(Cause { kind: charge.kind, seconds, share, evidence, inferred: charge.inferred });
            }
        }
        true
    }

    pub(super) fn blames(&self, kind: Kind) -> bool {
        self.causes.iter().any(|cause| cause.kind == kind)
    }

    /// Steps that have the middle of them in `from..to`: the ends of neighbours fall together.
    pub(super) fn steps_within(&self, from: u64, to: u64) -> &[&'a EngineStep] {
        let middle = |step: &EngineStep| step.start_ns / 2 + step.end_ns / 2;
        let first = self.steps.partition_point(|step| middle(step) < from);
        let count = self.steps[first..].partition_point(|step| middle(step) < to);
        &self.steps[first..first + count]
    }

    /// It may be a part of a prompt that has not ended: whether it was slow for that, nobody knows.
    pub(super) fn may_be_a_prompts(&self, step: &EngineStep) -> bool {
        self.open_from.is_some_and(|from| step.start_ns >= from)
    }

    /// What such steps took over usual ones, ns.
    pub(super) fn withheld(&self) -> u64 {
        let Some((from, to)) = self.case.in_engine() else { return 0 };
        let open = self.steps_within(from, to).iter().filter(|step| self.may_be_a_prompts(step));
        let over = open.map(|step| took_of(step).saturating_sub(self.usual.step(step.requests).unwrap_or(u64::MAX)));
        over.fold(0, u64::saturating_add)
    }

    pub(super) fn verdict(mut self, unseen: Vec<String>) -> Verdict {
        if self.causes.is_empty() && !self.is_below_noise() {
            self.causes.extend(self.many_tokens());
        }
        let rank = |cause: &Cause| (cause.kind != Kind::EngineError, -cause.seconds);
        self.causes.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
        Verdict { causes: self.causes, unseen }
    }

    /// Most of its time went into giving tokens, and nothing else stands out.
    fn many_tokens(&self) -> Option<Cause> {
        let is_well = matches!(self.case.outcome, Some(Outcome::Stop | Outcome::Length | Outcome::Abort) | None);
        let decode =
            self.case.decode.filter(|decode| is_well && took(decode).saturating_mul(2) >= self.case.whole())?;
        let tokens = int(decode, attribute::TOKENS).filter(|tokens| *tokens > 1)?;
        let mut evidence = format!("{}, {} each", count(tokens, "token"), time(took(decode) / (tokens - 1)));
        let of_steps = self.steps_within(decode.start_ns, decode.end_ns);
        if let Some(batch) = middle(of_steps.iter().map(|step| step.requests).collect()) {
            let _ = write!(evidence, ", in batches of {batch}");
        }
        Some(Cause {
            kind: Kind::ManyTokens,
            seconds: took(decode) as f64 / 1e9,
            share: took(decode) as f64 / self.case.whole().max(1) as f64,
            evidence,
            inferred: super::case::is_inferred(decode),
        })
    }
}

/// The median, the higher of two.
pub(super) fn middle(mut values: Vec<u64>) -> Option<u64> {
    let half = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(half).1)
}
