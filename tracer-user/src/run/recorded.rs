//! A run on a recording: the same outputs as those of the run that it was made in.
//!
//! Enters: a recording. Leaves: what was made of it. A recording that ends early, or is damaged, is used up to there.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use super::{Ended, Run};
use crate::core::Config;
use crate::export::Sinks;
use crate::recording::reader::{Damage, ReadError, Recording};
use crate::recording::{Entry, Header};
use crate::telemetry::Telemetry;

/// Outputs are handed on after so many entries.
const EXPORT_EVERY: u64 = 64;
/// Servers that one run has at most; a recording that says more is damaged.
const MAX_SERVERS: u32 = 1_024;

/// A recording whose header was read.
#[derive(Debug)]
pub struct Opened {
    recording: Recording,
}

/// What was made of a recording.
#[derive(Debug)]
pub struct Played {
    pub header: Header,
    pub entries: u64,
    /// Entries that its maker left out.
    pub missing: u64,
    /// Why its rest was not read.
    pub damage: Option<Damage>,
    /// Where it and this program do not fit each other.
    pub unanswered: u64,
    /// Inputs that came too late to be put in order, then.
    pub late: u64,
    pub finished: Ended,
}

impl Opened {
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        Recording::open(path).map(|recording| Self { recording })
    }

    /// As [`Self::open`], of a file that was opened from `path`.
    pub fn read(path: &Path, file: BufReader<File>) -> Result<Self, ReadError> {
        Recording::read(path, file).map(|recording| Self { recording })
    }

    pub fn header(&self) -> &Header {
        &self.recording.header
    }

    /// Runs it through the pipeline. The metrics endpoint stays.
    pub fn run(self, max_spans: usize, sinks: Sinks, telemetry: Arc<Telemetry>) -> Played {
        let Self { mut recording } = self;
        let header = recording.header.clone();
        if let Some(level) = header.level {
            telemetry.set_level(level);
        }
        let config = Config { max_spans, closes_visible: header.closes_visible };
        let mut run = Run::new(header.servers.min(MAX_SERVERS) as usize, 0, &config, sinks, telemetry);
        let (mut entries, mut missing, mut late, mut damage) = (0, 0, 0, None);
        loop {
            match recording.next_entry() {
                Ok(Some(Entry::Complete { late: told })) => late = told,
                Ok(Some(entry)) => {
                    entries += 1;
                    if let Entry::Missing { entries } = entry {
                        missing += entries;
                    }
                    run.replay(entry, header.raw);
                    if entries % EXPORT_EVERY == 0 {
                        run.export();
                    }
                }
                Ok(None) => break,
                Err(found) => {
                    damage = Some(found);
                    break;
                }
            }
        }
        let unanswered = run.unanswered();
        Played { header, entries, missing, damage, unanswered, late, finished: run.finish(true) }
    }
}
