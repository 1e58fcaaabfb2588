//! When a front end takes up the messages that it received.
//!
//! Enters: messages as they arrive, and calls of two probed functions of the front end: its decoder, and its clock. Leaves: for each
//! request whose first output came in a message, when the front end got to it. The engine stamps a first token there, not when the
//! message arrives: with 700 requests open its event loop is up to 0.9 s and 15 messages behind (measured on the engine of
//! docs/support-matrix.md). The messages of a process are
//! decoded in the order in which they arrived, and stamped in that order, on the same thread. Which readings of the clock are stamps,
//! their stack says (see [`Place`]); as long as that is not known the first one stands for the stamp, and is put right later. A server
//! that keeps no statistics (`--disable-log-stats`: its first outputs bring no events) stamps nothing, and no reading is taken for a stamp
//! then, nor one that comes too late. What is not seen is not guessed: the time of the decoding stands, or that of the arrival when the
//! order is lost or [`MAX_WAITING`] messages wait, which is counted.

use std::collections::{BTreeMap, VecDeque};

use super::place::Place;
use crate::input::EventNanos;

/// Messages of a process that wait to be decoded: 40 s of eight engines with 50 steps a second.
const MAX_WAITING: usize = 16_384;
/// How long after it was decoded a message may be stamped by a reading at the known place, ns: thirty times the most that was seen.
const MAX_LAG: EventNanos = 30_000_000_000;
/// The same for any reading, while no place is known: twice the most that was seen.
const MAX_AGE: EventNanos = 2_000_000_000;

/// Readings that are kept while messages wait for their stamp.
const MAX_READINGS: usize = 16_384;
/// Messages that wait to be put right while no place is known; each reading looks through them.
const MAX_UNDECIDED: usize = 256;

/// Requests whose first output is in a message.
type Firsts = Vec<u64>;

/// Requests whose first output was taken up, and when.
pub(super) type TakenUp = Vec<(Firsts, EventNanos)>;

#[derive(Debug, Default)]
struct FrontEnd {
    /// Arrived, in order.
    waiting: VecDeque<Message>,
    /// Decoded and not stamped for certain: in order.
    decoded: VecDeque<Decoded>,
    /// It stamps what it takes up.
    stamps: bool,
    place: Place,
    /// Where the clock was read since the first of `decoded` was: thread, stack, when.
    readings: VecDeque<(u32, u32, EventNanos)>,
    /// Messages of which it is not known any more when they were taken up.
    given_up: u64,
}

#[derive(Debug)]
struct Decoded {
    at: EventNanos,
    thread: u32,
    firsts: Firsts,
    /// The clock was read since, at whatever place.
    is_read: bool,
}

/// A message that arrived.
#[derive(Debug)]
pub(super) struct Message {
    /// Its engine and that one's stamp of it, on the event clock, where it has outputs and the stamp says when.
    pub of: Option<(u32, EventNanos)>,
    /// It has outputs; no other is stamped by the front end.
    pub stamped: bool,
    pub firsts: Firsts,
}

impl FrontEnd {
    /// A message that is to be stamped was decoded.
    fn wait_for_stamp(&mut self, decoded: Decoded) {
        if self.decoded.is_empty() {
            self.readings.clear();
        }
        self.decoded.push_back(decoded);
        if self.place.known.is_none() && self.decoded.len() > MAX_UNDECIDED {
            self.decoded.pop_front();
        } else if self.decoded.len() > MAX_WAITING {
            // Without one of them the rest is not in order.
            self.given_up += self.decoded.len() as u64;
            self.decoded.clear();
        }
    }

    /// Another place has become known: what waits is stamped by its readings, one after the other.
    fn decide(&mut self) -> TakenUp {
        let mut taken_up = TakenUp::new();
        for (thread, stack, at) in std::mem::take(&mut self.readings) {
            if self.place.is_known(stack) {
                taken_up.extend(self.stamp(thread, at));
            }
        }
        taken_up
    }

    /// A reading that is a stamp: of the message that was decoded first before it.
    fn stamp(&mut self, thread: u32, at: EventNanos) -> Option<(Firsts, EventNanos)> {
        // One whose stamp was not seen.
        while self.decoded.pop_front_if(|decoded| decoded.at.saturating_add(MAX_LAG) < at).is_some() {}
        let decoded = self.decoded.pop_front_if(|decoded| decoded.thread == thread && decoded.at <= at)?;
        Some((decoded.firsts, at))
    }
}

/// All front ends whose decoder is probed.
#[derive(Debug, Default)]
pub(super) struct Uptake {
    front_ends: BTreeMap<u32, FrontEnd>,
}

impl Uptake {
    /// The first output of a request came, with life events (which a server that keeps statistics sends) or without.
    pub(super) fn keeps_statistics(&mut self, process: u32, does: bool) {
        if let Some(front_end) = self.front_ends.get_mut(&process) {
            front_end.stamps = does;
        }
    }

    /// A message arrived.
    pub(super) fn arrived(&mut self, process: u32, message: Message) {
        // Until a call of its decoder was seen nothing says that it is probed.
        let Some(front_end) = self.front_ends.get_mut(&process) else { return };
        front_end.waiting.push_back(message);
        if front_end.waiting.len() > MAX_WAITING {
            front_end.given_up += front_end.waiting.len() as u64;
            front_end.waiting.clear();
        }
    }

    /// Messages of which it is not known any more when they were taken up, since the last call: too many waited.
    pub(super) fn take_given_up(&mut self) -> u64 {
        self.front_ends.values_mut().map(|front_end| std::mem::take(&mut front_end.given_up)).sum()
    }

    /// The engine and the stamp of the message that the front end decodes next, where they are known.
    pub(super) fn next(&self, process: u32) -> Option<(u32, EventNanos)> {
        self.front_ends.get(&process)?.waiting.front()?.of
    }

    /// The front end decodes a message: its requests, as far as is known, and those whose stamps are known by this.
    pub(super) fn decodes(&mut self, process: u32, thread: u32, at: EventNanos) -> TakenUp {
        let front_end = self.front_ends.entry(process).or_default();
        // One that arrived before the attach, or was lost.
        let Some(Message { stamped, firsts, .. }) = front_end.waiting.pop_front() else { return TakenUp::new() };
        let stamped = stamped && front_end.stamps;
        let mut taken_up = TakenUp::new();
        if front_end.place.decodes(thread, stamped) {
            taken_up = front_end.decide();
        }
        if stamped {
            front_end.wait_for_stamp(Decoded { at, thread, firsts: firsts.clone(), is_read: false });
        }
        taken_up.push((firsts, at));
        taken_up
    }

    /// The front end reads its clock, with its stack at `stack`: the requests of the message that this stamps. As long as no place is
    /// known, the first reading stands for the stamp.
    pub(super) fn reads_clock(&mut self, process: u32, thread: u32, at: EventNanos, stack: u32) -> TakenUp {
        let Some(front_end) = self.front_ends.get_mut(&process) else { return TakenUp::new() };
        front_end.place.reads(thread, stack);
        if front_end.decoded.is_empty() {
            return TakenUp::new();
        }
        if front_end.place.is_known(stack) {
            return front_end.stamp(thread, at).into_iter().collect();
        }
        front_end.readings.push_back((thread, stack, at));
        if front_end.readings.len() > MAX_READINGS {
            front_end.readings.pop_front();
        }
        if front_end.place.known.is_some() {
            return TakenUp::new();
        }
        let is_young = |decoded: &&mut Decoded| decoded.at.saturating_add(MAX_AGE) >= at;
        let first = front_end.decoded.iter_mut().filter(is_young).find(|decoded| !decoded.is_read);
        let Some(decoded) = first.filter(|decoded| decoded.thread == thread) else { return TakenUp::new() };
        decoded.is_read = true;
        vec![(decoded.firsts.clone(), at)]
    }

    /// Calls may have been lost: which message is next is not known.
    pub(super) fn lost(&mut self) {
        for front_end in self.front_ends.values_mut() {
            front_end.waiting.clear();
            front_end.decoded.clear();
            front_end.readings.clear();
        }
    }

    pub(super) fn ended(&mut self, process: u32) {
        self.front_ends.remove(&process);
    }
}

#[cfg(test)]
#[path = "uptake_tests.rs"]
mod tests;
