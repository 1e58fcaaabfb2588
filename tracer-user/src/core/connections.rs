//! Every connection that is followed, by its end: what is on it, and what its bytes said.
//!
//! Enters: pieces of calls, openings and closes. Leaves: what they complete. What is decoded comes from the [`Decoders`], or, in a replay
//! of a recording, from the answers that they gave then: everything behind this door is the same for both. Bounded: so many
//! connections, and so many bytes held for messages that are not whole, of all of them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::decoder::Parsed;
use super::decoders::Decoders;
use crate::decode::http::{HttpEvent, Piece};
use crate::engine::Engine;
use crate::input::{Direction, End, EventNanos};

/// Connections that are followed; over that new ones are not (a descriptor table has 1,048,576 at most).
const MAX_CONNECTIONS: usize = 262_144;

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

/// Who answers.
#[derive(Debug)]
enum Source {
    Decoders(Decoders),
    /// Answers of a recording, of the input at hand.
    Script(VecDeque<Answer>),
}

#[derive(Debug)]
pub(super) struct Connections {
    open: HashMap<End, Connection>,
    source: Source,
    /// The answers since they were last taken, where somebody records.
    tape: Option<Vec<Answer>>,
    /// Questions to which the script had no answer.
    unanswered: u64,
}

impl Default for Connections {
    fn default() -> Self {
        Self { open: HashMap::new(), source: Source::Decoders(Decoders::default()), tape: None, unanswered: 0 }
    }
}

impl Connections {
    pub(super) fn get(&self, end: End) -> Option<&Connection> {
        self.open.get(&end)
    }

    pub(super) fn get_mut(&mut self, end: End) -> Option<&mut Connection> {
        self.open.get_mut(&end)
    }

    /// From here on answers are kept until they are taken.
    pub(super) fn record(&mut self) {
        self.tape = Some(Vec::new());
    }

    pub(super) fn take_answers(&mut self) -> Vec<Answer> {
        self.tape.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// From here on nothing is decoded: these are the answers of the next input. What an input left over has no further use.
    pub(super) fn follow(&mut self, answers: Vec<Answer>) {
        if let Source::Script(left) = &self.source {
            self.unanswered += left.len() as u64;
        }
        self.source = Source::Script(answers.into());
    }

    /// Questions that a recording did not answer, and answers that nobody asked for: it is of another version, or damaged.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// Follows a connection; false when there are too many.
    pub(super) fn open(&mut self, end: End, process: u32, from_start: bool) -> bool {
        if self.open.len() >= MAX_CONNECTIONS {
            return false;
        }
        self.open.insert(end, Connection { process, slots: BTreeMap::new(), engine: None });
        if let Source::Decoders(decoders) = &mut self.source {
            decoders.open(end, from_start);
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
        self.open.get(&end)?;
        self.parsed(|decoders| decoders.push(end, direction, offset, piece, engine))
    }

    /// The connection is over: what was still on its way, and whose it was. It stays until it is removed. `moved`: all that it
    /// moved, in and out, where the source counts.
    pub(super) fn close(&mut self, end: End, moved: Option<(u64, u64)>, engine: &dyn Engine) -> Option<(u32, Parsed)> {
        let process = self.open.get(&end)?.process;
        Some((process, self.parsed(|decoders| decoders.close(end, moved, engine))?))
    }

    pub(super) fn remove(&mut self, end: End) -> Option<Connection> {
        if let Source::Decoders(decoders) = &mut self.source {
            decoders.remove(end);
        }
        self.open.remove(&end)
    }

    /// The connections of a process, in order.
    pub(super) fn of(&self, process: u32) -> Vec<End> {
        let of_process = self.open.iter().filter(|(_, connection)| connection.process == process);
        let mut ends: Vec<End> = of_process.map(|(&end, _)| end).collect();
        ends.sort_unstable();
        ends
    }

    /// Records were lost: what that does to the connections whose bytes the source does not count, in order. On the others a loss
    /// shows by itself.
    pub(super) fn lose(&mut self, engine: &dyn Engine) -> Vec<(End, Parsed)> {
        let answer = self.answer(|decoders| Answer::Lost(decoders.lose(engine)));
        let Some(Answer::Lost(lost)) = answer else {
            self.unanswered += 1;
            return Vec::new();
        };
        lost
    }

    /// Binds the response at hand to another request of the connection; gives the events that it had.
    pub(super) fn rebind(&mut self, end: End, from: u64, to: u64) -> Option<Vec<HttpEvent>> {
        let answer = self.answer(|decoders| Answer::Rebound(decoders.rebind(end, from, to)));
        let Some(Answer::Rebound(events)) = answer else {
            self.unanswered += 1;
            return None;
        };
        events
    }

    /// While too much is held for messages that are not whole, the connection that holds most lets go. True when one did.
    pub(super) fn relieve(&mut self) -> bool {
        match &mut self.source {
            Source::Decoders(decoders) => {
                let relieved = decoders.relieve();
                if let Some(tape) = self.tape.as_mut().filter(|_| relieved) {
                    tape.push(Answer::Relieved);
                }
                relieved
            }
            Source::Script(answers) => {
                let relieved = answers.front() == Some(&Answer::Relieved);
                if relieved {
                    answers.pop_front();
                }
                relieved
            }
        }
    }

    fn parsed(&mut self, ask: impl FnOnce(&mut Decoders) -> Option<Parsed>) -> Option<Parsed> {
        let answer = self.answer(|decoders| Answer::Parsed(ask(decoders).unwrap_or_default()));
        let Some(Answer::Parsed(parsed)) = answer else {
            self.unanswered += 1;
            return None;
        };
        Some(parsed)
    }

    /// Asks whoever answers.
    fn answer(&mut self, ask: impl FnOnce(&mut Decoders) -> Answer) -> Option<Answer> {
        match &mut self.source {
            Source::Decoders(decoders) => {
                let answer = ask(decoders);
                if let Some(tape) = &mut self.tape {
                    tape.push(answer.clone());
                }
                Some(answer)
            }
            Source::Script(answers) => answers.pop_front(),
        }
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
}
