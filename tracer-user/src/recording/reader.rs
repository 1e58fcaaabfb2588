//! Reads a recording.
//!
//! Enters: a file that anybody may have made. Leaves: its header, then its entries up to its end or its first damage. Refused: what is no
//! recording, or of another version of the form.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Cursor, Read as _};
use std::path::{Path, PathBuf};

use super::blocks::{self, BlockError, MAGIC, VERSION};
use super::{Entry, Header};

/// Deeper than any entry is.
const MAX_DEPTH: usize = 64;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot open {path}: {error}")]
    Open { path: PathBuf, error: io::Error },
    #[error("{path} is no recording")]
    Foreign { path: PathBuf },
    #[error("{path} is a recording of form {found}; this inferspan reads form {VERSION}")]
    Version { path: PathBuf, found: u32 },
    #[error("{path}: {damage}")]
    Damaged { path: PathBuf, damage: Damage },
}

/// What is wrong with a file, and where.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("block {number}: {error}")]
    Block { number: u64, error: BlockError },
    #[error("block {number}: an entry does not decode: {error}")]
    Entry { number: u64, error: String },
    #[error("it has no end: the tracer was killed, or the disk was full")]
    NoEnd,
}

/// A recording that is being read.
#[derive(Debug)]
pub struct Recording {
    pub header: Header,
    file: BufReader<File>,
    block: Cursor<Vec<u8>>,
    /// Of the block at hand, from 0: the header's.
    number: u64,
    ended: bool,
}

/// Whether the file starts like a recording. Nothing is taken from it: it may be a pipe, and say its first bytes once.
pub fn is_recording(file: &mut BufReader<File>) -> io::Result<bool> {
    let start = file.fill_buf()?;
    // A pipe may give one byte first, and that one starts no text and no gzip.
    let known = start.len().min(MAGIC.len());
    Ok(known > 0 && start[..known] == MAGIC[..known])
}

impl Recording {
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|error| ReadError::Open { path: path.to_owned(), error })?;
        Self::read(path, BufReader::new(file))
    }

    /// Reads the header of a file that was opened from `path`.
    pub fn read(path: &Path, mut file: BufReader<File>) -> Result<Self, ReadError> {
        let at = || path.to_owned();
        let mut start = [0; 12];
        let is_whole = file.read_exact(&mut start).is_ok();
        let version = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
        if !is_whole || start[..8] != MAGIC {
            return Err(ReadError::Foreign { path: at() });
        }
        if version != VERSION {
            return Err(ReadError::Version { path: at(), found: version });
        }
        let damaged = |damage| ReadError::Damaged { path: at(), damage };
        let block = match blocks::read(&mut file) {
            Ok(block) => block.ok_or(BlockError::Torn),
            Err(error) => Err(error),
        };
        let block = block.map_err(|error| damaged(Damage::Block { number: 0, error }))?;
        let header: Header = rmp_serde::from_slice(&block)
            .map_err(|error| damaged(Damage::Entry { number: 0, error: error.to_string() }))?;
        Ok(Self { header, file, block: Cursor::new(Vec::new()), number: 0, ended: false })
    }

    /// The next entry; nothing behind the end. After damage there is nothing more.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Damage> {
        if self.ended {
            return Ok(None);
        }
        let next = self.read_entry();
        self.ended = !matches!(next, Ok(Some(_))) || matches!(next, Ok(Some(Entry::Complete { .. })));
        match next {
            Ok(None) => Err(Damage::NoEnd),
            other => other,
        }
    }

    fn read_entry(&mut self) -> Result<Option<Entry>, Damage> {
        while self.block.position() >= self.block.get_ref().len() as u64 {
            self.number += 1;
            let number = self.number;
            match blocks::read(&mut self.file) {
                Ok(Some(block)) => self.block = Cursor::new(block),
                Ok(None) => return Ok(None),
                Err(error) => return Err(Damage::Block { number, error }),
            }
        }
        let mut decoder = rmp_serde::Deserializer::new(&mut self.block);
        decoder.set_max_depth(MAX_DEPTH);
        let entry = serde::Deserialize::deserialize(&mut decoder);
        entry.map(Some).map_err(|error| Damage::Entry { number: self.number, error: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Delivered, Probe};
    use crate::recording::recorder::{MAX_WAITING, Recorder};

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("inferspan-{name}-{}.isrec", std::process::id()))
    }

    fn entry(count: u64) -> Entry {
        Entry::Delivered(Delivered { probe: Probe::Syscall, count })
    }

    /// The counts that are read, and what was wrong.
    fn counts(path: &Path) -> (Vec<u64>, Option<Damage>) {
        let mut recording = Recording::open(path).unwrap();
        let mut counts = Vec::new();
        loop {
            match recording.next_entry() {
                Ok(Some(Entry::Delivered(delivered))) => counts.push(delivered.count),
                Ok(Some(_)) => {}
                Ok(None) => return (counts, None),
                Err(damage) => return (counts, Some(damage)),
            }
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_torn_tail_loses_its_block_only() {
        // header | 200,000 entries in several blocks | end
        let path = path("torn");
        let header = Header { servers: 1, writer: "test".into(), ..Header::default() };
        let mut recorder = Recorder::start(&path, &header).unwrap();
        recorder.push((0..200_000).map(entry).collect());
        let done = recorder.finish(3);
        assert_eq!((done.entries, done.missing, &done.failure), (200_000, 0, &None));
        assert_eq!(Recording::open(&path).unwrap().header, header);
        let (all, damage) = counts(&path);
        assert!(damage.is_none() && all.len() == 200_000, "{damage:?}");
        assert_eq!(all, (0..200_000).collect::<Vec<_>>());

        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, done.bytes);
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let (left, damage) = counts(&path);
        assert!(matches!(damage, Some(Damage::Block { error: BlockError::Torn, .. })), "{damage:?}");
        assert!(left.len() > 50_000 && left.len() < all.len() && all.starts_with(&left), "{}", left.len());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_recording_or_of_another_form_is_refused() {
        let path = path("refused");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Recording::open(&path).map(|_| ()).unwrap_err()
        };
        assert!(matches!(refused(b""), ReadError::Foreign { .. }));
        assert!(matches!(refused(b"{\"t0\":1}"), ReadError::Foreign { .. }));
        assert!(matches!(refused(&[&MAGIC[..], &9u32.to_le_bytes()].concat()), ReadError::Version { found: 9, .. }));
        assert!(matches!(refused(&[&MAGIC[..], &1u32.to_le_bytes()].concat()), ReadError::Damaged { .. }));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Recording::open(&path), Err(ReadError::Open { .. })));
    }

    #[test]
    fn entries_that_found_no_room_are_told_of_where_they_are_missing() {
        let path = path("missing");
        let mut recorder = Recorder::start(&path, &Header::default()).unwrap();
        recorder.push(vec![entry(1)]);
        // More than may wait, at once.
        let count = MAX_WAITING / size_of::<Entry>() + 1;
        recorder.push((0..count as u64).map(entry).collect());
        recorder.push(vec![entry(2)]);
        let missing = count as u64;
        assert_eq!(recorder.finish(0).missing, missing);
        let mut recording = Recording::open(&path).unwrap();
        let read: Vec<Entry> = std::iter::from_fn(|| recording.next_entry().unwrap()).collect();
        assert_eq!(read, [entry(1), Entry::Missing { entries: missing }, entry(2), Entry::Complete { late: 0 }]);
        std::fs::remove_file(&path).unwrap();
    }
}
