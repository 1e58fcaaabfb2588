//! Every connection that is followed, by its end: what is on it, and what its bytes said.
//!
//! Enters: pieces of calls, openings and closes. Leaves: what they complete. What is decoded comes from each connection's [`Decoder`], or,
//! in a replay of a recording, from the answers that these gave then: everything behind this door is the same for both. Bounded: so many
//! connections; how many bytes they hold for messages that are not whole is counted here, and bounded by whoever runs the cores.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::decoder::{Decoder, Parsed};
use super::slots::Slots;
use crate::decode::http::{HttpEvent, Piece};
use crate::engine::Engine;
use crate::input::{Direction, End};

/// Connections that are followed; over that new ones are not. So many fill a table of 131,072 places, which is what the kernel side's
/// table of descriptors has; one takes about 560 bytes, besides what it holds.
pub(super) const MAX_CONNECTIONS: usize = 114_688;

/// A connection, as far as the core knows it.
#[derive(Debug)]
pub(super) struct Connection {
    pub process: u32,
    /// Requests by their ordinal on the connection.
    pub slots: Slots,
    /// The engine whose outputs it carries.
    pub engine: Option<u32>,
    /// In a replay of a recording nothing is decoded.
    decoder: Option<Decoder>,
    /// Bytes that its decoder holds.
    held: usize,
}

/// What the decoders said when they were asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Parsed(Parsed),
    /// Of every connection whose source does not count its bytes; or of those that let go of what they held.
    Lost(Vec<(End, Parsed)>),
    /// The events of a response that was bound to another request; `None` when it could not be.
    Rebound(Option<Vec<HttpEvent>>),
    /// Too much was held, and one connection let go: in recordings of before it was an input.
    Relieved,
}

#[derive(Debug, Default)]
pub(super) struct Connections {
    open: HashMap<End, Box<Connection>>,
    /// Bytes that decoders hold for messages that are not whole.
    held: usize,
    /// The answers of a recording, of the input at hand.
    script: Option<VecDeque<Answer>>,
    /// The answers since they were last taken, where somebody records.
    tape: Option<Vec<Answer>>,
    /// Questions to which the script had no answer, and answers that nobody asked for.
    unanswered: u64,
}

impl Connections {
    pub(super) fn get(&self, end: End) -> Option<&Connection> {
        self.open.get(&end).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, end: End) -> Option<&mut Connection> {
        self.open.get_mut(&end).map(Box::as_mut)
    }

    /// Bytes that decoders hold for messages that are not whole.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
    }

    /// That are followed.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Who holds any of them, and how many; in no order.
    pub(super) fn holders(&self) -> impl Iterator<Item = (usize, End)> {
        self.open.iter().filter(|(_, of)| of.held > 0).map(|(&end, of)| (of.held, end))
    }

    /// From here on answers are kept until they are taken.
    pub(super) fn record(&mut self) {
        self.tape = Some(Vec::new());
    }

    pub(super) fn take_answers(&mut self) -> Vec<Answer> {
        self.tape.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// From here on nothing is decoded: these are the answers of the next input.
    pub(super) fn follow(&mut self, answers: Vec<Answer>) {
        let left = self.script.replace(answers.into());
        self.unanswered += left.map_or(0, |left| left.len() as u64);
    }

    /// Where a recording did not fit: it is of another version, or damaged.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// Follows a connection; false when there are too many.
    pub(super) fn open(&mut self, end: End, process: u32, from_start: bool) -> bool {
        if self.open.len() >= MAX_CONNECTIONS {
            return false;
        }
        let decoder = self.script.is_none().then(|| Decoder::new(from_start));
        let connection = Connection { process, slots: Slots::default(), engine: None, decoder, held: 0 };
        if let Some(before) = self.open.insert(end, Box::new(connection)) {
            self.held = self.held.saturating_sub(before.held);
        }
        true
    }

    /// Takes a piece of a call.
    pub(super) fn push(
        &mut self,
        end: End,
        direction: Direction,
        offset: Option<u64>,
        piece: Piece<'_>,
        engine: &dyn Engine,
    ) -> Option<Parsed> {
        let connection = self.open.get_mut(&end)?;
        let Some(decoder) = &mut connection.decoder else { return self.scripted_parsed() };
        let mut parsed = Parsed::default();
        decoder.push(direction, offset, piece, engine, &mut parsed);
        let held = decoder.held_bytes();
        self.held = (self.held + held).saturating_sub(std::mem::replace(&mut connection.held, held));
        self.keep(|| Answer::Parsed(parsed.clone()));
        Some(parsed)
    }

    /// The connection is over: what was still on its way, and whose it was. It stays until it is removed. `moved`: all that it
    /// moved, in and out, where the source counts.
    pub(super) fn close(&mut self, end: End, moved: Option<(u64, u64)>, engine: &dyn Engine) -> Option<(u32, Parsed)> {
        let connection = self.open.get_mut(&end)?;
        let process = connection.process;
        let Some(decoder) = &mut connection.decoder else { return Some((process, self.scripted_parsed()?)) };
        let mut parsed = Parsed::default();
        decoder.closed(moved, engine, &mut parsed);
        self.keep(|| Answer::Parsed(parsed.clone()));
        Some((process, parsed))
    }

    pub(super) fn remove(&mut self, end: End) -> Option<Connection> {
        let connection = self.open.remove(&end)?;
        self.held = self.held.saturating_sub(connection.held);
        Some(*connection)
    }

    /// The connections of a process, in order.
    pub(super) fn of(&self, process: u32) -> Vec<End> {
        self.ends(|connection| connection.process == process)
    }

    fn ends(&self, is: impl Fn(&Connection) -> bool) -> Vec<End> {
        let mut ends: Vec<End> = self.open.iter().filter(|(_, of)| is(of)).map(|(&end, _)| end).collect();
        ends.sort_unstable();
        ends
    }

    /// Records were lost: what that does to the connections whose bytes the source does not count, in order. On the others a loss
    /// shows by itself.
    pub(super) fn lose(&mut self, engine: &dyn Engine) -> Vec<(End, Parsed)> {
        if self.script.is_some() {
            return self.scripted_lost();
        }
        let uncounted = |of: &Connection| of.decoder.as_ref().is_some_and(|decoder| !decoder.counts());
        let mut lost = Vec::new();
        for end in self.ends(uncounted) {
            let Some(decoder) = self.open.get_mut(&end).and_then(|of| of.decoder.as_mut()) else { continue };
            let mut parsed = Parsed::default();
            for direction in [Direction::In, Direction::Out] {
                decoder.lost(direction, None, engine, &mut parsed);
            }
            parsed.carries_messages = decoder.carries_messages();
            lost.push((end, parsed));
        }
        self.keep(|| Answer::Lost(lost.clone()));
        lost
    }

    /// Binds the response at hand to another request of the connection; gives the events that it had.
    pub(super) fn rebind(&mut self, end: End, from: u64, to: u64) -> Option<Vec<HttpEvent>> {
        if self.script.is_some() {
            let Some(Answer::Rebound(events)) = self.scripted() else {
                self.unanswered += 1;
                return None;
            };
            return events;
        }
        let mut passed = Vec::new();
        let conversation = self.open.get_mut(&end).and_then(|of| of.decoder.as_mut()?.conversation());
        let is_rebound = conversation.is_some_and(|it| it.rebind(from, to, &mut |event| passed.push(event)));
        let events = is_rebound.then_some(passed);
        self.keep(|| Answer::Rebound(events.clone()));
        events
    }

    /// Too much is held: these connections let go of what they hold, as if it were missing. What that does to them, in order.
    pub(super) fn let_go(&mut self, ends: &[End]) -> Vec<(End, Parsed)> {
        if self.script.is_some() {
            return self.scripted_lost();
        }
        let mut lost = Vec::new();
        for &end in ends {
            let Some(connection) = self.open.get_mut(&end) else { continue };
            let Some(decoder) = &mut connection.decoder else { continue };
            let mut parsed = Parsed::default();
            decoder.drop_held(&mut parsed);
            let held = decoder.held_bytes();
            self.held = (self.held + held).saturating_sub(std::mem::replace(&mut connection.held, held));
            lost.push((end, parsed));
        }
        self.keep(|| Answer::Lost(lost.clone()));
        lost
    }

    /// Whether the recording has it that a connection let go at this input, which is no question of today's.
    pub(super) fn was_relieved(&mut self) -> bool {
        let Some(script) = &mut self.script else { return false };
        script.pop_front_if(|answer| *answer == Answer::Relieved).is_some()
    }

    fn keep(&mut self, answer: impl FnOnce() -> Answer) {
        if let Some(tape) = &mut self.tape {
            tape.push(answer());
        }
    }

    fn scripted(&mut self) -> Option<Answer> {
        self.script.as_mut()?.pop_front()
    }

    fn scripted_lost(&mut self) -> Vec<(End, Parsed)> {
        let Some(Answer::Lost(lost)) = self.scripted() else {
            self.unanswered += 1;
            return Vec::new();
        };
        lost
    }

    fn scripted_parsed(&mut self) -> Option<Parsed> {
        let Some(Answer::Parsed(parsed)) = self.scripted() else {
            self.unanswered += 1;
            return None;
        };
        Some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ENGINES;

    const REQUEST: &[u8] = b"POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}";

    fn piece(bytes: &[u8]) -> Piece<'_> {
        Piece { len: bytes.len() as u64, bytes, starts: true }
    }

    #[test]
    fn connections_are_found_by_their_process() {
        let mut connections = Connections::default();
        for (end, process) in [(9, 1), (3, 2), (4, 1)] {
            connections.open(End(end), process, true);
        }
        assert_eq!(connections.of(1), [End(4), End(9)]);
        assert_eq!(connections.close(End(9), None, ENGINES[0]).map(|(process, _)| process), Some(1));
        assert!(connections.remove(End(9)).is_some());
        assert_eq!(connections.of(1), [End(4)]);
    }

    #[test]
    fn what_was_answered_once_is_answered_again_without_the_bytes() {
        // open, a request, a loss, close: once decoded, once from the tape
        let end = End(7);
        let run = |connections: &mut Connections, bytes: &[u8]| {
            connections.open(end, 1, true);
            let request = connections.push(end, Direction::In, None, piece(bytes), ENGINES[0]);
            let lost = connections.lose(ENGINES[0]);
            (request, lost, connections.close(end, None, ENGINES[0]))
        };
        let mut live = Connections::default();
        live.record();
        let seen = run(&mut live, REQUEST);
        assert!(seen.0.as_ref().is_some_and(|parsed| parsed.http.len() == 3), "{seen:?}");
        let mut replayed = Connections::default();
        replayed.follow(live.take_answers());
        assert_eq!(run(&mut replayed, b""), seen);
        assert_eq!(replayed.unanswered(), 0);
    }

    #[test]
    fn a_question_without_an_answer_is_counted_and_says_nothing() {
        let mut connections = Connections::default();
        connections.follow(Vec::new());
        connections.open(End(7), 1, true);
        assert_eq!(connections.push(End(7), Direction::In, None, piece(REQUEST), ENGINES[0]), None);
        connections.follow(vec![Answer::Relieved, Answer::Rebound(None)]);
        assert!(connections.was_relieved() && !connections.was_relieved());
        connections.follow(Vec::new());
        assert_eq!(connections.unanswered(), 2, "one question, one answer");
    }

    /// A ZMTP frame of 16 MiB begins: a greeting and a handshake are not needed to tell it.
    fn huge(connections: &mut Connections, end: End) {
        let mut frame = vec![0x02];
        frame.extend((16_u64 << 20).to_be_bytes());
        frame.resize(1 << 20, 7);
        let greeting = [&[0xff][..], &[0; 8], &[0x7f, 3, 1], b"NULL", &[0; 48]].concat();
        for bytes in [greeting, frame] {
            let piece = Piece { len: bytes.len() as u64, bytes: &bytes, starts: true };
            connections.push(end, Direction::In, None, piece, ENGINES[0]);
        }
    }

    #[test]
    fn what_is_held_is_counted_and_who_holds_it() {
        // three connections with 1 MiB each of a message that does not end ─ the second lets go ─ all are closed
        let mut connections = Connections::default();
        for end in (0..3).map(End) {
            assert!(connections.open(end, 1, true));
            huge(&mut connections, end);
        }
        let all = connections.held_bytes();
        assert!(all > 3_000_000, "{all} bytes");
        let lost = connections.let_go(&[End(1), End(9)]);
        assert!(matches!(lost.as_slice(), [(End(1), parsed)] if parsed.lost && parsed.carries_messages), "{lost:?}");
        let mut holders: Vec<End> = connections.holders().map(|(_, end)| end).collect();
        holders.sort_unstable();
        // The framing is still known, so that the next message is whole.
        assert!(holders.contains(&End(0)) && connections.held_bytes() <= all / 3 * 2 + 1_024, "{holders:?}");
        for end in (0..3).map(End) {
            connections.close(end, None, ENGINES[0]);
            connections.remove(end);
        }
        assert_eq!(connections.held_bytes(), 0);
    }

    #[test]
    fn a_connection_that_takes_the_place_of_another_gives_back_what_that_held() {
        let mut connections = Connections::default();
        for _ in 0..2 {
            connections.open(End(1), 1, true);
            huge(&mut connections, End(1));
        }
        connections.remove(End(1));
        assert_eq!(connections.held_bytes(), 0);
    }
}
