//! Calls in a file's code.
//!
//! Enters: an [`Image`]. Leaves: every `call` and `jmp` whose target stands in the instruction, with the bytes before it. Code is read in
//! pieces and searched for the bytes of these instructions, not decoded, so a hit may be a part of another instruction: only one that
//! leads to an address that is looked for means anything. Invariant: memory is one piece, whatever the file's size; of a file with more
//! code than [`CODE_MAX`] the rest is not looked at.

use crate::elf::{Image, Source, image};

use super::operand::LOOKBACK;

/// TensorFlow's library has 700 MB of code.
const CODE_MAX: u64 = 2 << 30;
/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Bytes of the longest of the instructions: `FF /2` with a 32-bit displacement.
const LONGEST: usize = 6;

/// Where a call leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Code(u64),
    /// To what this slot holds.
    Slot(u64),
}

#[derive(Debug, Clone, Copy)]
pub struct Call<'c> {
    pub at: u64,
    /// Address of the instruction behind it.
    pub end: u64,
    /// It is a jump: nothing comes back here.
    pub is_jump: bool,
    pub to: To,
    /// Up to [`LOOKBACK`] bytes of code before it.
    pub before: &'c [u8],
}

/// Tells `each` of every call in these stretches, in rising order within each.
pub fn each_call<S: Source + ?Sized>(
    image: &Image<'_, S>,
    stretches: &[image::Code],
    mut each: impl FnMut(Call<'_>),
) -> std::io::Result<()> {
    let mut left = CODE_MAX;
    let mut buffer = Vec::new();
    for stretch in stretches {
        let size = stretch.size.min(left);
        left -= size;
        // `buffer` holds what ends at `read`; what lies before `next` in it was searched.
        let (mut read, mut next) = (0, 0);
        buffer.clear();
        while read < size {
            let kept = buffer.len().min(LOOKBACK + LONGEST);
            buffer.drain(..buffer.len() - kept);
            let more = usize::try_from(size - read).unwrap_or(PIECE).min(PIECE);
            buffer.resize(kept + more, 0);
            image.read_at(stretch.offset + read, &mut buffer[kept..])?;
            let start = read - kept as u64;
            read += more as u64;
            // An instruction may go on in the next piece.
            let end = if read < size { buffer.len() - LONGEST } else { buffer.len() };
            let from = usize::try_from(next - start).unwrap_or(end).min(end);
            search(&buffer, from, end, stretch.address + start, &mut each);
            next = start + end as u64;
        }
    }
    Ok(())
}

/// Calls that begin in `from..end`; `address` is that of the first byte.
fn search(bytes: &[u8], from: usize, end: usize, address: u64, each: &mut impl FnMut(Call<'_>)) {
    for at in memchr::memchr3_iter(0xE8, 0xE9, 0xFF, &bytes[from..end]).map(|at| from + at) {
        let distance = |skip: usize| {
            let bytes = bytes.get(at + skip..at + skip + 4)?.try_into().ok()?;
            Some(i64::from(i32::from_le_bytes(bytes)))
        };
        let here = address + at as u64;
        let (len, is_jump, is_slot) = match (bytes[at], bytes.get(at + 1)) {
            (0xE8, _) => (5, false, false),
            (0xE9, _) => (5, true, false),
            (0xFF, Some(0x15)) => (6, false, true),
            (0xFF, Some(0x25)) => (6, true, true),
            _ => continue,
        };
        let Some(distance) = distance(len - 4) else { continue };
        let end = here.wrapping_add(len as u64);
        let target = end.wrapping_add_signed(distance);
        let to = if is_slot { To::Slot(target) } else { To::Code(target) };
        each(Call { at: here, end, is_jump, to, before: &bytes[at.saturating_sub(LOOKBACK)..at] });
    }
}
