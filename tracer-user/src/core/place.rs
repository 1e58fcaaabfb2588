//! The place in a front end's program that stamps the messages it takes up, among all that read its clock.
//!
//! Enters: messages as they are decoded, and readings of the clock with where the stack stood. Leaves: which readings are stamps. Nothing is
//! known of the program but what it does; a place that stops being seen is learned anew.

use std::collections::BTreeMap;

/// Turns that are looked at together; a place that was seen once a message in so many of a hundred of them is the stamp's.
pub(super) const TURNS: u32 = 12;
const AGREEING: u32 = 70;
/// Places of a turn that are told apart.
const MAX_PLACES: usize = 64;
/// Bytes by which the stack of one place may differ: Python's interpreter calls a function in several ways (48 bytes between two, measured;
/// the nearest other place was 464 away).
const NEAR: u32 = 128;

/// The place in the program that reads the clock for a stamp, by where the stack stands there.
///
/// A coroutine that is resumed by the event loop has its stack at the same depth each time. The place of the stamp reads the clock once a
/// message; the handlers of requests, which read it too, do so as often as there are new requests, and what counts the statistics several
/// times (measured with 700 open: 30 places, of which one was seen once a message). Of several that do so once, it is the one that
/// comes first. Several engines' messages are decoded in one go and stamped after that: a turn is of as many messages as were decoded
/// before the clock was read.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) known: Option<u32>,
    /// The known one was seen in these turns.
    is_seen: bool,
    /// In how many turns a place was seen once a message, and how many others came before it in these; and how many turns there were.
    once: BTreeMap<u32, (u32, u32)>,
    turns: u32,
    turn: Option<Turn>,
}

/// What came since the clock was read last and a message decoded after that.
#[derive(Debug)]
struct Turn {
    thread: u32,
    /// That were decoded and will be stamped.
    messages: u32,
    /// Where the clock was read on the thread, how often, in order.
    readings: Vec<(u32, u32)>,
}

impl Place {
    /// A message is decoded; `stamped`: its stamp follows. True when another place has become known.
    pub(super) fn decodes(&mut self, thread: u32, stamped: bool) -> bool {
        let new = stamped.then(|| Turn { thread, messages: 1, readings: Vec::new() });
        let Some(Turn { messages, readings, .. }) = std::mem::replace(&mut self.turn, new) else { return false };
        if readings.is_empty() {
            // Decoded in one go with the one before.
            let messages = messages + u32::from(stamped);
            self.turn = Some(Turn { thread, messages, readings });
            return false;
        }
        self.turns += 1;
        for (before, (stack, _)) in (0..).zip(readings).filter(|(_, (_, count))| *count == messages) {
            let near = stack.saturating_sub(NEAR)..=stack.saturating_add(NEAR);
            if let Some((_, (once, others))) = self.once.range_mut(near).next() {
                (*once, *others) = (*once + 1, *others + before);
            } else if self.once.len() < MAX_PLACES {
                self.once.insert(stack, (1, before));
            }
        }
        if self.turns < TURNS {
            return false;
        }
        let once = std::mem::take(&mut self.once);
        let turns = std::mem::take(&mut self.turns);
        // With messages waiting, the stamp's is read twice in some turns and not at all in others: no reason to doubt it.
        let is_right = std::mem::take(&mut self.is_seen);
        let candidates = once.into_iter().filter(|(_, (once, _))| once * 100 >= turns * AGREEING);
        match candidates.min_by_key(|(_, (once, others))| others * 1000 / once) {
            Some((stack, _)) if !is_right => {
                self.known = Some(stack);
                true
            }
            _ => false,
        }
    }

    pub(super) fn is_known(&self, stack: u32) -> bool {
        self.known.is_some_and(|known| known.abs_diff(stack) <= NEAR)
    }

    /// The clock is read.
    pub(super) fn reads(&mut self, thread: u32, stack: u32) {
        if let Some(Turn { thread: of, readings, .. }) = &mut self.turn
            && *of == thread
        {
            if let Some((_, count)) = readings.iter_mut().find(|(known, _)| known.abs_diff(stack) <= NEAR) {
                *count += 1;
            } else if readings.len() < MAX_PLACES {
                readings.push((stack, 1));
            }
        }
        self.is_seen |= self.is_known(stack);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: u32 = 0x1000;

    #[test]
    fn of_two_places_that_read_once_a_message_the_first_is_the_stamp_s() {
        // decodes · clock (the stamp) · clock (statistics, deeper or not), again and again
        for after in [STAMP + 0x400, STAMP - 0x400] {
            let mut place = Place::default();
            for _ in 0..=TURNS {
                place.decodes(1, true);
                place.reads(1, STAMP);
                place.reads(1, after);
            }
            assert_eq!(place.known, Some(STAMP));
        }
    }
}
