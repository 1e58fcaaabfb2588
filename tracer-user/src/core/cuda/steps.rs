//! Which step the parts of a process belong to.
//!
//! Enters: the parts of processes, the edges of their engine's steps. Leaves: a step's totals. An engine that waits for a step before it
//! schedules the next launches all of a step between its edges. One that schedules ahead (async scheduling) launches step N + 1
//! while N is not over, before N's end or after it; the first two after a pause may stand between the same edges.
//!
//! Such an engine waits for its results on a thread that does nothing else, once a step:
//!
//! ```text
//! thread that launches   A1 · A2 │ A3 │ A4 …          ends of steps: │
//! thread that waits        W1 ───┘ W2 ┘ W3 …
//! ```
//!
//! What begins before the first wait that is left is the step's, what begins later the next one's; a step of which this is not sure says so
//! (`estimated`). Where no process has such a thread, what
//! an engine does is learned: from requests that were admitted while it was busy, how many steps ended between their scheduling and their
//! first token; and the first two are told apart by the longest pause between their calls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::parts::{Part, Parts};
use crate::input::EventNanos;
use crate::output::cuda::{CopyKind, Mode, StepCuda};

/// Admissions that are looked at together: prompts in several chunks look like scheduling ahead, one in a single chunk says which.
const ADMISSIONS: usize = 16;
/// Threads that are known to launch.
const MAX_WORKING: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Lead {
    /// Steps between scheduling and first token, newest last.
    between: VecDeque<usize>,
    /// What was launched for the next step already, by process.
    ahead: BTreeMap<u32, Vec<Part>>,
    /// What the processes called until the end of the step that is put together, and what is left of the one before.
    taken: BTreeMap<u32, Vec<Part>>,
    /// Threads that have enqueued work, by process.
    working: BTreeSet<(u32, u32)>,
    /// A thread was seen that waits and does nothing else.
    has_waits: bool,
    /// The end of the last step.
    ended: EventNanos,
    /// When the wait for it began, by process; where none did, its end.
    waited: BTreeMap<u32, EventNanos>,
    /// From when until when what a process called belongs to the last step: its edges, unless it was launched ahead.
    windows: BTreeMap<u32, (EventNanos, EventNanos)>,
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

    /// The end of the last step; nothing before the first.
    pub(super) fn ended(&self) -> Option<EventNanos> {
        Some(self.ended).filter(|ended| *ended > 0)
    }

    fn is_ahead(&self) -> bool {
        self.between.iter().min().is_some_and(|least| *least > 0)
    }

    /// Takes what a process called until the end of the step that began at `start` and ends at `end`.
    pub(super) fn take(&mut self, process: u32, parts: &mut Parts, (start, end): (EventNanos, EventNanos)) {
        let mut taken = self.ahead.remove(&process).unwrap_or_default();
        if start > self.ended {
            // The engine had no step in between: nothing was launched for this one before it began.
            taken.retain(|part| part.sums.last >= start);
        }
        // What was called while the engine had no step.
        let new = parts.take_until(end).into_iter().filter(|part| part.sums.last >= start);
        taken.extend(new);
        if self.working.len() > MAX_WORKING {
            self.working.clear();
        }
        self.working.extend(taken.iter().filter(|part| part.has_work()).map(|part| (process, part.thread)));
        self.taken.insert(process, taken);
    }

    /// All processes' calls are taken: adds those of the step. `single`: each request of the batch gave one token, none its first.
    pub(super) fn ends(&mut self, (start, end): (EventNanos, EventNanos), single: bool, step: &mut StepCuda) {
        let taken = std::mem::take(&mut self.taken);
        let waits: BTreeMap<u32, EventNanos> =
            taken.iter().filter_map(|(process, parts)| Some((*process, self.wait(*process, parts)?))).collect();
        self.has_waits |= !waits.is_empty();
        self.windows.clear();
        // Of processes that are gone.
        self.ahead.clear();
        let mut waited = BTreeMap::new();
        let mut firsts = Vec::new();
        for (process, parts) in taken {
            let wait = waits.get(&process).or(waits.values().min()).copied();
            waited.insert(process, wait.unwrap_or(end));
            let (its, next) = self.split(process, parts, wait, end, step);
            let first = its.iter().map(|part| part.sums.first).min();
            let begin = next.iter().map(|part| part.sums.first).min();
            let until = begin.map_or(end, |begin| begin.saturating_sub(1));
            self.windows.insert(process, (first.unwrap_or(start).min(start), until));
            if !next.is_empty() {
                self.ahead.insert(process, next);
            }
            if let Some(first) = first {
                firsts.push(first);
                add(&its, start, end, step);
            }
        }
        self.waited = waited;
        self.ended = end;
        step.processes = firsts.len() as u32;
        let (least, most) = (firsts.iter().min(), firsts.iter().max());
        step.skew_ns = least.zip(most).map_or(0, |(least, most)| most - least);
        if single {
            match step.mode() {
                Some(Mode::Eager) => step.fell_back = self.has_graphs,
                Some(_) => self.has_graphs = true,
                None => {}
            }
        }
    }

    /// From when until when what a process called belongs to the last step.
    pub(super) fn window(&self, process: u32, edges: (EventNanos, EventNanos)) -> (EventNanos, EventNanos) {
        self.windows.get(&process).copied().unwrap_or(edges)
    }

    /// What is this step's, and what the next one's.
    fn split(
        &self,
        process: u32,
        mut parts: Vec<Part>,
        wait: Option<EventNanos>,
        end: EventNanos,
        step: &mut StepCuda,
    ) -> (Vec<Part>, Vec<Part>) {
        // One admission that did not wait for a step says that nothing is launched ahead.
        if !self.between.is_empty() && !self.is_ahead() {
            return (parts, Vec::new());
        }
        parts.sort_by_key(|part| (part.sums.first, part.thread));
        if self.has_waits {
            // Two waits that follow close are told as one: the second step has none.
            step.estimated |= wait.is_none() && !parts.is_empty();
            return self.at_wait(process, parts, wait.unwrap_or(end), end, step);
        }
        if !self.is_ahead() {
            return (parts, Vec::new());
        }
        let (its, next): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.sums.first <= self.ended);
        if !its.is_empty() {
            return (its, next);
        }
        let (its, next) = at_longest_pause(next);
        step.estimated |= !next.is_empty();
        (its, next)
    }

    /// In two: all of a step was enqueued when its wait begins. A thread that comes late to its wait finds the next step begun; then
    /// they part where copies to the device follow on a copy back to the host.
    fn at_wait(
        &self,
        process: u32,
        parts: Vec<Part>,
        wait: EventNanos,
        end: EventNanos,
        step: &mut StepCuda,
    ) -> (Vec<Part>, Vec<Part>) {
        let (mut its, mut next): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.sums.first <= wait);
        let before = self.waited.get(&process).copied().unwrap_or(0);
        let has = |part: &Part, kind: CopyKind| part.sums.copies[kind as usize] > 0;
        if let Some(end) = its.iter().position(|part| has(part, CopyKind::DeviceToHost)) {
            // What was left the last time is left no longer.
            let is_next = |part: &Part| part.sums.first > before && has(part, CopyKind::HostToDevice);
            let begin = (end + 1..its.len()).find(|at| is_next(&its[*at])).unwrap_or(its.len());
            let behind = its.split_off(begin);
            let (waits, behind): (Vec<_>, Vec<_>) = behind.into_iter().partition(|part| self.is_wait(process, part));
            its.extend(waits);
            step.estimated |= !behind.is_empty();
            next.splice(..0, behind);
        }
        // Two waits that were told as one; or a burst of a process without a wait of its own that goes on over another one's.
        step.estimated |= its
            .iter()
            .any(|part| if self.is_wait(process, part) { part.sums.waits > 1 } else { part.sums.last > wait });
        // The next step may be over as well when the engine hears of this one, but none behind it has begun.
        loop {
            let over = next.iter().filter(|part| self.is_wait(process, part) && part.sums.last <= end);
            let over: Vec<EventNanos> = over.map(|part| part.sums.first).collect();
            let [first, _, ..] = over[..] else { return (its, next) };
            step.estimated = true;
            let (more, rest) = next.into_iter().partition(|part| part.sums.first <= first);
            its.extend::<Vec<_>>(more);
            next = rest;
        }
    }

    /// When the first wait begins that a thread makes which does nothing else.
    fn wait(&self, process: u32, parts: &[Part]) -> Option<EventNanos> {
        parts.iter().filter(|part| self.is_wait(process, part)).map(|part| part.sums.first).min()
    }

    fn is_wait(&self, process: u32, part: &Part) -> bool {
        let works = |thread| self.working.contains(&(process, thread));
        let others = || self.working.range((process, 0)..=(process, u32::MAX)).next().is_some();
        part.sums.waits > 0 && !works(part.thread) && others()
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
    let more = |total: &mut u64, new: u64| *total = total.saturating_add(new);
    let mut graphs = 0;
    let (mut busy, mut until) = (0, start);
    for Part { sums, .. } in parts {
        more(&mut step.launches, sums.launches);
        more(&mut step.graph_launches, sums.graph_launches);
        more(&mut graphs, sums.graph_launches);
        for kind in 0..sums.copies.len() {
            more(&mut step.copies[kind], sums.copies[kind]);
            more(&mut step.copy_bytes[kind], sums.copy_bytes[kind]);
        }
        more(&mut step.sets, sums.sets);
        more(&mut step.set_bytes, sums.set_bytes);
        more(&mut step.waits, sums.waits);
        more(&mut step.wait_ns, sums.wait_ns);
        // Parts come in the order in which they began, and may lie over each other; one may say that it ended before it began.
        let (from, to) = (sums.first.clamp(until, end.max(until)), sums.last.clamp(until, end.max(until)));
        more(&mut busy, to.saturating_sub(from));
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
        lead.take(1, parts, (start, end));
        lead.ends((start, end), true, &mut step);
        step
    }

    /// Adds the waits of another thread: when each begins and ends.
    fn waits(parts: &mut Parts, waits: &[(u64, u64)]) {
        for (count, &(first, last)) in (1..).zip(waits) {
            parts.told(2, Sums { first, last, waits: count, ..Sums::default() });
        }
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
    fn sums_that_no_thread_has_end_at_the_edge() {
        // a part that ends before it begins · two of as many launches as there are numbers
        let mut parts = Parts::default();
        parts.told(1, Sums { first: 25, last: 12, launches: u64::MAX, ..Sums::default() });
        parts.told(2, Sums { first: 20, last: 30, launches: u64::MAX, wait_ns: u64::MAX, ..Sums::default() });
        let step = step(&mut Lead::default(), &mut parts, 10, 40);
        assert_eq!((step.launches, step.wait_ns), (u64::MAX, u64::MAX));
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
    fn a_thread_that_only_waits_tells_which_launches_are_whose() {
        // launches  A1 · A2 │S1   A3 │S2      │S3 A4 │S4    A3 before the end of step 2, A4 after that of step 3
        // waits       W1 ─┘   W2 ─┘   W3 ─┘    W4 ┘
        let mut parts = parts(&[(11, 13, 1), (20, 22, 2), (35, 37, 3), (62, 63, 4)]);
        waits(&mut parts, &[(14, 29), (30, 39), (40, 58), (64, 69)]);
        let mut lead = Lead::default();
        let edges = [(10, 30), (30, 40), (40, 60), (60, 70)];
        let steps = edges.map(|(start, end)| {
            let step = step(&mut lead, &mut parts, start, end);
            (step.launches, step.waits, step.estimated, lead.window(1, (start, end)))
        });
        assert_eq!(
            steps,
            [(1, 1, false, (10, 19)), (2, 1, false, (20, 34)), (3, 1, false, (35, 60)), (4, 1, false, (60, 70)),]
        );
    }

    #[test]
    fn a_step_that_is_over_before_the_engine_hears_of_the_last_is_still_the_next() {
        // launches  A1 · A2 ·      │S1 A3 │S2 │S3        the engine takes its time with step 1
        // waits       W1 ┘ W2 ┘    │     W3 ┘
        let mut parts = parts(&[(11, 12, 1), (20, 21, 2), (52, 53, 3)]);
        waits(&mut parts, &[(13, 19), (22, 30), (54, 58)]);
        let mut lead = Lead::default();
        let steps = [(10, 50), (50, 56), (56, 60)].map(|(start, end)| step(&mut lead, &mut parts, start, end).launches);
        assert_eq!(steps, [1, 2, 3]);
    }

    #[test]
    fn a_thread_that_comes_late_to_its_wait_moves_no_launch() {
        // launches  A1 · A2 │S1 A3 │S2 │S3       A2 is enqueued before the wait for A1 begins, and both waits are told as one
        // waits             W1W2┘     W3 ┘
        let mut parts = Parts::default();
        let mut copies = [0; 6];
        for (count, (first, last)) in (1..).zip([(11, 12), (20, 21), (45, 46)]) {
            copies[CopyKind::HostToDevice as usize] = count;
            copies[CopyKind::DeviceToHost as usize] = count;
            parts.told(1, Sums { first, last, launches: count * (count + 1) / 2, copies, ..Sums::default() });
        }
        parts.told(2, Sums { first: 25, last: 38, waits: 2, ..Sums::default() });
        parts.told(2, Sums { first: 50, last: 55, waits: 3, ..Sums::default() });
        let mut lead = Lead::default();
        let steps = [(10, 35), (35, 48), (48, 60)].map(|(start, end)| {
            let step = step(&mut lead, &mut parts, start, end);
            (step.launches, step.estimated)
        });
        assert_eq!(steps, [(1, true), (2, true), (3, false)]);
    }

    #[test]
    fn a_rank_without_waits_goes_by_those_of_another() {
        // rank 0  A1 · A2 │S1 · │S2      rank 1  a1 ·  a2 │
        //           W1 ───┘ W2 ─┘
        let mut lead = Lead::default();
        let (mut zero, mut one) = (parts(&[(11, 12, 1), (20, 21, 2)]), parts(&[(11, 13, 1), (22, 23, 2)]));
        waits(&mut zero, &[(14, 29), (31, 39)]);
        let steps = [(10, 30), (30, 40)].map(|edges| {
            let mut step = StepCuda::default();
            lead.take(1, &mut zero, edges);
            lead.take(3, &mut one, edges);
            lead.ends(edges, true, &mut step);
            (step.launches, step.processes, step.estimated)
        });
        assert_eq!(steps, [(2, 2, false), (4, 2, false)]);
    }

    #[test]
    fn a_thread_that_waits_beside_an_engine_that_does_not_schedule_ahead_moves_nothing() {
        // a request was admitted while the engine was busy, and got its token in the next step
        let mut parts = parts(&[(11, 13, 1), (20, 22, 2)]);
        waits(&mut parts, &[(15, 16)]);
        let mut lead = Lead::default();
        lead.admitted(0);
        assert_eq!(step(&mut lead, &mut parts, 10, 30).launches, 3);
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
            lead.take(process, &mut parts(&[(at, at + 1, 5)]), (10, 30));
        }
        lead.ends((10, 30), false, &mut step);
        assert_eq!((step.processes, step.skew_ns, step.launches), (2, 5, 10));
    }
}
