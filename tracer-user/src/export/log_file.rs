//! A file of lines that is opened anew when it is asked for: after a rename, the next line goes to a new file of the name.
//!
//! Enters: bytes, a flush behind each line. Leaves: the same bytes in the file that has the name. Invariant: what is between two flushes
//! goes to one file. Refused: a name that cannot be opened, at the start and again later.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::exit::Failure;
use crate::out_file::{self, Existing};

/// How often it was asked to open the files anew; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Reopen(Arc<AtomicU64>);

impl Reopen {
    pub fn ask(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// The file that has the name.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    what: &'static str,
    file: File,
    reopen: Reopen,
    /// What of the asking was done.
    done: u64,
    /// Something was written since the last flush.
    is_amid: bool,
}

impl LogFile {
    /// `what`: what a user calls it.
    pub fn open(path: &Path, what: &'static str, existing: Existing, reopen: &Reopen) -> Result<Self, Failure> {
        let (file, reopen) = (out_file::open(path, what, existing)?, reopen.clone());
        Ok(Self { path: path.to_owned(), what, file, done: reopen.0.load(Relaxed), reopen, is_amid: false })
    }
}

impl io::Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let asked = self.reopen.0.load(Relaxed);
        if asked != self.done && !self.is_amid {
            let opened = out_file::open(&self.path, self.what, Existing::Kept);
            self.file = opened.map_err(|failure| io::Error::other(failure.what))?;
            self.done = asked;
        }
        self.is_amid = true;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.is_amid = false;
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_line_goes_to_one_file_and_the_next_to_the_one_that_has_the_name_when_asked() {
        // a ─ rename, nobody asks ─ b ─ asked amid c ─ d
        let path = std::env::temp_dir().join(format!("inferspan-log-file-{}", std::process::id()));
        let renamed = path.with_extension("1");
        let reopen = Reopen::default();
        let mut log = LogFile::open(&path, "the log", Existing::Dropped, &reopen).unwrap();
        let line = |log: &mut LogFile, text: &str| log.write_all(text.as_bytes()).and_then(|()| log.flush()).unwrap();
        line(&mut log, "a\n");
        std::fs::rename(&path, &renamed).unwrap();
        line(&mut log, "b\n");
        log.write_all(b"c").unwrap();
        reopen.ask();
        line(&mut log, "c\n");
        line(&mut log, "d\n");
        assert_eq!(std::fs::read_to_string(&renamed).unwrap(), "a\nb\ncc\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "d\n");
        for file in [&path, &renamed] {
            std::fs::remove_file(file).unwrap();
        }
    }
}
