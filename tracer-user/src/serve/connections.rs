//! The connections that are open at a listener, and which of them has to go.
//!
//! Enters: connections as they come, ask and end. Leaves: aborts. Invariant: at most as many as were allowed. One that comes when all places
//! are taken gets that of the oldest that has not asked yet; only where all have asked, that of the oldest. Each has [`GRACE`] to ask,
//! however many come.

use std::collections::BTreeMap;

use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// What a client on a busy machine may take from its connection to its request.
const GRACE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Open {
    task: AbortHandle,
    since: Instant,
    has_asked: bool,
}

/// Those that are open, by a number that grows.
#[derive(Debug)]
pub(super) struct Connections {
    open: BTreeMap<u64, Open>,
    next: u64,
    most: usize,
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self { open: BTreeMap::new(), next: 0, most }
    }

    /// A number for one that is about to be opened.
    pub(super) fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn opened(&mut self, number: u64, task: AbortHandle, now: Instant) {
        self.open.insert(number, Open { task, since: now, has_asked: false });
    }

    /// Its request has come.
    pub(super) fn asked(&mut self, number: u64) {
        if let Some(open) = self.open.get_mut(&number) {
            open.has_asked = true;
        }
    }

    pub(super) fn ended(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// Sees to it that there is a place, and closes one for it where it must; after how long to ask again, where none may be closed yet.
    pub(super) fn make_room(&mut self, now: Instant) -> Option<Duration> {
        if self.open.len() < self.most { None } else { self.close_one(now) }
    }

    /// Closes one, or says after how long one may be closed.
    pub(super) fn close_one(&mut self, now: Instant) -> Option<Duration> {
        let silent = self.open.iter().find(|(_, open)| !open.has_asked);
        let (&number, open) = silent.or_else(|| self.open.iter().next())?;
        let left = GRACE.saturating_sub(now.saturating_duration_since(open.since));
        if !left.is_zero() {
            return Some(left);
        }
        open.task.abort();
        self.open.remove(&number);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_says_nothing_goes_first_and_one_that_asked_last() {
        // 1, 2 come | 1 asks | 3 would come: not yet | after the grace 3 comes: 2 goes | 3 asks | 4 comes: 1 goes, the oldest that asked
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let task = || runtime.spawn(std::future::pending::<()>()).abort_handle();
        let mut all = Connections::new(2);
        let start = Instant::now();
        let come = |all: &mut Connections, now| {
            let waits = all.make_room(now);
            let number = all.next();
            if waits.is_none() {
                all.opened(number, task(), now);
            }
            waits.map_or(Ok(number), Err)
        };
        let (first, second) = (come(&mut all, start).unwrap(), come(&mut all, start).unwrap());
        all.asked(first);
        assert_eq!(come(&mut all, start + GRACE / 4), Err(GRACE / 4 * 3));
        let later = start + GRACE;
        let third = come(&mut all, later).unwrap();
        assert_eq!(all.open.keys().copied().collect::<Vec<_>>(), [first, third], "not {second}");
        all.asked(third);
        let fourth = come(&mut all, later).unwrap();
        assert_eq!(all.open.keys().copied().collect::<Vec<_>>(), [third, fourth]);
        all.ended(third);
        all.ended(first);
        assert_eq!(all.open.keys().copied().collect::<Vec<_>>(), [fourth]);
    }
}
