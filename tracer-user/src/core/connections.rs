//! Every connection that is followed, by its end: what is on it, and what its bytes said.
//!
//! Enters: pieces of calls, openings and closes. Leaves: what they complete. What is decoded comes from each connection's [`Decoder`], or,
//! in a replay of a recording, from the answers that these gave then: everything behind this door is the same for both. Bounded: so many
//! connections, and so many bytes held for messages that are not whole, of all of them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::decoder::{Decoder, Parsed};
use crate::decode::http::{HttpEvent, Piece};
use crate::engine::Engine;
use crate::input::{Direction, End, EventNanos};

/// Connections that are followed; over that new ones are not (a descriptor table has 1,048,576 at most).
const MAX_CONNECTIONS: usize = 262_144;
/// Bytes of messages that are not whole, of all connections: 1,024 front ends' first output messages.
const MAX_HELD: usize = 24 << 20;

/// A request on the connection whose response is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Its head is still coming; its first byte was read at `at`, behind `place` others in the same call.
    Started {
        at: EventNanos,
        place: u32,
    },
    Exchange(u64),
    /// An endpoint that does not generate.
    Ignored,
}

/// A connection, as far as the core knows it.
#[derive(Debug)]
pub(super) struct Connection {
    pub process: u32,
    /// Requests by their ordinal on the connection.
    pub slots: BTreeMap<u64, Slot>,
    /// The engine whose outputs it carries.
    pub engine: Option<u32>,
    /// In a replay of a recording nothing is decoded.
    decoder: Option<Decoder>,
}

/// What the decoders said when they were asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Parsed(Parsed),
    /// Of every connection whose source does not count its bytes.
    Lost(Vec<(End, Parsed)>),
    /// The events of a response that was bound to another request; `None` when it could not be.
    Rebound(Option<Vec<HttpEvent>>),
    /// Too much was held for messages that are not whole, and one connection let go.
    Relieved,
}

#[derive(Debug, Default)]
pub(super) struct Connections {
    open: HashMap<End, Connection>,
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
        self.open.get(&end)
    }

    pub(super) fn get_mut(&mut self, end: End) -> Option<&mut Connection> {
        self.open.get_mut(&end)
    }

    /// Bytes that decoders hold for messages that are not whole.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
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
        self.open.insert(end, Connection { process, slots: BTreeMap::new(), engine: None, decoder });
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
        let held = decoder.held_bytes();
        decoder.push(direction, offset, piece, engine, &mut parsed);
        self.held = (self.held + decoder.held_bytes()).saturating_sub(held);
        self.keep(|| Answer::Parsed(parsed.clone()));
        Some(parsed)
    }

    /// The connection is over: what was still on its way, and whose it was. It stays until it is removed. `moved`: all that it
    /// moved, in and out, where the source counts.
    pub(super) fn close(&mut self, end: End, moved: Option<(u64, u64)>, engine: &dyn Engine) -> Option<(u32, Parsed)> {
        let connection = self.open.get_mut(&end)?;
        let process = connection.process;
        let Some(decoder) = &mut connection.decoder else { return Some((process, self.scripted_parsed()?)) };
        self.held = self.held.saturating_sub(decoder.held_bytes());
        let mut parsed = Parsed::default();
        decoder.closed(moved, engine, &mut parsed);
        self.keep(|| Answer::Parsed(parsed.clone()));
        Some((process, parsed))
    }

    pub(super) fn remove(&mut self, end: End) -> Option<Connection> {
        self.open.remove(&end)
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
            let Some(Answer::Lost(lost)) = self.scripted() else {
                self.unanswered += 1;
                return Vec::new();
            };
            return lost;
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

    /// While too much is held for messages that are not whole, the connection that holds most lets go. True when one did.
    pub(super) fn relieve(&mut self) -> bool {
        if let Some(script) = &mut self.script {
            let relieved = script.front() == Some(&Answer::Relieved);
            if relieved {
                script.pop_front();
            }
            return relieved;
        }
        if self.held <= MAX_HELD {
            return false;
        }
        let decoders = self.open.iter_mut().filter_map(|(end, of)| Some((*end, of.decoder.as_mut()?)));
        let Some((_, decoder)) = decoders.max_by_key(|(end, decoder)| (decoder.held_bytes(), *end)) else {
            return false;
        };
        let held = decoder.held_bytes();
        decoder.drop_held();
        self.held = (self.held + decoder.held_bytes()).saturating_sub(held);
        self.keep(|| Answer::Relieved);
        true
    }

    fn keep(&mut self, answer: impl FnOnce() -> Answer) {
        if let Some(tape) = &mut self.tape {
            tape.push(answer());
        }
    }

    fn scripted(&mut self) -> Option<Answer> {
        self.script.as_mut()?.pop_front()
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
        assert!(connections.relieve());
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
    fn what_is_held_of_all_connections_is_bounded() {
        // 40 connections with 1 MiB each of a message that does not end
        let mut connections = Connections::default();
        let mut relieved = 0;
        for end in (0..40).map(End) {
            assert!(connections.open(end, 1, true));
            huge(&mut connections, end);
            while connections.relieve() {
                relieved += 1;
            }
            assert!(connections.held <= MAX_HELD);
        }
        assert!(relieved > 0, "{} bytes held", connections.held);
        for end in (0..40).map(End) {
            connections.close(end, None, ENGINES[0]);
            connections.remove(end);
        }
        assert_eq!(connections.held, 0);
    }
}
