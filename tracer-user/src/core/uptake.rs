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

#[derive(Debug)]
struct Message {
    /// It has outputs; no other is stamped.
    stamped: bool,
    firsts: Firsts,
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

    /// A message arrived; `firsts`: requests whose first output is in it.
    pub(super) fn arrived(&mut self, process: u32, stamped: bool, firsts: Firsts) {
        // Until a call of its decoder was seen nothing says that it is probed.
        let Some(front_end) = self.front_ends.get_mut(&process) else { return };
        front_end.waiting.push_back(Message { stamped, firsts });
        if front_end.waiting.len() > MAX_WAITING {
            front_end.given_up += front_end.waiting.len() as u64;
            front_end.waiting.clear();
        }
    }

    /// Messages of which it is not known any more when they were taken up, since the last call: too many waited.
    pub(super) fn take_given_up(&mut self) -> u64 {
        self.front_ends.values_mut().map(|front_end| std::mem::take(&mut front_end.given_up)).sum()
    }

    /// The front end decodes a message: its requests, as far as is known, and those whose stamps are known by this.
    pub(super) fn decodes(&mut self, process: u32, thread: u32, at: EventNanos) -> TakenUp {
        let front_end = self.front_ends.entry(process).or_default();
        // One that arrived before the attach, or was lost.
        let Some(Message { stamped, firsts }) = front_end.waiting.pop_front() else { return TakenUp::new() };
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
mod tests {
    use super::*;
    use crate::core::place::TURNS;

    const NONE: [u64; 0] = [];
    /// Where stacks stand: of the stamp, and of a handler of requests.
    const STAMP: u32 = 0x1000;
    const HANDLER: u32 = 0x0800;
    const OTHER: u32 = 0x1400;

    /// The requests alone.
    fn keys(taken_up: TakenUp) -> Vec<u64> {
        taken_up.into_iter().flat_map(|(firsts, _)| firsts).collect()
    }

    /// Probed: a first call was seen.
    fn uptake() -> Uptake {
        let mut uptake = Uptake::default();
        assert_eq!(keys(uptake.decodes(1, 1, 0)), NONE);
        uptake.keeps_statistics(1, true);
        uptake
    }

    #[test]
    fn the_first_reading_of_the_clock_after_a_message_was_decoded_stamps_it() {
        // arrives 7, 8 · clock · decodes · clock (7) · clock · decodes · clock (8)
        let mut uptake = uptake();
        uptake.arrived(1, true, vec![7]);
        uptake.arrived(1, true, vec![8]);
        assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), NONE, "nothing is decoded");
        assert_eq!(keys(uptake.decodes(1, 1, 0)), [7]);
        assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), [7]);
        assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), NONE);
        assert_eq!(keys(uptake.decodes(1, 1, 0)), [8]);
        assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), [8]);
    }

    #[test]
    fn messages_that_are_decoded_while_others_are_handled_are_stamped_in_order() {
        let mut uptake = uptake();
        for key in [7, 8] {
            uptake.arrived(1, true, vec![key]);
            uptake.decodes(1, 1, 0);
        }
        assert_eq!(
            (keys(uptake.reads_clock(1, 1, 1, STAMP)), keys(uptake.reads_clock(1, 1, 1, STAMP))),
            (vec![7], vec![8])
        );
    }

    #[test]
    fn a_message_without_outputs_is_decoded_and_not_stamped() {
        let mut uptake = uptake();
        uptake.arrived(1, false, vec![]);
        uptake.arrived(1, true, vec![8]);
        assert_eq!(keys(uptake.decodes(1, 1, 0)), NONE);
        assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), NONE);
        assert_eq!(keys(uptake.decodes(1, 1, 0)), [8]);
    }

    #[test]
    fn another_thread_s_clock_and_another_process_are_none_of_its_business() {
        let mut uptake = uptake();
        uptake.arrived(1, true, vec![7]);
        uptake.arrived(2, true, vec![9]);
        uptake.decodes(1, 1, 0);
        assert_eq!(keys(uptake.reads_clock(1, 5, 1, STAMP)), NONE);
        assert_eq!(keys(uptake.reads_clock(2, 1, 1, STAMP)), NONE);
        assert_eq!(keys(uptake.decodes(2, 2, 0)), NONE, "it was not known to be probed when 9 arrived");
        assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), [7]);
    }

    #[test]
    fn what_waited_when_calls_were_lost_is_forgotten() {
        let mut uptake = uptake();
        uptake.arrived(1, true, vec![7]);
        uptake.lost();
        uptake.arrived(1, true, vec![8]);
        assert_eq!(keys(uptake.decodes(1, 1, 0)), [8]);
    }

    #[test]
    fn a_decoder_that_stops_being_seen_fills_nothing() {
        let mut uptake = uptake();
        for key in 0..100_000 {
            uptake.arrived(1, true, vec![key]);
        }
        assert!(uptake.front_ends[&1].waiting.len() <= MAX_WAITING);
    }

    #[test]
    fn a_server_without_statistics_stamps_nothing() {
        // the first outputs come without events ─ decoded ─ a clock that is somebody else's
        let mut uptake = uptake();
        uptake.keeps_statistics(1, false);
        uptake.arrived(1, true, vec![7]);
        assert_eq!(keys(uptake.decodes(1, 1, 0)), [7]);
        assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), NONE);
    }

    #[test]
    fn a_reading_long_after_the_message_is_no_stamp() {
        let mut uptake = uptake();
        for key in [7, 8] {
            uptake.arrived(1, true, vec![key]);
        }
        uptake.decodes(1, 1, 0);
        uptake.decodes(1, 1, MAX_AGE);
        assert_eq!(keys(uptake.reads_clock(1, 1, MAX_AGE + 1, STAMP)), [8], "7 was decoded too long ago");
    }

    #[test]
    fn the_place_that_reads_once_a_message_is_the_stamp_s_and_what_came_before_is_put_right() {
        // arrives · decodes · clock (a handler) · clock (the stamp) · clock (statistics, twice), again and again
        let mut uptake = uptake();
        let mut stamps: BTreeMap<u64, EventNanos> = BTreeMap::new();
        let mut note = |taken_up: TakenUp| {
            for (firsts, at) in taken_up {
                stamps.extend(firsts.into_iter().map(|key| (key, at)));
            }
        };
        for key in 0..u64::from(2 * TURNS) {
            let at = key * 1000;
            uptake.arrived(1, true, vec![key]);
            note(uptake.decodes(1, 1, at));
            // As often as there are requests: none, one, two …
            for _ in 0..key % 3 {
                note(uptake.reads_clock(1, 1, at + 10, HANDLER));
            }
            note(uptake.reads_clock(1, 1, at + 20, STAMP));
            for _ in 0..2 {
                note(uptake.reads_clock(1, 1, at + 30, HANDLER - 1));
            }
        }
        for (key, at) in stamps {
            assert_eq!(at, key * 1000 + 20, "{key}");
        }
    }

    #[test]
    fn a_place_that_changes_is_learned_anew_and_nothing_between_is_lost() {
        // another place stamps from message 40 on
        let mut uptake = uptake();
        let mut stamps: BTreeMap<u64, EventNanos> = BTreeMap::new();
        for key in 0..80 {
            let at = key * 1000;
            uptake.arrived(1, true, vec![key]);
            let place = if key < 40 { STAMP } else { OTHER };
            let mut taken_up = uptake.decodes(1, 1, at);
            for reading in [HANDLER, HANDLER, place] {
                taken_up.extend(uptake.reads_clock(1, 1, at + u64::from(reading), reading));
            }
            stamps.extend(taken_up.into_iter().flat_map(|(firsts, at)| firsts.into_iter().map(move |key| (key, at))));
        }
        for (key, at) in stamps.into_iter().take(72) {
            let place = if key < 40 { STAMP } else { OTHER };
            assert_eq!(at, key * 1000 + u64::from(place), "{key}");
        }
    }

    #[test]
    fn the_interpreter_s_ways_to_call_are_one_place_and_a_backlog_changes_nothing() {
        // 20 messages, each stamped at once │ then three are decoded before three stamps, some by another way
        let mut uptake = uptake();
        let mut stamps: BTreeMap<u64, EventNanos> = BTreeMap::new();
        let mut note = |taken_up: TakenUp| {
            stamps.extend(taken_up.into_iter().flat_map(|(firsts, at)| firsts.into_iter().map(move |key| (key, at))));
        };
        for key in 0..20 {
            uptake.arrived(1, true, vec![key]);
            note(uptake.decodes(1, 1, key * 1000));
            note(uptake.reads_clock(1, 1, key * 1000 + 1, STAMP));
        }
        for turn in 0..50 {
            let keys = [0, 1, 2].map(|n| 20 + 3 * turn + n);
            for key in keys {
                uptake.arrived(1, true, vec![key]);
                note(uptake.decodes(1, 1, key * 1000));
            }
            for key in keys {
                note(uptake.reads_clock(1, 1, (keys[2] + 1) * 1000 + key, HANDLER));
                note(uptake.reads_clock(1, 1, (keys[2] + 1) * 1000 + key, STAMP + 48 * (key % 2) as u32));
            }
        }
        for (key, at) in stamps.into_iter().skip(20) {
            assert_eq!(at % 1000, key, "{key}");
        }
    }

    #[test]
    fn a_long_backlog_keeps_its_order_and_too_long_a_one_is_counted() {
        // 20 messages, each stamped at once │ 1,000 decoded, then 1,000 stamps, 10 s later
        let mut uptake = uptake();
        for key in 0..20 {
            uptake.arrived(1, true, vec![key]);
            uptake.decodes(1, 1, key);
            uptake.reads_clock(1, 1, key, STAMP);
        }
        for key in 100..1_100 {
            uptake.arrived(1, true, vec![key]);
            uptake.decodes(1, 1, 100);
        }
        for key in 100..1_100 {
            assert_eq!(keys(uptake.reads_clock(1, 1, 5 * MAX_AGE, STAMP)), [key]);
        }
        assert_eq!(uptake.take_given_up(), 0);
        for key in 0..=MAX_WAITING as u64 {
            uptake.arrived(1, true, vec![key]);
            uptake.decodes(1, 1, 6 * MAX_AGE);
        }
        assert_eq!(uptake.take_given_up(), MAX_WAITING as u64 + 1);
    }

    #[test]
    fn messages_that_are_decoded_in_one_go_are_one_turn() {
        // two or three engines: decodes · decodes · (decodes) · handlers' clocks · as many stamps, again and again
        let mut uptake = uptake();
        let mut stamps: BTreeMap<u64, EventNanos> = BTreeMap::new();
        let mut key = 0;
        for turn in 0..u64::from(2 * TURNS) {
            let mut taken_up = TakenUp::new();
            let engines = 2 + turn % 2;
            for engine in 0..engines {
                uptake.arrived(1, true, vec![key + engine]);
                taken_up.extend(uptake.decodes(1, 1, turn * 1000));
            }
            for _ in 0..turn % 5 {
                taken_up.extend(uptake.reads_clock(1, 1, turn * 1000 + 1, HANDLER));
            }
            for engine in 0..engines {
                taken_up.extend(uptake.reads_clock(1, 1, turn * 1000 + 500 + engine, STAMP));
            }
            stamps.extend(taken_up.into_iter().flat_map(|(firsts, at)| firsts.into_iter().map(move |key| (key, at))));
            key += engines;
        }
        assert!(stamps.values().all(|at| at % 1000 >= 500), "{stamps:?}");
    }
}
