//! When a front end takes up the messages that it received.
//!
//! Enters: messages as they arrive, and calls of two probed functions of the front end: its decoder, and its clock. Leaves: for each
//! request whose first output came in a message, when the front end got to it. vLLM stamps a first token there, not when the
//! message arrives: with 700 requests open its event loop is 5 to 250 ms behind (measured: docs/architecture.md). The messages of
//! a process are decoded in the order in which they arrived, and the first reading of the clock after that, on the same thread,
//! is the stamp; or another one's between the two, when the event loop is busy with new requests. Which readings are stamps, their stack
//! says (see [`Place`]): one place of the program makes them all. A server that keeps no statistics
//! (`--disable-log-stats`: its first outputs bring no events) stamps nothing, and no reading is taken for a stamp then, nor one that comes
//! [`MAX_AGE`] after the message was decoded. What is not seen is not guessed: the time of the decoding stands, or that of the arrival
//! when the order is lost or [`MAX_WAITING`] messages wait.

use std::collections::{BTreeMap, VecDeque};

use crate::input::EventNanos;

/// Messages of a process that wait to be decoded: 40 s of eight engines with 50 steps a second.
const MAX_WAITING: usize = 16_384;
/// How long after it was decoded a message may be stamped, ns: eight times the most that was seen.
const MAX_AGE: EventNanos = 2_000_000_000;

/// So many readings that can be no other's make their place known, if so many in a hundred of them agree.
const VOTES: u32 = 8;
const AGREEING: u32 = 80;
/// Places that are told apart while none is known.
const MAX_PLACES: usize = 64;
/// So many messages without a reading at the known place, and it is looked for anew.
const MAX_MISSED: u32 = 64;

/// The place in the program that reads the clock for a stamp, by where the stack stands there.
///
/// Learned where nothing else can be meant: when the clock was read once between two messages. A coroutine that is resumed by the event
/// loop has its stack at the same depth each time, and the handlers of requests, which read the clock too, are deeper.
#[derive(Debug, Default)]
struct Place {
    known: Option<u32>,
    votes: BTreeMap<u32, u32>,
    /// On which thread the newest message was decoded that is stamped, how often the clock was read there since, and where last.
    newest: Option<(u32, u32, u32)>,
    /// Messages since the known place was seen.
    missed: u32,
}

impl Place {
    /// A message is decoded; `stamped`: its stamp follows.
    fn decodes(&mut self, thread: u32, stamped: bool) {
        if let Some((_, 1, stack)) = self.newest {
            self.vote(stack);
        }
        self.newest = stamped.then_some((thread, 0, 0));
        self.missed += u32::from(stamped && self.known.is_some());
        if self.missed > MAX_MISSED {
            *self = Self { newest: self.newest, ..Self::default() };
        }
    }

    fn vote(&mut self, stack: u32) {
        if self.known.is_some() {
            return;
        }
        if self.votes.len() >= MAX_PLACES {
            self.votes.clear();
        }
        let votes = self.votes.entry(stack).or_default();
        *votes += 1;
        let (votes, all) = (*votes, self.votes.values().sum::<u32>());
        if votes >= VOTES && votes * 100 >= all * AGREEING {
            self.known = Some(stack);
            self.missed = 0;
        }
    }

    /// The clock is read; whether that may be a stamp.
    fn reads(&mut self, thread: u32, stack: u32) -> bool {
        if let Some((of, count, last)) = &mut self.newest
            && *of == thread
        {
            *count += 1;
            *last = stack;
        }
        if self.known == Some(stack) {
            self.missed = 0;
        }
        self.known.is_none_or(|known| known == stack)
    }
}

/// Requests whose first output is in a message.
type Firsts = Vec<u64>;

#[derive(Debug, Default)]
struct FrontEnd {
    /// Arrived, in order.
    waiting: VecDeque<Message>,
    /// Decoded and not stamped: in order.
    decoded: VecDeque<Decoded>,
    /// It stamps what it takes up.
    stamps: bool,
    place: Place,
}

#[derive(Debug)]
struct Decoded {
    at: EventNanos,
    thread: u32,
    firsts: Firsts,
}

#[derive(Debug)]
struct Message {
    /// It has outputs; vLLM stamps no other.
    stamped: bool,
    firsts: Firsts,
}

impl FrontEnd {
    /// Bounds what is decoded, too.
    fn forget_old(&mut self, now: EventNanos) {
        while self.decoded.pop_front_if(|decoded| decoded.at.saturating_add(MAX_AGE) < now).is_some() {}
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
            front_end.waiting.clear();
        }
    }

    /// The front end decodes a message: its requests, as far as is known.
    pub(super) fn decodes(&mut self, process: u32, thread: u32, at: EventNanos) -> Firsts {
        let front_end = self.front_ends.entry(process).or_default();
        // One that arrived before the attach, or was lost.
        let Some(Message { stamped, firsts }) = front_end.waiting.pop_front() else { return Firsts::new() };
        front_end.place.decodes(thread, stamped && front_end.stamps);
        if stamped && front_end.stamps {
            front_end.forget_old(at);
            front_end.decoded.push_back(Decoded { at, thread, firsts: firsts.clone() });
        }
        firsts
    }

    /// The front end reads its clock, with its stack at `stack`: the requests of the message that this stamps.
    pub(super) fn reads_clock(&mut self, process: u32, thread: u32, at: EventNanos, stack: u32) -> Firsts {
        let Some(front_end) = self.front_ends.get_mut(&process) else { return Firsts::new() };
        front_end.forget_old(at);
        if !front_end.place.reads(thread, stack) {
            return Firsts::new();
        }
        front_end
            .decoded
            .pop_front_if(|decoded| decoded.thread == thread)
            .map(|decoded| decoded.firsts)
            .unwrap_or_default()
    }

    /// Calls may have been lost: which message is next is not known.
    pub(super) fn lost(&mut self) {
        for front_end in self.front_ends.values_mut() {
            front_end.waiting.clear();
            front_end.decoded.clear();
        }
    }

    pub(super) fn ended(&mut self, process: u32) {
        self.front_ends.remove(&process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u64; 0] = [];
    /// Where stacks stand: of the stamp, and of a handler of requests.
    const STAMP: u32 = 0x1000;
    const HANDLER: u32 = 0x0800;

    /// Probed: a first call was seen.
    fn uptake() -> Uptake {
        let mut uptake = Uptake::default();
        assert_eq!(uptake.decodes(1, 1, 0), NONE);
        uptake.keeps_statistics(1, true);
        uptake
    }

    #[test]
    fn the_first_reading_of_the_clock_after_a_message_was_decoded_stamps_it() {
        // arrives 7, 8 · clock · decodes · clock (7) · clock · decodes · clock (8)
        let mut uptake = uptake();
        uptake.arrived(1, true, vec![7]);
        uptake.arrived(1, true, vec![8]);
        assert_eq!(uptake.reads_clock(1, 1, 1, STAMP), NONE, "nothing is decoded");
        assert_eq!(uptake.decodes(1, 1, 0), [7]);
        assert_eq!(uptake.reads_clock(1, 1, 1, STAMP), [7]);
        assert_eq!(uptake.reads_clock(1, 1, 1, STAMP), NONE);
        assert_eq!(uptake.decodes(1, 1, 0), [8]);
        assert_eq!(uptake.reads_clock(1, 1, 1, STAMP), [8]);
    }

    #[test]
    fn messages_that_are_decoded_while_others_are_handled_are_stamped_in_order() {
        let mut uptake = uptake();
        for key in [7, 8] {
            uptake.arrived(1, true, vec![key]);
            uptake.decodes(1, 1, 0);
        }
        assert_eq!((uptake.reads_clock(1, 1, 1, STAMP), uptake.reads_clock(1, 1, 1, STAMP)), (vec![7], vec![8]));
    }

    #[test]
    fn a_message_without_outputs_is_decoded_and_not_stamped() {
        let mut uptake = uptake();
        uptake.arrived(1, false, vec![]);
        uptake.arrived(1, true, vec![8]);
        assert_eq!(uptake.decodes(1, 1, 0), NONE);
        assert_eq!(uptake.reads_clock(1, 1, 1, STAMP), NONE);
        assert_eq!(uptake.decodes(1, 1, 0), [8]);
    }

    #[test]
    fn another_thread_s_clock_and_another_process_are_none_of_its_business() {
        let mut uptake = uptake();
        uptake.arrived(1, true, vec![7]);
        uptake.arrived(2, true, vec![9]);
        uptake.decodes(1, 1, 0);
        assert_eq!(uptake.reads_clock(1, 5, 1, STAMP), NONE);
        assert_eq!(uptake.reads_clock(2, 1, 1, STAMP), NONE);
        assert_eq!(uptake.decodes(2, 2, 0), NONE, "it was not known to be probed when 9 arrived");
        assert_eq!(uptake.reads_clock(1, 1, 1, STAMP), [7]);
    }

    #[test]
    fn what_waited_when_calls_were_lost_is_forgotten() {
        let mut uptake = uptake();
        uptake.arrived(1, true, vec![7]);
        uptake.lost();
        uptake.arrived(1, true, vec![8]);
        assert_eq!(uptake.decodes(1, 1, 0), [8]);
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
        assert_eq!(uptake.decodes(1, 1, 0), [7]);
        assert_eq!(uptake.reads_clock(1, 1, 1, STAMP), NONE);
    }

    #[test]
    fn a_reading_long_after_the_message_is_no_stamp() {
        let mut uptake = uptake();
        for key in [7, 8] {
            uptake.arrived(1, true, vec![key]);
        }
        uptake.decodes(1, 1, 0);
        uptake.decodes(1, 1, MAX_AGE);
        assert_eq!(uptake.reads_clock(1, 1, MAX_AGE + 1, STAMP), [8], "7 was decoded too long ago");
    }

    #[test]
    fn a_handler_s_reading_between_a_message_and_its_stamp_is_none() {
        // 8 times: arrives · decodes · clock (stamp) │ then: arrives 99 · decodes · clock (handler) · clock (stamp)
        let mut uptake = uptake();
        for key in 0..=u64::from(VOTES) {
            uptake.arrived(1, true, vec![key]);
            uptake.decodes(1, 1, 0);
            assert_eq!(uptake.reads_clock(1, 1, 1, STAMP), [key]);
        }
        uptake.arrived(1, true, vec![99]);
        uptake.decodes(1, 1, 0);
        assert_eq!(uptake.reads_clock(1, 1, 1, HANDLER), NONE);
        assert_eq!(uptake.reads_clock(1, 1, 2, STAMP), [99]);
    }

    #[test]
    fn a_place_is_not_learned_from_readings_that_may_be_another_s() {
        // arrives · decodes · clock (handler) · clock (stamp), again and again: nothing says whose is whose
        let mut uptake = uptake();
        for key in 0..100 {
            uptake.arrived(1, true, vec![key]);
            uptake.decodes(1, 1, 0);
            assert_eq!(uptake.reads_clock(1, 1, 1, HANDLER), [key], "the first, as long as none is known");
            assert_eq!(uptake.reads_clock(1, 1, 2, STAMP), NONE);
        }
    }

    #[test]
    fn a_place_that_is_not_seen_any_more_is_forgotten() {
        let mut uptake = uptake();
        for key in 0..=u64::from(VOTES) {
            uptake.arrived(1, true, vec![key]);
            uptake.decodes(1, 1, 0);
            uptake.reads_clock(1, 1, 1, STAMP);
        }
        let stamped = (0..u64::from(2 * MAX_MISSED)).filter(|key| {
            uptake.arrived(1, true, vec![*key]);
            uptake.decodes(1, 1, MAX_AGE * (key + 2));
            uptake.reads_clock(1, 1, MAX_AGE * (key + 2) + 1, HANDLER) == [*key]
        });
        assert!(stamped.count() >= MAX_MISSED as usize - 1);
    }
}
