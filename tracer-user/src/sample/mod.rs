//! Which traces are exported: the one place between what a run saw and what its trace back end gets.
//!
//! Enters: finished requests and engine steps, in the order in which the pure side says them. Leaves: a verdict on each request,
//! and the engine steps to export. Metrics, access log and terminal are asked before and stay complete. No clock: what is
//! "recent" goes by the traces' own times, so a replay decides as the live run did. Invariants: an engine step leaves at most
//! once; memory is bounded; whatever is left out is counted with its reason.

use std::fmt;

use self::policy::{EngineSteps, Policy};
use self::sampler::Sampler;
use self::steps::Steps;
use crate::output::{EngineStep, Trace};

pub mod policy;
pub mod sampler;
pub mod steps;
pub mod window;

/// Why a trace was not exported; the `reason` label of `inferspan_traces_left_out_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// An engine step that no exported request links to.
    EngineSteps,
    /// The policy did not draw it.
    Sampler,
    /// The caller's `traceparent` says that the trace is not sampled.
    Traceparent,
}

impl LeftOut {
    pub const ALL: [Self; 3] = [Self::EngineSteps, Self::Sampler, Self::Traceparent];

    pub fn name(self) -> &'static str {
        match self {
            Self::EngineSteps => "engine_steps",
            Self::Sampler => "sampler",
            Self::Traceparent => "traceparent",
        }
    }
}

/// How much was left out so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    left_out: [u64; LeftOut::ALL.len()],
    /// Engine steps that exported requests link to, and that were not at hand (any more).
    pub steps_missed: u64,
}

impl Counts {
    pub fn left_out(&self, why: LeftOut) -> u64 {
        self.left_out[why as usize]
    }

    fn add(&mut self, why: LeftOut, count: u64) {
        self.left_out[why as usize] += count;
    }
}

/// `3517 engine steps, 12 requests by the sampler, 2 by their traceparent`; `nothing` when nothing was.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.left_out(LeftOut::EngineSteps), "engine steps that no exported request links to"),
            (self.left_out(LeftOut::Sampler), "requests by the sampler"),
            (self.left_out(LeftOut::Traceparent), "requests by their traceparent"),
            (self.steps_missed, "linked engine steps that were not at hand"),
        ];
        let parts: Vec<String> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

/// One run's choice.
#[derive(Debug)]
pub struct Sampling {
    sampler: Sampler,
    steps: Steps,
    counts: Counts,
}

impl Sampling {
    pub fn new(policy: Policy, engine_steps: EngineSteps) -> Self {
        let steps = Steps::new(engine_steps, policy.takes_roots());
        Self { sampler: Sampler::new(policy), steps, counts: Counts::default() }
    }

    /// Whether the request is exported; the engine steps that have to go with it are appended to `steps`.
    pub fn request(&mut self, trace: &Trace, steps: &mut Vec<Box<EngineStep>>) -> bool {
        match self.sampler.decide(trace) {
            Ok(()) => {
                self.counts.steps_missed += self.steps.link(trace, steps);
                true
            }
            Err(why) => {
                self.counts.add(why, 1);
                false
            }
        }
    }

    /// An engine step is over; it comes back when it is to be exported now.
    pub fn step(&mut self, step: Box<EngineStep>) -> Option<Box<EngineStep>> {
        let (now, left_out) = self.steps.push(step);
        self.counts.add(LeftOut::EngineSteps, left_out);
        now
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The run is over: what is still kept is left out, what is still looked for will not come.
    pub fn finish(self) -> Counts {
        let mut counts = self.counts;
        let (left_out, missed) = self.steps.finish();
        counts.add(LeftOut::EngineSteps, left_out);
        counts.steps_missed += missed;
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_read_as_a_sentence() {
        assert_eq!(Counts::default().to_string(), "nothing");
        let mut counts = Counts::default();
        counts.add(LeftOut::Traceparent, 2);
        counts.add(LeftOut::EngineSteps, 7);
        assert_eq!(
            counts.to_string(),
            "7 engine steps that no exported request links to, 2 requests by their traceparent"
        );
    }
}
