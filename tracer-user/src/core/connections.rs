//! Every connection that is followed, by its end.
//!
//! Enters: pieces of calls, openings and closes. Leaves: what they complete. Bounded: so many connections, and so many bytes held for
//! messages that are not whole, of all of them.

use std::collections::HashMap;

use super::connection::{Connection, Parsed};
use crate::decode::http::Piece;
use crate::engine::Engine;
use crate::input::{Direction, End};

/// Connections that are followed; over that new ones are not (a descriptor table has 1,048,576 at most).
const MAX_CONNECTIONS: usize = 262_144;
/// Bytes of messages that are not whole, of all connections: 1,024 front ends' first output messages.
const MAX_HELD: usize = 24 << 20;

#[derive(Debug, Default)]
pub(super) struct Connections {
    open: HashMap<End, Connection>,
    /// Bytes that connections hold for messages that are not whole.
    held: usize,
}

impl Connections {
    pub(super) fn get(&self, end: End) -> Option<&Connection> {
        self.open.get(&end)
    }

    pub(super) fn get_mut(&mut self, end: End) -> Option<&mut Connection> {
        self.open.get_mut(&end)
    }

    /// Follows a connection; false when there are too many.
    pub(super) fn open(&mut self, end: End, process: u32, from_start: bool) -> bool {
        if self.open.len() >= MAX_CONNECTIONS {
            return false;
        }
        self.open.insert(end, Connection::new(process, from_start));
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
        let mut parsed = Parsed::default();
        let held = connection.held_bytes();
        connection.push(direction, offset, piece, engine, &mut parsed);
        self.held = (self.held + connection.held_bytes()).saturating_sub(held);
        Some(parsed)
    }

    /// The connection is over: what was still on its way, and whose it was. It stays until it is removed. `moved`: all that it
    /// moved, in and out, where the source counts.
    pub(super) fn close(&mut self, end: End, moved: Option<(u64, u64)>) -> Option<(u32, Parsed)> {
        let connection = self.open.get_mut(&end)?;
        self.held = self.held.saturating_sub(connection.held_bytes());
        let mut parsed = Parsed::default();
        connection.closed(moved, &mut parsed);
        Some((connection.process, parsed))
    }

    pub(super) fn remove(&mut self, end: End) -> Option<Connection> {
        self.open.remove(&end)
    }

    /// The connections of a process, in order.
    pub(super) fn of(&self, process: u32) -> Vec<End> {
        self.ends(|connection| connection.process == process)
    }

    /// Connections whose bytes the source does not count, in order: what is lost of them does not show by itself.
    pub(super) fn uncounted(&self) -> Vec<End> {
        self.ends(|connection| !connection.counts())
    }

    fn ends(&self, is: impl Fn(&Connection) -> bool) -> Vec<End> {
        let mut ends: Vec<End> =
            self.open.iter().filter(|(_, connection)| is(connection)).map(|(&end, _)| end).collect();
        ends.sort_unstable();
        ends
    }

    /// While too much is held for messages that are not whole, the connection that holds most lets go. True when one did.
    pub(super) fn relieve(&mut self) -> bool {
        if self.held <= MAX_HELD {
            return false;
        }
        let largest = self.open.iter_mut().max_by_key(|(end, connection)| (connection.held_bytes(), **end));
        let Some((_, connection)) = largest else { return false };
        let held = connection.held_bytes();
        connection.drop_held();
        self.held = (self.held + connection.held_bytes()).saturating_sub(held);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ZMTP frame of 16 MiB begins: a greeting and a handshake are not needed to tell it.
    fn huge(connections: &mut Connections, end: End) {
        let mut frame = vec![0x02];
        frame.extend((16_u64 << 20).to_be_bytes());
        frame.resize(1 << 20, 7);
        let greeting = [&[0xff][..], &[0; 8], &[0x7f, 3, 1], b"NULL", &[0; 48]].concat();
        for bytes in [greeting, frame] {
            let piece = Piece { len: bytes.len() as u64, bytes: &bytes, starts: true };
            connections.push(end, Direction::In, None, piece, crate::engine::ENGINES[0]);
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
            connections.close(end, None);
            connections.remove(end);
        }
        assert_eq!(connections.held, 0);
    }

    #[test]
    fn connections_are_found_by_their_process() {
        let mut connections = Connections::default();
        for (end, process) in [(9, 1), (3, 2), (4, 1)] {
            connections.open(End(end), process, true);
        }
        assert_eq!(connections.of(1), [End(4), End(9)]);
        assert_eq!(connections.close(End(9), None).map(|(process, _)| process), Some(1));
        assert!(connections.remove(End(9)).is_some());
        assert_eq!(connections.of(1), [End(4)]);
    }
}
