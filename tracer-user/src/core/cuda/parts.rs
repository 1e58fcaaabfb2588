//! What a thread did between two times that its totals were told: the parts that steps are made of.
//!
//! Enters: totals of threads, as the kernel side counts them. Leaves: parts, with when they began and ended. A total that is told twice makes
//! no second part; one that was lost is in the next.

use std::collections::{BTreeMap, VecDeque};

use crate::input::EventNanos;
use crate::input::cuda::Sums;

/// Parts of a process that wait for their step: 4 s of 4,000 a second.
const MAX_PARTS: usize = 16_384;
/// Threads of a process whose totals are known.
const MAX_THREADS: usize = 4096;

/// What a thread called in `sums.first..=sums.last`: differences, not totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub thread: u32,
    pub sums: Sums,
}

impl Part {
    /// Whether it enqueued anything: waits alone do not.
    pub(super) fn has_work(&self) -> bool {
        let Sums { launches, graph_launches, sets, captured, .. } = self.sums;
        [launches, graph_launches, sets, captured].iter().chain(&self.sums.copies).any(|count| *count > 0)
    }
}

#[derive(Debug, Default)]
pub(super) struct Parts {
    told: BTreeMap<u32, Sums>,
    waiting: VecDeque<Part>,
    crowded_out: u64,
}

impl Parts {
    /// A thread's totals were told; what is new in them.
    pub(super) fn told(&mut self, thread: u32, sums: Sums) -> Option<Sums> {
        if self.told.len() >= MAX_THREADS && !self.told.contains_key(&thread) {
            self.crowded_out += 1;
            return None;
        }
        let before = self.told.get(&thread).copied().unwrap_or_default();
        // An older one that was told late.
        if sums.last < before.last {
            return None;
        }
        self.told.insert(thread, sums);
        let part = difference(&before, &sums)?;
        self.waiting.push_back(Part { thread, sums: part });
        if self.waiting.len() > MAX_PARTS {
            self.waiting.pop_front();
            self.crowded_out += 1;
        }
        Some(part)
    }

    /// When the first work in a time began.
    pub(super) fn first_work(&self, after: EventNanos, until: EventNanos) -> Option<EventNanos> {
        let works = self.waiting.iter().filter(|part| part.has_work()).map(|part| part.sums.first);
        works.filter(|first| after < *first && *first <= until).min()
    }

    /// A thread is gone: its number may be another one's.
    pub(super) fn ended(&mut self, thread: u32) {
        self.told.remove(&thread);
    }

    /// Parts that found no room, since the last call.
    pub(super) fn take_crowded_out(&mut self) -> u64 {
        std::mem::take(&mut self.crowded_out)
    }

    /// Takes the parts that began before `end`, in the order in which they began.
    pub(super) fn take_until(&mut self, end: EventNanos) -> Vec<Part> {
        let (taken, left): (Vec<Part>, Vec<Part>) = self.waiting.drain(..).partition(|part| part.sums.first <= end);
        self.waiting.extend(left);
        let mut taken = taken;
        taken.sort_by_key(|part| (part.sums.first, part.thread));
        taken
    }
}

/// What came in between; nothing when that is nothing. A thread's number that another thread has now starts anew.
fn difference(before: &Sums, now: &Sums) -> Option<Sums> {
    let count = |sums: &Sums| [sums.launches, sums.graph_launches, sums.waits, sums.sets, sums.captured];
    let is_less = |(now, before): (&u64, &u64)| now < before;
    let is_other =
        count(now).iter().zip(&count(before)).any(is_less) || now.copies.iter().zip(&before.copies).any(is_less);
    let before = if is_other { &Sums::default() } else { before };
    let minus = |now: [u64; 6], before: [u64; 6]| std::array::from_fn(|index| now[index].saturating_sub(before[index]));
    let part = Sums {
        // A wait that lasts is told of in its middle: its end is no new burst.
        first: now.first.max(before.last),
        last: now.last,
        launches: now.launches.saturating_sub(before.launches),
        graph_launches: now.graph_launches.saturating_sub(before.graph_launches),
        copies: minus(now.copies, before.copies),
        copy_bytes: minus(now.copy_bytes, before.copy_bytes),
        sets: now.sets.saturating_sub(before.sets),
        set_bytes: now.set_bytes.saturating_sub(before.set_bytes),
        waits: now.waits.saturating_sub(before.waits),
        wait_ns: now.wait_ns.saturating_sub(before.wait_ns),
        captured: now.captured.saturating_sub(before.captured),
    };
    let nothing = Sums { first: part.first, last: part.last, ..Sums::default() };
    (part != nothing).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(first: u64, last: u64, launches: u64) -> Sums {
        Sums { first, last, launches, ..Sums::default() }
    }

    #[test]
    fn a_total_is_taken_once_and_a_lost_one_is_in_the_next() {
        // told 3 · told again · (5 is lost) · told 9
        let mut parts = Parts::default();
        assert_eq!(parts.told(1, totals(10, 20, 3)).map(|part| part.launches), Some(3));
        assert_eq!(parts.told(1, totals(10, 20, 3)), None);
        assert_eq!(parts.told(1, totals(50, 60, 9)).map(|part| part.launches), Some(6));
        assert_eq!(parts.told(1, totals(30, 40, 5)), None, "it comes too late");
        let taken: Vec<u64> = parts.take_until(100).iter().map(|part| part.sums.launches).collect();
        assert_eq!(taken, [3, 6]);
        assert!(parts.take_until(100).is_empty());
    }

    #[test]
    fn the_first_work_is_no_wait_and_not_of_before() {
        // 10 launch │ 30 waits · 40 launch · 50 launch
        let mut parts = Parts::default();
        parts.told(1, totals(10, 20, 1));
        parts.told(2, Sums { waits: 1, ..totals(30, 60, 0) });
        parts.told(1, totals(40, 41, 2));
        parts.told(1, totals(50, 51, 3));
        assert_eq!(parts.first_work(25, 100), Some(40));
        assert_eq!(parts.first_work(25, 39), None);
    }

    #[test]
    fn a_step_takes_what_began_before_its_end() {
        let mut parts = Parts::default();
        parts.told(1, totals(10, 20, 1));
        parts.told(2, totals(15, 40, 2));
        parts.told(1, totals(31, 35, 5));
        assert_eq!(parts.take_until(30).len(), 2);
        assert_eq!(parts.take_until(40), [Part { thread: 1, sums: totals(31, 35, 4) }]);
    }

    #[test]
    fn a_wait_that_is_told_of_in_its_middle_does_not_begin_again() {
        // first ── launch · waits …(told) … comes back
        let mut parts = Parts::default();
        parts.told(1, totals(10, 20, 1));
        let back = Sums { waits: 1, wait_ns: 80, ..totals(10, 100, 1) };
        let part = parts.told(1, back).expect("a wait");
        assert_eq!((part.first, part.last, part.launches, part.wait_ns), (20, 100, 0, 80));
    }

    #[test]
    fn what_nobody_takes_is_bounded() {
        let mut parts = Parts::default();
        for number in 1..=2 * MAX_PARTS as u64 {
            parts.told(1, totals(number, number, number));
        }
        assert_eq!(parts.take_crowded_out(), MAX_PARTS as u64);
        assert_eq!(parts.take_until(u64::MAX).len(), MAX_PARTS);
    }
}
