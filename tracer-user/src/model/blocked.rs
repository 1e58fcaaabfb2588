//! How long the connection of a client took no more bytes while its response was written.
//!
//! Enters: writes that were refused or took a part of their bytes, and writes that took all. Leaves: the time between them, and how often
//! it began. What was lost in between is not counted.

use crate::input::EventNanos;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocked {
    since: Option<EventNanos>,
    /// Of what is over, ns.
    total: u64,
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
            self.total = self.total.saturating_add(at.saturating_sub(since));
        }
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
        (self.times > 0).then_some((self.total as f64 / 1e9, self.times))
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
