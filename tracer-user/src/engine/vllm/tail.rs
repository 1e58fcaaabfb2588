//! Where the last items of a message begin that was cut in its middle.
//!
//! Enters: the unbroken bytes up to the end of a msgpack array, starting anywhere in it. Leaves: a cursor at the first of its last
//! items. Msgpack cannot be read backwards; but an item that starts at the right place, and only such a one, is followed by
//! exactly so many items as the array still has, and then by nothing.

use crate::decode::msgpack::{Cursor, Token};

/// Places that are tried: what stands behind a prompt or behind the outputs of a step is below 2 KiB, statistics of speculative
/// decoding and of KV connectors included.
const TRIED: usize = 8 * 1024;

/// The place from which exactly `items` items lead to the end of `bytes`, the first of which `fits`. The first such place: before the right one
/// there are more items to the end than `items`, after it there may be as many inside one of them.
pub(super) fn items_at_end(bytes: &[u8], items: u32, fits: impl Fn(Token<'_>) -> bool) -> Option<Cursor<'_>> {
    let earliest = bytes.len().saturating_sub(TRIED);
    (earliest..bytes.len()).map(|at| Cursor::new(&bytes[at..])).find(|cursor| {
        cursor.peek().is_ok_and(&fits) && {
            let mut cursor = cursor.clone();
            cursor.skip_items(u64::from(items)).is_ok() && cursor.peek().is_err()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_items_behind_a_long_array_are_found_without_its_start() {
        // … 1, 2, 300], nil, {"a": 1.5}, "x"
        let mut bytes = vec![0x01, 0x02, 0xcd, 0x01, 0x2c];
        let behind = [0xc0, 0x81, 0xa1, b'a', 0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0xa1, b'x'];
        bytes.extend(behind);
        let cursor = items_at_end(&bytes, 3, |first| first == Token::Nil).unwrap();
        assert_eq!(cursor.position(), 0);
        assert_eq!(cursor.peek(), Ok(Token::Nil));
        assert!(items_at_end(&bytes, 3, |first| matches!(first, Token::Float(_))).is_none());
    }
}
