//! The lifetimes of ends, so that nobody behind this knows of them.
//!
//! Enters: for each record of a descriptor its end and lifetime, in order. Leaves: whether the record belongs to the lifetime at
//! hand, begins a new one whose predecessor's close was not seen, or comes from one that is over. Pure.

use std::collections::BTreeMap;

use crate::input::{End, EventNanos};

/// The lifetime at hand of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    /// The kernel side's number of it; a later one's is larger.
    pub lifetime: u64,
    /// When its first record was made: its name on the pure side.
    pub from: EventNanos,
    /// It speaks nothing that is read here.
    pub is_foreign: bool,
}

/// What a record is to the lifetime at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meeting {
    /// It belongs to it, or is the first of the end.
    Same,
    /// It begins a new one, and the close of the one before was not seen.
    Unannounced,
    /// It comes from one that is over, and there is none since: a record that overtook nothing but the close. Where it belongs, its
    /// time says.
    Late,
    /// It comes from one that is over, and the number is another's by now.
    Old,
}

#[derive(Debug, Default)]
pub(super) struct Lives {
    lives: BTreeMap<End, Life>,
    /// The lifetime whose close was told last.
    closed: BTreeMap<End, u64>,
}

impl Lives {
    /// A record of `end`, made at `at`.
    pub(super) fn meet(&mut self, end: End, lifetime: u64, at: EventNanos) -> Meeting {
        let life = Life { lifetime, from: at, is_foreign: false };
        let is_closed = self.is_closed(end, lifetime);
        match self.lives.get_mut(&end) {
            None if is_closed => Meeting::Late,
            None => {
                self.lives.insert(end, life);
                Meeting::Same
            }
            Some(known) if known.lifetime == lifetime => Meeting::Same,
            Some(known) if known.lifetime > lifetime => Meeting::Old,
            Some(known) => {
                *known = life;
                Meeting::Unannounced
            }
        }
    }

    pub(super) fn get(&self, end: End) -> Option<&Life> {
        self.lives.get(&end)
    }

    pub(super) fn get_mut(&mut self, end: End) -> Option<&mut Life> {
        self.lives.get_mut(&end)
    }

    /// The close of a lifetime; false when it, or that of a later one, was told before: two threads may tell of one, the one that
    /// closed the number and the one that has it again.
    pub(super) fn close(&mut self, end: End, lifetime: u64) -> bool {
        let is_news = !self.is_closed(end, lifetime);
        if is_news {
            self.lives.remove(&end);
            self.closed.insert(end, lifetime);
        }
        is_news
    }

    fn is_closed(&self, end: End, lifetime: u64) -> bool {
        self.closed.get(&end).is_some_and(|closed| *closed >= lifetime)
    }

    /// The process is gone.
    pub(super) fn forget(&mut self, process: u32) {
        let range = End::of_descriptor(process, 0)..=End::of_descriptor(process, u32::MAX);
        let gone: Vec<End> = self.closed.range(range).map(|(end, _)| *end).collect();
        for end in gone {
            self.closed.remove(&end);
        }
    }

    /// The lifetime of `end` is over.
    pub(super) fn remove(&mut self, end: End) -> Option<Life> {
        self.lives.remove(&end)
    }

    /// The ends of `process` with numbers from `first` to `last`.
    pub(super) fn range(&self, process: u32, first: u32, last: u32) -> Vec<(End, Life)> {
        if first > last {
            return Vec::new();
        }
        let range = End::of_descriptor(process, first)..=End::of_descriptor(process, last);
        self.lives.range(range).map(|(end, life)| (*end, *life)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_lifetime_ends_the_one_before_and_an_earlier_is_old() {
        let end = End::of_descriptor(1, 7);
        let mut lives = Lives::default();
        assert_eq!(lives.meet(end, 10, 100), Meeting::Same);
        assert_eq!(lives.meet(end, 10, 101), Meeting::Same);
        assert_eq!(lives.get(end).map(|life| life.from), Some(100));
        assert_eq!(lives.meet(end, 20, 102), Meeting::Unannounced);
        assert_eq!(lives.meet(end, 10, 103), Meeting::Old);
        assert_eq!(lives.get(end).map(|life| (life.lifetime, life.from)), Some((20, 102)));
        assert!(lives.close(end, 20));
        assert!(!lives.close(end, 20), "told twice");
        assert_eq!(lives.meet(end, 30, 104), Meeting::Same, "an announced end leaves nothing behind");
        assert!(lives.close(end, 30));
        assert!(!lives.close(end, 25), "a late word of an earlier one");
        assert_eq!(lives.meet(end, 30, 105), Meeting::Late, "it is over");
        assert_eq!(lives.get(end), None, "and stays so");
        assert_eq!(lives.meet(end, 40, 106), Meeting::Same);
    }

    #[test]
    fn a_range_is_of_one_process_and_has_both_its_ends() {
        let mut lives = Lives::default();
        for (process, fd) in [(1, 3), (1, 4), (1, 9), (2, 4)] {
            lives.meet(End::of_descriptor(process, fd), 1, 1);
        }
        let found = |first, last| lives.range(1, first, last).len();
        assert_eq!((found(3, 4), found(0, u32::MAX), found(5, 8), found(9, 3)), (2, 3, 0, 0));
    }
}
