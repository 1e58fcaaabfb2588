//! What others did meanwhile, by time.

use super::case::Case;
use super::{Around, Prefill};

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
pub(super) struct Others<'a> {
    /// By their starts.
    prefills: Vec<&'a Prefill>,
    any: Times,
}

impl<'a> Others<'a> {
    pub(super) fn of(case: &Case<'_>, around: &'a Around) -> Self {
        let is_near = |of: &&Prefill| case.engine.is_none_or(|engine| of.engine == engine);
        let mut prefills: Vec<&Prefill> = around.prefills.iter().filter(is_near).collect();
        prefills.sort_by_key(|of| (of.start_ns, of.end_ns));
        let any = Times::of(prefills.iter().map(|of| (of.start_ns, of.end_ns)));
        Self { prefills, any }
    }

    /// How much of `from..to` some other prompt was computed, ns.
    pub(super) fn overlap(&self, from: u64, to: u64) -> u64 {
        self.any.overlap(from, to)
    }

    /// Those that overlap `from..to`, with how much of it they do.
    pub(super) fn within(&self, from: u64, to: u64) -> impl Iterator<Item = (&'a Prefill, u64)> {
        let until = self.prefills.partition_point(|of| of.start_ns < to);
        let inside = self.prefills[..until].iter().filter(move |of| of.end_ns > from);
        inside.map(move |of| (*of, of.end_ns.min(to).saturating_sub(of.start_ns.max(from))))
    }
}
