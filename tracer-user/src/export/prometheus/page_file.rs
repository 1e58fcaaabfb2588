//! The file that the metrics are written to when the run ends.
//!
//! Enters: a path, before the run, so that what cannot be written is refused when the user can still do something. Leaves: the whole page,
//! or what failed. A regular file is replaced at once; what is none (`/dev/stdout`, a named pipe) is held open from the start and written
//! to, for a bounded time: a rename would replace the device itself.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

use crate::exit::Failure;
use crate::export::Pressure;
use crate::export::lines::Lines;
use crate::out_file::{Existing, OUTPUT, OutFile, OutFileError};

#[derive(Debug)]
enum To {
    File(OutFile),
    Stream(File),
}

#[derive(Debug)]
pub(super) struct PageFile {
    path: PathBuf,
    to: To,
}

impl PageFile {
    pub(super) fn find(path: &Path) -> Result<Self, Failure> {
        let find = || {
            let file = OutFile::find(path)?;
            match file.kind() {
                None | Some(FileType::RegularFile) => {
                    file.may_replace()?;
                    Ok(To::File(file))
                }
                _ => Ok(To::Stream(file.open(Existing::Kept, OUTPUT)?)),
            }
        };
        let to = find().map_err(|error: OutFileError| error.failure("metrics", path))?;
        Ok(Self { path: path.to_owned(), to })
    }

    /// Writes the page; what failed, as a user should read it.
    pub(super) fn write(self, page: Result<String, fmt::Error>) -> Option<String> {
        let about = format!("metrics file {}", self.path.display());
        let page = match page {
            Ok(page) => page,
            Err(error) => return Some(format!("{about}: {error}")),
        };
        match self.to {
            To::File(file) => file.replace(page.as_bytes()).err().map(|error| format!("{about}: {error}")),
            To::Stream(file) => {
                let render = |page: &String, out: &mut Vec<u8>| {
                    // The line's end is written behind it.
                    out.extend_from_slice(page.trim_end_matches('\n').as_bytes());
                    Ok(())
                };
                match Lines::start(about.clone(), "pages", Box::new(file), 1, Pressure::Wait, |_, _| {}, render) {
                    Ok(lines) => {
                        lines.push(&Arc::new(page), 1);
                        lines.finish()
                    }
                    Err(error) => Some(format!("{about}: {error}")),
                }
            }
        }
    }
}
