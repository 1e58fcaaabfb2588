//! A run on a syscall log: the same pipeline as on a running server, unprivileged.
//!
//! Enters: a log. Leaves: what was made of it. The first part of the log is looked at before anything is pushed, for what the log does
//! not say itself ([`super::preroll`]). A log that breaks in its middle is used up to there.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use super::preroll::{self, Preroll};
use super::{Ended, Run};
use crate::attach::Level;
use crate::core::Config;
use crate::export::Sinks;
use crate::input::{Delivered, Event, EventNanos, Input, LossStage, Lost, Probe, What};
use crate::source::syscall_log::{LogError, SyscallLog};
use crate::telemetry::Telemetry;

/// Lines of a log are in the order of their entries or exits; a blocked call is this much longer at most.
const LAG: EventNanos = 500_000_000;

/// Why there is nothing to replay.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("{0}: no data syscall in it")]
    Empty(String),
}

/// A log whose first part was looked at.
pub struct Opened {
    log: SyscallLog,
    head: Vec<Event>,
    preroll: Preroll,
    closes_visible: bool,
    broken: Option<LogError>,
}

/// What was made of a log.
#[derive(Debug)]
pub struct Replayed {
    pub events: u64,
    pub lines: u64,
    /// Lines that did not parse and were skipped.
    pub bad_lines: u64,
    /// How well the engine's clock is known, ns.
    pub uncertainty: Option<u64>,
    /// Why the rest of the log was not read.
    pub broken: Option<LogError>,
    pub finished: Ended,
}

impl Opened {
    /// Reads the first part of a log that was opened from `path`.
    pub fn read(path: &Path, file: BufReader<File>) -> Result<Self, ReplayError> {
        let mut opened = Self {
            log: SyscallLog::read(path, file)?,
            head: Vec::new(),
            preroll: Preroll::default(),
            closes_visible: false,
            broken: None,
        };
        opened.read_head();
        match (opened.head.is_empty(), opened.broken) {
            (true, Some(error)) => Err(error.into()),
            (true, None) => Err(ReplayError::Empty(path.display().to_string())),
            (false, broken) => Ok(Self { broken, ..opened }),
        }
    }

    fn read_head(&mut self) {
        let mut bytes_ahead = 0;
        while self.head.len() < preroll::EVENTS && bytes_ahead < preroll::BYTES {
            match self.log.next_event() {
                Ok(Some(event)) => {
                    self.preroll.look(&event);
                    if let What::Data { bytes, .. } = &event.what {
                        bytes_ahead += bytes.len();
                    }
                    self.closes_visible |= matches!(event.what, What::Closed { .. });
                    self.head.push(event);
                }
                Ok(None) => return,
                Err(error) => {
                    self.broken = Some(error);
                    return;
                }
            }
        }
    }

    /// Runs it through the pipeline. `service`: its name, else the engine's. The metrics endpoint stays.
    pub fn run(self, service: Option<&str>, max_spans: usize, sinks: Sinks, telemetry: Arc<Telemetry>) -> Replayed {
        let Self { mut log, head, preroll, closes_visible, mut broken } = self;
        // A log has the calls on sockets and nothing else.
        telemetry.set_level(Level::Requests);
        let (facts, uncertainty) = preroll.facts(service);
        let mut run = Run::new(1, LAG, &Config { max_spans, closes_visible }, sinks, telemetry);
        for fact in facts {
            run.push(Some(0), Input::Fact(fact));
        }
        let (mut events, mut last) = (0, 0);
        let mut push = |event: Event| {
            events += 1;
            last = event.at.max(last);
            run.push(Some(0), Input::Event(event));
            run.export();
            // There is no source that could be told.
            run.verdicts();
        };
        head.into_iter().for_each(&mut push);
        while broken.is_none() {
            match log.next_event() {
                Ok(Some(event)) => push(event),
                Ok(None) => break,
                Err(error) => broken = Some(error),
            }
        }
        run.push(None, Input::Delivered(Delivered { probe: Probe::Syscall, count: events }));
        // Whatever was open has left: a line that did not parse may have been anything, and marks nothing.
        run.close();
        if log.bad_lines() > 0 {
            run.push(None, Input::Lost(Lost { at: last, count: log.bad_lines(), stage: LossStage::Decode }));
        }
        let finished = run.finish(true);
        Replayed { events, lines: log.lines(), bad_lines: log.bad_lines(), uncertainty, broken, finished }
    }
}
