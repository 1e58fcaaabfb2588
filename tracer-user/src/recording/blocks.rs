//! The form of a recording: a magic number, a version, and blocks.
//!
//! A block is 24 bytes and its payload: the payload's length, its length unpacked (both u32), and the XXH3 of the two and the payload
//! (u64), all little-endian; 8 bytes are reserved. The payload is one zstd frame of MessagePack values. Each block stands by itself, so a
//! file that was cut off loses its last block and nothing else. Refused: blocks over [`MAX_BLOCK`], and what does not have its checksum.

use std::io::{self, Read, Write};

use xxhash_rust::xxh3::Xxh3;

/// No text file starts so, and a transfer as text breaks it (as PNG's does).
pub const MAGIC: [u8; 8] = *b"\x89ISREC\r\n";
/// Of this form, and of the meaning of entries.
pub const VERSION: u32 = 1;
/// A block is closed when it has grown to this, bytes.
pub const BLOCK: usize = 1 << 20;
/// No entry is larger: an input holds at most what a call captured (1 MiB), an answer what is made of it.
pub const MAX_BLOCK: usize = 64 << 20;
/// zstd's default is 3; 1 takes half of its time here and gives a fifth more.
const LEVEL: i32 = 1;

const HEAD: usize = 24;

/// Why a block cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it ends inside a block")]
    Torn,
    #[error("a block does not have its checksum")]
    Checksum,
    #[error("a block says to be {0} bytes")]
    Size(usize),
}

/// Begins a file.
pub fn begin(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&MAGIC)?;
    to.write_all(&VERSION.to_le_bytes())
}

/// Writes one block.
pub fn write(to: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let packed = zstd::bulk::compress(payload, LEVEL)?;
    let too_large = |_| io::Error::other("a block of a recording is too large");
    let lengths = [u32::try_from(packed.len()).map_err(too_large)?, u32::try_from(payload.len()).map_err(too_large)?];
    let mut head = [0; HEAD];
    head[0..4].copy_from_slice(&lengths[0].to_le_bytes());
    head[4..8].copy_from_slice(&lengths[1].to_le_bytes());
    let sum = checksum(&head[..8], &packed);
    head[8..16].copy_from_slice(&sum.to_le_bytes());
    to.write_all(&head)?;
    to.write_all(&packed)
}

/// Reads one block; nothing at the end of the file.
pub fn read(from: &mut impl Read) -> Result<Option<Vec<u8>>, BlockError> {
    let mut head = Vec::with_capacity(HEAD);
    from.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    if head.is_empty() {
        return Ok(None);
    }
    let word = |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let sum = head.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let (Some(packed_len), Some(len), Some(sum), HEAD) = (word(0), word(4), sum, head.len()) else {
        return Err(BlockError::Torn);
    };
    let (packed_len, len) = (packed_len as usize, len as usize);
    for size in [packed_len, len] {
        if size > MAX_BLOCK {
            return Err(BlockError::Size(size));
        }
    }
    let mut packed = Vec::new();
    from.by_ref().take(packed_len as u64).read_to_end(&mut packed)?;
    if packed.len() < packed_len {
        return Err(BlockError::Torn);
    }
    if checksum(&head[..8], &packed) != sum {
        return Err(BlockError::Checksum);
    }
    let payload = zstd::bulk::decompress(&packed, len)?;
    if payload.len() == len { Ok(Some(payload)) } else { Err(BlockError::Size(payload.len())) }
}

fn checksum(lengths: &[u8], packed: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(lengths);
    sum.update(packed);
    sum.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut bytes: &[u8]) -> (Vec<Vec<u8>>, Option<BlockError>) {
        let mut blocks = Vec::new();
        loop {
            match read(&mut bytes) {
                Ok(Some(block)) => blocks.push(block),
                Ok(None) => return (blocks, None),
                Err(error) => return (blocks, Some(error)),
            }
        }
    }

    fn three() -> (Vec<u8>, Vec<usize>) {
        let (mut file, mut ends) = (Vec::new(), Vec::new());
        for payload in [b"one".to_vec(), vec![7; 100_000], Vec::new()] {
            write(&mut file, &payload).unwrap();
            ends.push(file.len());
        }
        (file, ends)
    }

    #[test]
    fn a_file_that_is_cut_anywhere_loses_the_block_that_was_cut() {
        let (file, ends) = three();
        for len in 0..=file.len() {
            let (blocks, error) = all(&file[..len]);
            let whole = ends.iter().filter(|&&end| end <= len).count();
            assert_eq!(blocks.len(), whole, "cut at {len}");
            let at_an_end = len == 0 || ends.contains(&len);
            assert_eq!(error.is_none(), at_an_end, "cut at {len}: {error:?}");
        }
    }

    #[test]
    fn no_bit_of_a_block_can_be_wrong() {
        let (file, ends) = three();
        for at in 0..ends[0] {
            // The last 8 bytes of a head are reserved: nothing is read from them.
            if (16..24).contains(&at) {
                continue;
            }
            let mut wrong = file.clone();
            wrong[at] ^= 1;
            let (blocks, error) = all(&wrong);
            assert!(blocks.is_empty() && error.is_some(), "byte {at}");
        }
    }

    #[test]
    fn a_block_that_says_to_be_huge_is_refused() {
        let mut head = [0xff; HEAD];
        assert!(matches!(read(&mut &head[..]), Err(BlockError::Size(_))));
        head[..4].copy_from_slice(&3u32.to_le_bytes());
        assert!(matches!(read(&mut &head[..]), Err(BlockError::Size(_))));
    }
}
