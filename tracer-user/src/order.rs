//! Puts inputs of several rings in time order.
//!
//! Enters: inputs in almost-order. Leaves: inputs in event time, each held back for `lag` so that a late one can still get
//! before it; facts and losses keep their place behind the newest event before them. An input later than that is passed on
//! at once and counted: order is best effort, loss is not. Bounded: over [`MAX_BYTES`] the oldest leave early; whoever runs several sorters
//! has the same bound for all of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::input::{Event, EventNanos, Input, What};

/// Bytes that are held back at most: 20 ms of a server that moves 300 MB/s, or 60 ms of 1,000 streams at 200 steps a second.
pub const MAX_BYTES: usize = 6 << 20;

/// A watermark sorter.
#[derive(Debug)]
pub struct Order {
    lag: EventNanos,
    held: BinaryHeap<Reverse<Held>>,
    /// Arrival number: equal times keep their order of arrival.
    next: u64,
    bytes: usize,
    newest: EventNanos,
    released: EventNanos,
    late: u64,
}

#[derive(Debug)]
struct Held {
    at: EventNanos,
    number: u64,
    input: Input,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl Order {
    /// Holds every input back until one that is `lag` ns younger (or a tick) has come.
    pub fn new(lag: EventNanos) -> Self {
        Self { lag, held: BinaryHeap::new(), next: 0, bytes: 0, newest: 0, released: 0, late: 0 }
    }

    /// Takes an input; those that are due are appended to `out`, in order.
    pub fn push(&mut self, input: Input, out: &mut Vec<Input>) {
        let at = match &input {
            Input::Event(event) => event.at,
            Input::Tick(at) => *at,
            Input::Lost(lost) => lost.at,
            Input::Fact(_) | Input::Delivered(_) | Input::Gpus(_) | Input::Relieve(_) => self.newest,
        };
        self.late += u64::from(at < self.released);
        self.newest = self.newest.max(at);
        self.bytes += weight(&input);
        self.held.push(Reverse(Held { at, number: self.next, input }));
        self.next += 1;
        let due = self.newest.saturating_sub(self.lag);
        while self.bytes > MAX_BYTES || self.held.peek().is_some_and(|Reverse(held)| held.at <= due) {
            self.release(out);
        }
    }

    /// The stream is over: everything held is due.
    pub fn finish(&mut self, out: &mut Vec<Input>) {
        while !self.held.is_empty() {
            self.release(out);
        }
    }

    /// Bytes that are held back.
    pub fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest input leaves, early or not.
    pub fn release(&mut self, out: &mut Vec<Input>) {
        if let Some(Reverse(held)) = self.held.pop() {
            self.released = self.released.max(held.at);
            self.bytes = self.bytes.saturating_sub(weight(&held.input));
            out.push(held.input);
        }
    }

    /// Inputs that came later than `lag` allows, so far.
    pub fn late(&self) -> u64 {
        self.late
    }
}

/// What an input takes, bytes.
fn weight(input: &Input) -> usize {
    size_of::<Held>()
        + match input {
            Input::Event(Event { what: What::Data { bytes, .. }, .. }) => bytes.capacity(),
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(inputs: &[Input]) -> Vec<u64> {
        inputs.iter().map(|i| if let Input::Tick(at) = i { *at } else { 0 }).collect()
    }

    #[test]
    fn inputs_leave_in_time_order_once_nothing_older_can_come() {
        let mut order = Order::new(10);
        let mut out = Vec::new();
        for at in [5, 3, 9, 7, 20] {
            order.push(Input::Tick(at), &mut out);
        }
        assert_eq!(times(&out), [3, 5, 7, 9]);
        order.finish(&mut out);
        assert_eq!(times(&out), [3, 5, 7, 9, 20]);
        assert_eq!(order.late(), 0);
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let mut order = Order::new(u64::MAX);
        let mut out = Vec::new();
        let count = 3 * MAX_BYTES as u64 / size_of::<Held>() as u64;
        for at in 0..count {
            order.push(Input::Tick(at), &mut out);
        }
        assert!(order.held.len() * size_of::<Held>() <= MAX_BYTES);
        assert_eq!(times(&out), (0..out.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn what_comes_too_late_is_passed_on_and_counted() {
        let mut order = Order::new(10);
        let mut out = Vec::new();
        for at in [50, 70, 20] {
            order.push(Input::Tick(at), &mut out);
        }
        assert_eq!(times(&out), [50, 20]);
        assert_eq!(order.late(), 1);
    }
}
