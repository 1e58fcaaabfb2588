//! The decoders of all connections.
//!
//! Enters: pieces of calls by their end. Leaves: what they complete. Bounded: the bytes held for messages that are not whole, of all
//! connections together.

use std::collections::HashMap;

use super::decoder::{Decoder, Parsed};
use crate::decode::http::{HttpEvent, Piece};
use crate::engine::Engine;
use crate::input::{Direction, End};

/// Bytes of messages that are not whole, of all connections: 1,024 front ends' first output messages.
const MAX_HELD: usize = 24 << 20;

#[derive(Debug, Default)]
pub(super) struct Decoders {
    open: HashMap<End, Decoder>,
    /// Bytes that connections hold for messages that are not whole.
    held: usize,
}

impl Decoders {
    pub(super) fn open(&mut self, end: End, from_start: bool) {
        self.open.insert(end, Decoder::new(from_start));
    }

    pub(super) fn push(
        &mut self,
        end: End,
        direction: Direction,
        offset: Option<u64>,
        piece: Piece<'_>,
        engine: &dyn Engine,
    ) -> Option<Parsed> {
        let decoder = self.open.get_mut(&end)?;
        let mut parsed = Parsed::default();
        let held = decoder.held_bytes();
        decoder.push(direction, offset, piece, engine, &mut parsed);
        self.held = (self.held + decoder.held_bytes()).saturating_sub(held);
        Some(parsed)
    }

    pub(super) fn close(&mut self, end: End, moved: Option<(u64, u64)>, engine: &dyn Engine) -> Option<Parsed> {
        let decoder = self.open.get_mut(&end)?;
        self.held = self.held.saturating_sub(decoder.held_bytes());
        let mut parsed = Parsed::default();
        decoder.closed(moved, engine, &mut parsed);
        Some(parsed)
    }

    pub(super) fn remove(&mut self, end: End) {
        self.open.remove(&end);
    }

    /// Bytes may be missing anywhere on the connections whose bytes the source does not count.
    pub(super) fn lose(&mut self, engine: &dyn Engine) -> Vec<(End, Parsed)> {
        let uncounted = self.open.iter().filter(|(_, decoder)| !decoder.counts());
        let mut ends: Vec<End> = uncounted.map(|(&end, _)| end).collect();
        ends.sort_unstable();
        let lose = |end: End| {
            let decoder = self.open.get_mut(&end)?;
            let mut parsed = Parsed::default();
            for direction in [Direction::In, Direction::Out] {
                decoder.lost(direction, None, engine, &mut parsed);
            }
            parsed.carries_messages = decoder.carries_messages();
            Some((end, parsed))
        };
        ends.into_iter().filter_map(lose).collect()
    }

    pub(super) fn rebind(&mut self, end: End, from: u64, to: u64) -> Option<Vec<HttpEvent>> {
        let mut passed = Vec::new();
        let conversation = self.open.get_mut(&end)?.conversation()?;
        conversation.rebind(from, to, &mut |event| passed.push(event)).then_some(passed)
    }

    pub(super) fn relieve(&mut self) -> bool {
        if self.held <= MAX_HELD {
            return false;
        }
        let largest = self.open.iter_mut().max_by_key(|(end, decoder)| (decoder.held_bytes(), **end));
        let Some((_, decoder)) = largest else { return false };
        let held = decoder.held_bytes();
        decoder.drop_held();
        self.held = (self.held + decoder.held_bytes()).saturating_sub(held);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ENGINES;

    /// A ZMTP frame of 16 MiB begins: a greeting and a handshake are not needed to tell it.
    fn huge(decoders: &mut Decoders, end: End) {
        let mut frame = vec![0x02];
        frame.extend((16_u64 << 20).to_be_bytes());
        frame.resize(1 << 20, 7);
        let greeting = [&[0xff][..], &[0; 8], &[0x7f, 3, 1], b"NULL", &[0; 48]].concat();
        for bytes in [greeting, frame] {
            let piece = Piece { len: bytes.len() as u64, bytes: &bytes, starts: true };
            decoders.push(end, Direction::In, None, piece, ENGINES[0]);
        }
    }

    #[test]
    fn what_is_held_of_all_connections_is_bounded() {
        // 40 connections with 1 MiB each of a message that does not end
        let mut decoders = Decoders::default();
        let mut relieved = 0;
        for end in (0..40).map(End) {
            decoders.open(end, true);
            huge(&mut decoders, end);
            while decoders.relieve() {
                relieved += 1;
            }
            assert!(decoders.held <= MAX_HELD);
        }
        assert!(relieved > 0, "{} bytes held", decoders.held);
        for end in (0..40).map(End) {
            decoders.close(end, None, ENGINES[0]);
            decoders.remove(end);
        }
        assert_eq!(decoders.held, 0);
    }
}
