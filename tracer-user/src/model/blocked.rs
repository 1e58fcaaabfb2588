//! How long the connection of a client took no more bytes while its response was written.
//!
//! Enters: writes that were refused or took a part of their bytes, and writes that took all. Leaves: the time between them, how much of it
//! came after some time, and how often it began. What was lost in between is not counted. Bounded: of the newest [`EXACT`] times each is
//! kept; older ones are folded, and of one that is folded no more is said to have come after a time than surely did.

use crate::input::EventNanos;

/// Newest times that are kept one by one: half a KiB of them. What is asked for is what came after the last token, which is late.
const EXACT: usize = 32;

/// A time in which no bytes were taken; or several, folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    from: EventNanos,
    /// Without what lay between those that are folded.
    ns: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocked {
    since: Option<EventNanos>,
    /// That are over, in order.
    stretches: Vec<Stretch>,
    times: u64,
}

impl Blocked {
    /// A write was refused or took a part.
    pub fn begins(&mut self, at: EventNanos) {
        if self.since.is_none() {
            self.since = Some(at);
            self.times += 1;
        }
    }

    /// A write took all, or nothing more is written.
    pub fn ends(&mut self, at: EventNanos) {
        if let Some(since) = self.since.take() {
            if self.stretches.len() >= 2 * EXACT {
                self.fold();
            }
            self.stretches.push(Stretch { from: since, ns: at.saturating_sub(since) });
        }
    }

    /// Makes one of every two of the older half.
    fn fold(&mut self) {
        let newest = self.stretches.split_off(self.stretches.len() - EXACT);
        let pair = |two: &[Stretch]| {
            let ns = two.iter().fold(0, |sum: u64, of| sum.saturating_add(of.ns));
            two.first().map(|first| Stretch { from: first.from, ns })
        };
        self.stretches = self.stretches.chunks(2).filter_map(pair).chain(newest).collect();
    }

    /// Records were lost: whether and when it ended is not known.
    pub fn loses_sight(&mut self) {
        self.since = None;
    }

    /// When the last write that was seen was refused, or took a part; nothing where it took all.
    pub fn since(&self) -> Option<EventNanos> {
        self.since
    }

    /// Seconds, and how often it began; `None`: it never did.
    pub fn seen(&self) -> Option<(f64, u64)> {
        (self.times > 0).then(|| (self.after(0) as f64 / 1e9, self.times))
    }

    /// How much of it surely came after `at`, ns.
    pub fn after(&self, at: EventNanos) -> u64 {
        let after = self.stretches.iter().map(|of| of.ns.saturating_sub(at.saturating_sub(of.from)));
        after.fold(0, u64::saturating_add)
    }

    /// Bytes that it takes besides its own.
    pub fn held_bytes(&self) -> usize {
        self.stretches.capacity() * size_of::<Stretch>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_from_the_first_refused_write_to_the_next_whole_one() {
        // refused 10, again 15 ─ whole 30, again 31 │ refused 40 ─ whole 45
        let mut blocked = Blocked::default();
        assert_eq!(blocked.seen(), None);
        blocked.begins(10);
        blocked.begins(15);
        blocked.ends(30);
        blocked.ends(31);
        blocked.begins(40);
        blocked.ends(45);
        assert_eq!(blocked.seen(), Some((25.0 / 1e9, 2)));
    }

    #[test]
    fn of_what_was_going_on_at_a_time_the_rest_came_after_it() {
        // refused 10 ─ whole 30 │ refused 40 ─ whole 45
        let mut blocked = Blocked::default();
        for (from, to) in [(10, 30), (40, 45)] {
            blocked.begins(from);
            blocked.ends(to);
        }
        assert_eq!([0, 10, 25, 30, 35, 42, 45, u64::MAX].map(|at| blocked.after(at)), [25, 25, 10, 5, 5, 3, 0, 0]);
    }

    #[test]
    fn of_very_many_times_little_is_kept_and_no_more_is_said_than_was() {
        // 100,000 times 4 of every 10 ns
        let mut blocked = Blocked::default();
        for n in 0..100_000 {
            blocked.begins(n * 10);
            blocked.ends(n * 10 + 4);
        }
        assert_eq!(blocked.seen(), Some((400_000.0 / 1e9, 100_000)));
        assert!(blocked.held_bytes() <= 2_048, "{}", blocked.held_bytes());
        let truly = |at: u64| 400_000 - (at / 10 * 4 + (at % 10).min(4));
        assert!((0..1_000_000).step_by(997).all(|at| blocked.after(at) <= truly(at)));
        for at in 999_700..1_000_000 {
            assert_eq!(blocked.after(at), truly(at), "the newest are exact");
        }
    }

    #[test]
    fn what_was_lost_sight_of_is_not_counted_as_time() {
        let mut blocked = Blocked::default();
        blocked.begins(10);
        blocked.loses_sight();
        blocked.ends(1_000);
        assert_eq!(blocked.seen(), Some((0.0, 1)));
        blocked.begins(u64::MAX);
        blocked.ends(0);
        assert_eq!(blocked.seen(), Some((0.0, 2)));
    }
}
