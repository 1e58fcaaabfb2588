//! What others did meanwhile, by time.

use super::case::Case;
use super::{Around, Prefill, limits};
use crate::output::EngineStep;

/// Times, apart and in order.
#[derive(Debug, Default)]
pub(super) struct Times(Vec<(u64, u64)>);

impl Times {
    pub(super) fn of(all: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut all: Vec<(u64, u64)> = all.collect();
        all.sort_unstable();
        let mut apart: Vec<(u64, u64)> = Vec::new();
        for of in all {
            match apart.last_mut() {
                Some(last) if of.0 <= last.1 => last.1 = last.1.max(of.1),
                _ => apart.push(of),
            }
        }
        Self(apart)
    }

    /// How much of `from..to` they fill, ns.
    pub(super) fn overlap(&self, from: u64, to: u64) -> u64 {
        let first = self.0.partition_point(|of| of.1 <= from);
        let inside = self.0[first..].iter().take_while(|of| of.0 < to);
        inside.map(|of| of.1.min(to).saturating_sub(of.0.max(from))).sum()
    }
}

/// The prompts of others, on the engine that is judged.
#[derive(Debug)]
pub(super) struct Others {
    /// By their starts.
    prefills: Vec<Prefill>,
    /// Without those of a few tokens, beside which a step takes as long as without.
    any: Times,
    /// When they ended, in order, with their tokens; one of unknown length explains any.
    ends: Vec<(u64, u64)>,
}

impl Others {
    pub(super) fn of(case: &Case<'_>, around: &Around) -> Self {
        let is_near = |of: &&Prefill| case.engine.is_none_or(|engine| of.engine == engine);
        Self::new(around.prefills.iter().filter(is_near).cloned().collect())
    }

    fn new(mut prefills: Vec<Prefill>) -> Self {
        prefills.sort_by_key(|of| (of.start_ns, of.end_ns));
        let matters = |of: &&Prefill| of.tokens.is_none_or(|tokens| tokens >= limits::FEW);
        let any = Times::of(prefills.iter().filter(matters).map(|of| (of.start_ns, of.end_ns)));
        let mut ends: Vec<(u64, u64)> = prefills.iter().map(|of| (of.end_ns, of.tokens.unwrap_or(u64::MAX))).collect();
        ends.sort_unstable();
        Self { prefills, any, ends }
    }

    /// With these as well.
    pub(super) fn with(mut self, more: Vec<Prefill>) -> Self {
        self.prefills.extend(more);
        Self::new(self.prefills)
    }

    /// How much of `from..to` some other prompt of more than a few tokens was computed, ns.
    pub(super) fn overlap(&self, from: u64, to: u64) -> u64 {
        self.any.overlap(from, to)
    }

    /// Those that overlap `from..to`, with how much of it they do.
    pub(super) fn within(&self, from: u64, to: u64) -> impl Iterator<Item = (&Prefill, u64)> {
        let until = self.prefills.partition_point(|of| of.start_ns < to);
        let inside = self.prefills[..until].iter().filter(move |of| of.end_ns > from);
        inside.map(move |of| (of, of.end_ns.min(to).saturating_sub(of.start_ns.max(from))))
    }

    /// Tokens of prompts that ended in a step, and are neither the request's own nor of one of these.
    pub(super) fn untold_in(&self, step: &EngineStep, case: &Case<'_>) -> u64 {
        let own = case.own_prompt_in((step.trace_id, step.span_id));
        if step.prefill_tokens <= own {
            return 0;
        }
        // Theirs end when the step does, as far as clocks agree.
        let half = (step.end_ns.saturating_sub(step.start_ns) / 2).max(1);
        let first = self.ends.partition_point(|of| of.0 <= step.end_ns.saturating_sub(half));
        let ended = self.ends[first..].iter().take_while(|of| of.0 < step.end_ns.saturating_add(half));
        let told = ended.fold(0, |sum: u64, of| sum.saturating_add(of.1));
        (step.prefill_tokens - own).saturating_sub(told)
    }
}
