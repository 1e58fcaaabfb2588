//! A bounded queue between the core's thread and one exporter's thread.
//!
//! Bounded by weight, not by length: a trace of 2,000 spans fills as much of it as 2,000 traces of one. What does not fit is
//! refused ([`Pressure::Drop`]) or waited for ([`Pressure::Wait`]); a queue whose reader is gone refuses everything, so a
//! waiting writer never hangs. Refusals are the caller's to count.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Pressure;

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, u64)>,
    weight: u64,
    writer_gone: bool,
    reader_gone: bool,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Signalled when an item comes or the writer goes.
    filled: Condvar,
    /// Signalled when room is made or the reader goes.
    drained: Condvar,
    capacity: u64,
}

impl<T> Shared<T> {
    /// The state is whole at every unlock, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The core's end.
#[derive(Debug)]
pub struct Writer<T>(Arc<Shared<T>>);

/// The exporter's end.
#[derive(Debug)]
pub struct Reader<T>(Arc<Shared<T>>);

/// What [`Reader::pop_until`] came back with.
#[derive(Debug, PartialEq, Eq)]
pub enum Popped<T> {
    Item(T),
    /// Nothing came in time.
    Late,
    /// The writer is gone and everything was read.
    Closed,
}

/// A queue that holds items of `capacity` weight together (one heavier than that is let in when the queue is empty).
pub fn bounded<T>(capacity: u64) -> (Writer<T>, Reader<T>) {
    let state = State { items: VecDeque::new(), weight: 0, writer_gone: false, reader_gone: false };
    let shared =
        Arc::new(Shared { state: Mutex::new(state), filled: Condvar::new(), drained: Condvar::new(), capacity });
    (Writer(Arc::clone(&shared)), Reader(shared))
}

impl<T> Writer<T> {
    /// Puts `item` in; gives it back when there is no room (and waiting is not wanted) or nobody reads.
    pub fn push(&self, item: T, weight: u64, pressure: Pressure) -> Result<(), T> {
        let mut state = self.0.lock();
        loop {
            if state.reader_gone {
                return Err(item);
            }
            if state.items.is_empty() || state.weight + weight <= self.0.capacity {
                break;
            }
            match pressure {
                Pressure::Drop => return Err(item),
                Pressure::Wait => state = self.0.drained.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        state.weight += weight;
        state.items.push_back((item, weight));
        drop(state);
        self.0.filled.notify_one();
        Ok(())
    }
}

impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        self.0.lock().writer_gone = true;
        self.0.filled.notify_all();
    }
}

impl<T> Reader<T> {
    /// The next item; `None` when the writer is gone and everything was read.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.0.lock();
        loop {
            if let Some(item) = self.take(&mut state) {
                return Some(item);
            }
            if state.writer_gone {
                return None;
            }
            state = self.0.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next item, if one is there.
    pub fn try_pop(&self) -> Option<T> {
        self.take(&mut self.0.lock())
    }

    /// The next item, waited for until `deadline`.
    pub fn pop_until(&self, deadline: Instant) -> Popped<T> {
        let mut state = self.0.lock();
        loop {
            if let Some(item) = self.take(&mut state) {
                return Popped::Item(item);
            }
            if state.writer_gone {
                return Popped::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Popped::Late;
            }
            state = self.0.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn take(&self, state: &mut State<T>) -> Option<T> {
        let (item, weight) = state.items.pop_front()?;
        state.weight -= weight;
        self.0.drained.notify_one();
        Some(item)
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.reader_gone = true;
        state.items.clear();
        state.weight = 0;
        drop(state);
        self.0.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn items_come_out_in_order_and_the_end_is_seen() {
        let (writer, reader) = bounded(10);
        for n in 0..3 {
            writer.push(n, 1, Pressure::Drop).unwrap();
        }
        drop(writer);
        assert_eq!([reader.pop(), reader.pop(), reader.pop(), reader.pop()], [Some(0), Some(1), Some(2), None]);
    }

    #[test]
    fn a_full_queue_refuses_by_weight_and_takes_again_after_a_read() {
        let (writer, reader) = bounded(10);
        writer.push("a", 7, Pressure::Drop).unwrap();
        assert_eq!(writer.push("b", 4, Pressure::Drop), Err("b"));
        writer.push("c", 3, Pressure::Drop).unwrap();
        assert_eq!(reader.pop(), Some("a"));
        writer.push("d", 7, Pressure::Drop).unwrap();
    }

    #[test]
    fn an_item_heavier_than_the_queue_is_let_in_alone() {
        let (writer, _reader) = bounded(10);
        writer.push("big", 50, Pressure::Drop).unwrap();
        assert_eq!(writer.push("small", 1, Pressure::Drop), Err("small"));
    }

    #[test]
    fn a_waiting_writer_loses_nothing() {
        let (writer, reader) = bounded(2);
        let thread = std::thread::spawn(move || {
            let mut got = Vec::new();
            while let Some(n) = reader.pop() {
                std::thread::sleep(Duration::from_micros(50));
                got.push(n);
            }
            got
        });
        for n in 0..500 {
            writer.push(n, 1, Pressure::Wait).unwrap();
        }
        drop(writer);
        assert_eq!(thread.join().unwrap(), (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn a_waiting_writer_is_released_when_the_reader_goes() {
        let (writer, reader) = bounded(1);
        writer.push(1, 1, Pressure::Wait).unwrap();
        let thread = std::thread::spawn(move || writer.push(2, 1, Pressure::Wait));
        std::thread::sleep(Duration::from_millis(20));
        drop(reader);
        assert_eq!(thread.join().unwrap(), Err(2));
    }

    #[test]
    fn a_timed_read_comes_back_late() {
        let (writer, reader) = bounded::<u8>(1);
        assert_eq!(reader.pop_until(Instant::now() + Duration::from_millis(5)), Popped::Late);
        drop(writer);
        assert_eq!(reader.pop_until(Instant::now() + Duration::from_millis(5)), Popped::Closed);
    }
}
