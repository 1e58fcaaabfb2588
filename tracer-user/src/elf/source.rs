//! Where the bytes of a file come from.
//!
//! Enters: offsets. Leaves: exactly the bytes there, or an error. A file is not mapped: it is a target's, and one that is cut while it is
//! looked at would kill the reader.

use std::io;

/// Bytes that can be read from anywhere in them.
pub trait Source {
    /// How many there are.
    fn size(&self) -> u64;
    /// Fills `into` from `offset` on; an error where there are fewer bytes.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl Source for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let bytes = from.and_then(|from| self.get(from..from.checked_add(into.len())?));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// `N` bytes at an offset.
pub(super) fn array<const N: usize>(source: &(impl Source + ?Sized), offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

/// Little-endian number at an offset of a table's entry; 0 behind its end, which no caller asks for.
pub(super) fn u64_in(entry: &[u8], at: usize) -> u64 {
    entry.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

pub(super) fn u32_in(entry: &[u8], at: usize) -> u32 {
    entry.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(super) fn u16_in(entry: &[u8], at: usize) -> u16 {
    entry.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// Bytes that a [`Window`] holds at least.
const WINDOW: usize = 64 << 10;

/// A part of a source, moved along as later bytes are asked for: reading in rising order costs one read of the source every 64 KiB.
#[derive(Debug)]
pub struct Window<'s, S: ?Sized> {
    source: &'s S,
    offset: u64,
    bytes: Vec<u8>,
}

impl<'s, S: Source + ?Sized> Window<'s, S> {
    pub fn new(source: &'s S) -> Self {
        Self { source, offset: 0, bytes: Vec::new() }
    }

    /// Up to `max` bytes from `offset` on; fewer at the end of the source, none behind it.
    pub fn bytes(&mut self, offset: u64, max: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.source.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = max.min(left);
        if wanted == 0 {
            return Ok(&[]);
        }
        let held = |window: &Self| {
            let from = usize::try_from(offset.checked_sub(window.offset)?).ok()?;
            (from.checked_add(wanted)? <= window.bytes.len()).then_some(from)
        };
        let from = if let Some(from) = held(self) {
            from
        } else {
            self.bytes.resize(wanted.max(WINDOW.min(left)), 0);
            self.source.read_at(offset, &mut self.bytes).inspect_err(|_| self.bytes.clear())?;
            self.offset = offset;
            0
        };
        Ok(&self.bytes[from..from + wanted])
    }

    /// The text at `offset` up to its zero; none when there is no zero within `max` bytes.
    pub fn text(&mut self, offset: u64, max: usize) -> io::Result<Option<&[u8]>> {
        // Most are short, and a large window for each would read the source again and again.
        let mut len = max.min(256);
        loop {
            let bytes = self.bytes(offset, len)?;
            let (found, got) = (memchr::memchr(0, bytes), bytes.len());
            if let Some(end) = found {
                return Ok(Some(&self.bytes(offset, got)?[..end]));
            }
            if len >= max || got < len {
                return Ok(None);
            }
            len = max.min(len * 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_the_end_is_an_error_and_never_a_panic() {
        let bytes: &[u8] = b"abc";
        let mut two = [0; 2];
        bytes.read_at(1, &mut two).unwrap();
        assert_eq!(&two, b"bc");
        for offset in [2, 3, 4, u64::MAX] {
            assert!(bytes.read_at(offset, &mut two).is_err(), "{offset}");
        }
    }

    #[test]
    fn a_window_gives_texts_in_any_order_and_refuses_those_without_an_end() {
        let mut bytes = vec![b'x'; 200_000];
        bytes[10] = 0;
        bytes[150_000] = 0;
        let source: &[u8] = &bytes;
        let mut window = Window::new(source);
        assert_eq!(window.text(8, 100).unwrap(), Some(&b"xx"[..]));
        assert_eq!(window.text(149_990, 100).unwrap(), Some(&b"xxxxxxxxxx"[..]));
        assert_eq!(window.text(11, 200_000).unwrap().map(<[u8]>::len), Some(149_989));
        assert_eq!(window.text(11, 1000).unwrap(), None, "longer than asked for");
        assert_eq!(window.text(150_001, 100_000).unwrap(), None, "the source ends first");
        assert_eq!(window.text(u64::MAX, 10).unwrap(), None);
        assert_eq!(window.text(9, 100).unwrap(), Some(&b"x"[..]), "back again");
    }
}
