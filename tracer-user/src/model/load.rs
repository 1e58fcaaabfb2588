//! What an engine's scheduler said of itself lately: looked up when a request's wait has ended, because only then its engine is known.
//!
//! Enters: the scheduler's statistics, once a step, and when requests entered the queue, once a wait. Leaves: the [`Load`] of a wait. What
//! the statistics do not reach back to, or are too old to say, is left out. Bounded: of the newest [`EXACT`] steps each is kept; older ones
//! that said the same of the queue are folded into one, and beyond [`MAX_SAID`] the oldest go.

use std::collections::VecDeque;

use crate::engine::SchedulerStats;
use crate::input::EventNanos;

/// Engines of a server whose words are kept, by their numbers: half a MiB each. Those beyond, on one host, are made up.
pub const MAX_LOADS: u32 = 256;
/// Statements that are kept of an engine: 240 KiB.
const MAX_SAID: usize = 6_144;
/// Newest ones that are kept step by step.
const EXACT: usize = 2_048;
/// Times of entering the queue that are kept of an engine: 256 KiB.
const MAX_ENTERED: usize = 16_384;
/// A busy engine takes in what came for it after each step. One that said longer ago that it works on something (a thousand times the most
/// that was measured between the two, on the engine of docs/support-matrix.md) was lost sight of.
const MAX_AGE: EventNanos = 1_000_000_000;

/// A stay in the waiting queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wait {
    pub from: EventNanos,
    pub to: EventNanos,
    /// It had run before.
    pub by_preemption: bool,
    /// What the engine's scheduler said around it.
    pub load: Option<Load>,
}

/// What the scheduler said around a wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// End of the last step before the wait began: what it said held until then.
    since: EventNanos,
    running: u64,
    waiting: u64,
    /// Requests that had entered the queue between the two, by what had entered by the wait's end; of them, preempted ones.
    entered: u64,
    preempted: u64,
    /// The most requests that ran during the wait, as its steps said.
    pub max_running: u64,
    /// The most that its steps said of the KV cache's use during the wait, 0 to 1.
    pub kv_cache_usage: f64,
}

impl Load {
    /// Requests that waited when this one entered the queue, itself not counted.
    pub fn waiting(&self) -> u64 {
        self.waiting.saturating_add(self.entered)
    }

    /// Requests that ran then, itself not counted.
    pub fn running(&self) -> u64 {
        self.running.saturating_sub(self.preempted)
    }
}

/// Steps that said the same of the queue, one after the other.
#[derive(Debug, Clone, Copy)]
struct Said {
    /// End of the first and the last of them.
    first: EventNanos,
    last: EventNanos,
    running: u64,
    waiting: u64,
    /// The most of them.
    kv_cache_usage: f64,
}

/// What one engine's scheduler said lately.
#[derive(Debug, Default)]
pub struct Loads {
    said: VecDeque<Said>,
    /// When requests entered the queue, in order, and whether by a preemption.
    entered: VecDeque<(EventNanos, bool)>,
}

impl Loads {
    /// A step ended at `end` and said this.
    pub fn push(&mut self, end: EventNanos, stats: SchedulerStats) {
        // A message may be overtaken by later ones, and the estimate of a log's engine clock be set back.
        let end = self.said.back().map_or(end, |newest| end.max(newest.last));
        if self.said.len() == MAX_SAID {
            self.fold();
        }
        let SchedulerStats { running, waiting, kv_cache_usage, .. } = stats;
        self.said.push_back(Said { first: end, last: end, running, waiting, kv_cache_usage });
    }

    /// Folds what is old; where that makes no room, the oldest goes.
    fn fold(&mut self) {
        let exact = self.said.split_off(self.said.len() - EXACT);
        let mut folded: VecDeque<Said> = VecDeque::with_capacity(MAX_SAID);
        for said in self.said.drain(..) {
            match folded.back_mut() {
                Some(run) if (run.running, run.waiting) == (said.running, said.waiting) => {
                    run.last = said.last;
                    run.kv_cache_usage = run.kv_cache_usage.max(said.kv_cache_usage);
                }
                _ => folded.push_back(said),
            }
        }
        // A quarter of the room at least is made each time, so that folding costs a few steps' worth a step.
        let over = (folded.len() + EXACT).saturating_sub(MAX_SAID - MAX_SAID / 4);
        folded.drain(..over);
        folded.extend(exact);
        self.said = folded;
    }

    /// A request entered the queue at `at`.
    pub fn entered(&mut self, at: EventNanos, by_preemption: bool) {
        // They are heard of in the order in which they were scheduled, which is almost that of the queue.
        let place = self.entered.partition_point(|(entered, _)| *entered <= at);
        self.entered.insert(place, (at, by_preemption));
        if self.entered.len() > MAX_ENTERED {
            self.entered.pop_front();
        }
    }

    /// What was said around a wait that has ended; `None` where nothing says it.
    pub fn around(&self, wait: &Wait) -> Option<Load> {
        let before = self.said.partition_point(|said| said.first <= wait.from).checked_sub(1)?;
        let Said { running, waiting, last, kv_cache_usage, .. } = self.said[before];
        // Of a run that goes on behind the wait's beginning, the last step before that is not known; what it said is.
        let since = last.min(wait.from);
        let is_idle = running == 0 && waiting == 0;
        if !is_idle && wait.from - since > MAX_AGE {
            return None;
        }
        // It ran until it was preempted.
        let running = running.saturating_sub(u64::from(wait.by_preemption));
        let kv_cache_usage = 0.0_f64.max(kv_cache_usage);
        let mut load = Load { since, running, waiting, entered: 0, preempted: 0, max_running: running, kv_cache_usage };
        for said in self.said.range(before + 1..).take_while(|said| said.first <= wait.to) {
            load.kv_cache_usage = load.kv_cache_usage.max(said.kv_cache_usage);
            load.max_running = load.max_running.max(said.running);
        }
        self.recount(wait, &mut load);
        Some(load)
    }

    /// Counts again who had entered the queue before a wait began: of some that is heard only when they have been scheduled, and computed,
    /// later than the one behind them.
    pub fn recount(&self, wait: &Wait, load: &mut Load) {
        let from = self.entered.partition_point(|(at, _)| *at <= load.since);
        let to = self.entered.partition_point(|(at, _)| *at < wait.from);
        // Some of them may be forgotten by now; they were counted when the wait ended.
        let between = || self.entered.range(from..to.max(from));
        load.entered = load.entered.max(between().count() as u64);
        load.preempted = load.preempted.max(between().filter(|(_, by_preemption)| *by_preemption).count() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: EventNanos = 1_000_000;

    fn stats(running: u64, waiting: u64, kv_cache_usage: f64) -> SchedulerStats {
        SchedulerStats { running, waiting, kv_cache_usage, ..SchedulerStats::default() }
    }

    /// Steps that ended at these ms, with what they said.
    fn loads(steps: &[(u64, u64, u64, f64)]) -> Loads {
        let mut loads = Loads::default();
        for &(end, running, waiting, usage) in steps {
            loads.push(end * MS, stats(running, waiting, usage));
        }
        loads
    }

    fn wait(from: u64, to: u64) -> Wait {
        Wait { from: from * MS, to: to * MS, by_preemption: false, load: None }
    }

    fn preempted(from: u64, to: u64) -> Wait {
        Wait { by_preemption: true, ..wait(from, to) }
    }

    /// Waiting, running and the most of the cache.
    fn seen(load: Option<Load>) -> Option<(u64, u64, f64)> {
        load.map(|load| (load.waiting(), load.running(), load.kv_cache_usage))
    }

    #[test]
    fn a_wait_has_the_load_of_the_step_before_it_and_the_fullest_cache_of_those_in_it() {
        // steps end at 10 (4 run, 2 wait) ─ queued 11 ─ 20 ─ 30 (full) ─ scheduled 31 ─ 40
        let loads = loads(&[(10, 4, 2, 0.5), (20, 4, 3, 0.6), (30, 3, 3, 0.9), (40, 4, 2, 1.0)]);
        assert_eq!(seen(loads.around(&wait(11, 31))), Some((2, 4, 0.9)), "what came after it says nothing of it");
        assert_eq!(seen(loads.around(&wait(41, 42))), Some((2, 4, 1.0)), "nor need a step end in it");
        assert_eq!(seen(loads.around(&wait(9, 31))), None, "nothing was said before it");
        assert_eq!(loads.around(&wait(31, 41)).map(|load| (load.running(), load.max_running)), Some((3, 4)));
    }

    #[test]
    fn who_entered_between_the_last_step_and_the_wait_waits_as_well() {
        // idle since 10 ─ a burst: 50, 51, 52, of which the second is heard of last ─ 60
        let mut loads = loads(&[(10, 0, 0, 0.0)]);
        loads.entered(50 * MS, false);
        loads.entered(52 * MS, false);
        let third = wait(52, 53);
        let mut load = loads.around(&third).expect("it was idle");
        assert_eq!((load.waiting(), load.running()), (1, 0));
        loads.push(60 * MS, stats(3, 0, 0.1));
        loads.entered(51 * MS, false);
        loads.recount(&third, &mut load);
        assert_eq!(load.waiting(), 2);
        assert_eq!(seen(loads.around(&wait(61, 62))), Some((0, 3, 0.1)), "the burst is over");
    }

    #[test]
    fn what_is_preempted_does_not_count_itself_nor_who_was_before_it() {
        // step ends at 10: 3 run, 1 waits ─ two are preempted at 11 and 12
        let mut loads = loads(&[(10, 3, 1, 1.0)]);
        loads.entered(11 * MS, true);
        loads.entered(12 * MS, true);
        assert_eq!(seen(loads.around(&preempted(11, 20))), Some((1, 2, 1.0)));
        assert_eq!(seen(loads.around(&preempted(12, 20))), Some((2, 1, 1.0)));
    }

    #[test]
    fn an_idle_engine_is_known_to_be_idle_and_a_busy_one_that_went_quiet_is_not_known() {
        let at_rest = loads(&[(10, 0, 0, 0.2)]);
        assert_eq!(seen(at_rest.around(&wait(900_000, 900_001))), Some((0, 0, 0.2)));
        let lost = loads(&[(10, 1, 0, 0.2)]);
        assert_eq!(seen(lost.around(&wait(1_010, 1_011))), Some((0, 1, 0.2)));
        assert_eq!(seen(lost.around(&wait(1_011, 1_012))), None);
    }

    #[test]
    fn a_wait_of_ten_minutes_behind_a_full_batch_is_known_to_its_beginning() {
        // a step each 4 ms; queued at 8 ms, when 7 waited; the cache was fullest at 1,000 ms
        let mut loads = loads(&[(4, 8, 7, 0.5)]);
        for step in 2..150_000_u64 {
            let usage = if step == 250 { 0.97 } else { 0.5 };
            loads.push(step * 4 * MS, stats(8, if step < 3 { 7 } else { 8 }, usage));
        }
        assert!(loads.said.len() <= MAX_SAID);
        assert_eq!(seen(loads.around(&wait(8, 599_000))), Some((7, 8, 0.97)));
    }

    #[test]
    fn statements_that_all_differ_are_bounded_and_what_is_too_old_is_not_known() {
        let mut loads = Loads::default();
        for step in 1..100_000_u64 {
            loads.push(step * MS, stats(step % 7, 1, 0.5));
            loads.entered(step * MS, false);
        }
        assert!(loads.said.len() <= MAX_SAID && loads.entered.len() <= MAX_ENTERED);
        assert_eq!(loads.around(&wait(50, 60)), None);
        assert!(loads.around(&wait(99_990, 99_995)).is_some());
    }

    #[test]
    fn times_that_go_backwards_and_numbers_of_any_size_are_taken() {
        let mut loads = loads(&[(10, 4, 4, 0.9), (5, 0, 0, 0.0)]);
        assert_eq!(seen(loads.around(&wait(11, 12))), Some((0, 0, 0.0)), "the last word counts");
        loads.push(u64::MAX, stats(u64::MAX, u64::MAX, f64::NAN));
        loads.entered(0, true);
        let all = Wait { from: u64::MAX, to: 0, by_preemption: true, load: None };
        assert!(loads.around(&all).is_some_and(|load| load.kv_cache_usage.abs() <= 1.0));
    }
}
