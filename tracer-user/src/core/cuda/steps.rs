//! Which step the parts of a process belong to.
//!
//! Enters: the parts of processes, the edges of their engine's steps. Leaves: a step's totals. An engine that waits for a step before it
//! schedules the next launches all of a step between its edges. One that schedules ahead (vLLM's async scheduling) launches step N + 1
//! there while N is not over; the first two after a pause stand between the same edges, and are told apart by the longest pause
//! between their calls. Which of both it does is learned: from requests that were admitted while it was busy, how many steps ended between
//! their scheduling and their first token.

use std::collections::{BTreeMap, VecDeque};

use super::parts::{Part, Parts};
use crate::input::EventNanos;
use crate::output::cuda::{Mode, StepCuda};

/// Admissions that are looked at together: prompts in several chunks look like scheduling ahead, one in a single chunk says which.
const ADMISSIONS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Lead {
    /// Steps between scheduling and first token, newest last.
    between: VecDeque<usize>,
    /// What was launched for the next step already, by process.
    ahead: BTreeMap<u32, Vec<Part>>,
    /// First calls of processes in the step that is put together.
    firsts: Vec<EventNanos>,
    /// It has used a graph for a batch of single tokens.
    has_graphs: bool,
}

impl Lead {
    pub(super) fn admitted(&mut self, steps_between: usize) {
        self.between.push_back(steps_between);
        if self.between.len() > ADMISSIONS {
            self.between.pop_front();
        }
    }

    fn is_ahead(&self) -> bool {
        self.between.iter().min().is_some_and(|least| *least > 0)
    }

    /// Adds what a process called in the step that began at `start` and ends at `end`.
    pub(super) fn take(
        &mut self,
        process: u32,
        parts: &mut Parts,
        start: EventNanos,
        end: EventNanos,
        step: &mut StepCuda,
    ) {
        let mut taken = parts.take_until(end);
        // What was called while the engine had no step.
        taken.retain(|part| part.sums.last >= start);
        if self.is_ahead() {
            taken = if let Some(its) = self.ahead.remove(&process) {
                self.ahead.insert(process, taken);
                its
            } else {
                let (its, next) = at_longest_pause(taken);
                step.estimated |= !next.is_empty();
                self.ahead.insert(process, next);
                its
            };
            if self.ahead.get(&process).is_some_and(Vec::is_empty) {
                self.ahead.remove(&process);
            }
        }
        let Some(first) = taken.iter().map(|part| part.sums.first).min() else { return };
        self.firsts.push(first);
        add(&taken, start, end, step);
    }

    /// All processes have added theirs. `single`: each request of the batch gave one token, none its first.
    pub(super) fn ends(&mut self, single: bool, step: &mut StepCuda) {
        step.processes = self.firsts.len() as u32;
        let (least, most) = (self.firsts.iter().min(), self.firsts.iter().max());
        step.skew_ns = least.zip(most).map_or(0, |(least, most)| most - least);
        self.firsts.clear();
        if single {
            match step.mode() {
                Some(Mode::Eager) => step.fell_back = self.has_graphs,
                Some(_) => self.has_graphs = true,
                None => {}
            }
        }
    }
}

/// In two, where the longest pause is; all in the first when there is none.
fn at_longest_pause(mut parts: Vec<Part>) -> (Vec<Part>, Vec<Part>) {
    let pauses = parts.windows(2).map(|pair| pair[1].sums.first.saturating_sub(pair[0].sums.last));
    let at = pauses.enumerate().max_by_key(|(_, pause)| *pause).map_or(parts.len(), |(at, _)| at + 1);
    let next = parts.split_off(at);
    (parts, next)
}

/// Adds the parts of one process.
fn add(parts: &[Part], start: EventNanos, end: EventNanos, step: &mut StepCuda) {
    let mut graphs = 0;
    let (mut busy, mut until) = (0, start);
    for Part { sums, .. } in parts {
        step.launches += sums.launches;
        step.graph_launches += sums.graph_launches;
        graphs += sums.graph_launches;
        for kind in 0..sums.copies.len() {
            step.copies[kind] += sums.copies[kind];
            step.copy_bytes[kind] += sums.copy_bytes[kind];
        }
        step.sets += sums.sets;
        step.set_bytes += sums.set_bytes;
        step.waits += sums.waits;
        step.wait_ns += sums.wait_ns;
        // Parts come in the order in which they began, and may lie over each other.
        let (from, to) = (sums.first.clamp(until, end.max(until)), sums.last.clamp(until, end.max(until)));
        busy += to - from;
        until = to;
    }
    step.graphs_of_one = step.graphs_of_one.max(graphs);
    step.gap_ns = step.gap_ns.max((end.saturating_sub(start)).saturating_sub(busy));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::cuda::Sums;

    /// Bursts of a thread: when, and how many launches in each.
    fn parts(bursts: &[(u64, u64, u64)]) -> Parts {
        let mut parts = Parts::default();
        let mut launches = 0;
        for &(first, last, count) in bursts {
            launches += count;
            parts.told(1, Sums { first, last, launches, ..Sums::default() });
        }
        parts
    }

    fn step(lead: &mut Lead, parts: &mut Parts, start: u64, end: u64) -> StepCuda {
        let mut step = StepCuda::default();
        lead.take(1, parts, start, end, &mut step);
        lead.ends(true, &mut step);
        step
    }

    #[test]
    fn a_step_has_what_was_called_between_its_edges() {
        //   5 (no step) │10  ■■■  ■■  40│  ■  60│
        let mut parts = parts(&[(4, 5, 9), (12, 20, 3), (30, 34, 2), (45, 46, 1)]);
        let mut lead = Lead::default();
        let first = step(&mut lead, &mut parts, 10, 40);
        assert_eq!((first.launches, first.gap_ns), (5, 30 - 8 - 4));
        assert_eq!(step(&mut lead, &mut parts, 40, 60).launches, 1);
        assert_eq!(step(&mut lead, &mut parts, 60, 80).launches, 0);
    }

    #[test]
    fn an_engine_that_schedules_ahead_gives_each_step_its_own() {
        // B1(1) · B2(2) │S1 · B3(3) │S2 · B4(4) │S3 │S4
        let mut parts = parts(&[(11, 12, 1), (20, 21, 2), (31, 32, 3), (41, 42, 4)]);
        let mut lead = Lead::default();
        lead.admitted(1);
        let edges = [(10, 30), (30, 40), (40, 50), (50, 60)];
        let steps = edges.map(|(start, end)| step(&mut lead, &mut parts, start, end));
        assert_eq!(steps.each_ref().map(|step| step.launches), [1, 2, 3, 4]);
        assert_eq!(steps.map(|step| step.estimated), [true, false, false, false]);
    }

    #[test]
    fn prompts_in_chunks_alone_do_not_mean_scheduling_ahead() {
        let mut lead = Lead::default();
        lead.admitted(3);
        lead.admitted(0);
        assert!(!lead.is_ahead());
    }

    #[test]
    fn a_batch_that_ran_without_its_graph_fell_back() {
        let mut lead = Lead::default();
        let graph = |graphs: u64, launches: u64, at: u64| {
            let mut parts = Parts::default();
            parts.told(1, Sums { first: at, last: at, launches, graph_launches: graphs, ..Sums::default() });
            parts
        };
        let modes = [(1, 1), (0, 40), (3, 40)].map(|(graphs, launches)| {
            let step = step(&mut lead, &mut graph(graphs, launches, 15), 10, 20);
            (step.mode().map(Mode::name), step.fell_back)
        });
        assert_eq!(modes, [(Some("graph"), false), (Some("eager"), true), (Some("piecewise"), false)]);
    }

    #[test]
    fn ranks_that_start_apart_are_skewed() {
        let mut lead = Lead::default();
        let mut step = StepCuda::default();
        for (process, at) in [(1, 12), (2, 17)] {
            lead.take(process, &mut parts(&[(at, at + 1, 5)]), 10, 30, &mut step);
        }
        lead.ends(false, &mut step);
        assert_eq!((step.processes, step.skew_ns, step.launches), (2, 5, 10));
    }
}
