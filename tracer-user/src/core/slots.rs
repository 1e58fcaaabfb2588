//! The requests of one connection whose responses are not over, by their ordinal.
//!
//! Enters: requests as they start, in the order of their ordinals. Leaves: what is known of each. Most connections have one at most, and
//! there are many connections: one takes 32 bytes.

/// A request on the connection whose response is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Its head is still coming; its first byte was read at `at`, behind `place` others in the same call.
    Started {
        at: crate::input::EventNanos,
        place: u32,
    },
    Exchange(u64),
    /// An endpoint that does not generate.
    Ignored,
}

/// Sorted by ordinal.
#[derive(Debug, Default)]
pub(super) struct Slots(Vec<(u64, Slot)>);

impl Slots {
    fn at(&self, ordinal: u64) -> Result<usize, usize> {
        self.0.binary_search_by_key(&ordinal, |&(of, _)| of)
    }

    pub(super) fn insert(&mut self, ordinal: u64, slot: Slot) {
        match self.at(ordinal) {
            Ok(at) => self.0[at].1 = slot,
            Err(at) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (ordinal, slot));
            }
        }
    }

    pub(super) fn get(&self, ordinal: u64) -> Option<&Slot> {
        self.at(ordinal).ok().map(|at| &self.0[at].1)
    }

    pub(super) fn get_mut(&mut self, ordinal: u64) -> Option<&mut Slot> {
        self.at(ordinal).ok().map(|at| &mut self.0[at].1)
    }

    pub(super) fn remove(&mut self, ordinal: u64) -> Option<Slot> {
        let at = self.at(ordinal).ok()?;
        let (_, slot) = self.0.remove(at);
        // After a crowd, as little as before.
        if self.0.is_empty() && self.0.capacity() > 4 {
            self.0 = Vec::new();
        }
        Some(slot)
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Slot)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_found_by_their_ordinals_and_come_in_order() {
        let mut slots = Slots::default();
        for ordinal in [3, 1, 2, 3] {
            slots.insert(ordinal, Slot::Exchange(10 * ordinal));
        }
        if let Some(slot) = slots.get_mut(2) {
            *slot = Slot::Ignored;
        }
        let all: Vec<_> = slots.iter().collect();
        assert_eq!(all, [(1, Slot::Exchange(10)), (2, Slot::Ignored), (3, Slot::Exchange(30))]);
        assert_eq!((slots.remove(2), slots.remove(2), slots.get(2)), (Some(Slot::Ignored), None, None));
    }
}
