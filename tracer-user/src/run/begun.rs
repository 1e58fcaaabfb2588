//! A run on running servers, from attaching to its end: what every verb that attaches shares.
//!
//! Enters: servers as discovery found them, open sinks, and a [`Plan`]. Leaves: what a verb may look at between turns, and at the end what
//! the run amounts to. Refused: what the kernel or the disk refuses, with what to do about it; a server that ended meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::live::{LAG_NS, Live, StoppedBy, targets_of};
use super::stop::Stop;
use super::{Ended, Run, length, privileges};
use crate::attach::Level;
use crate::attach::loader::Options;
use crate::console;
use crate::core::Config;
use crate::core::view::View;
use crate::discover::failure::LIST;
use crate::discover::privilege::{Later, Privileges};
use crate::discover::{self, ServerProcesses};
use crate::exit::{Code, Failure};
use crate::export::Sinks;
use crate::export::otlp::spans::Origin;
use crate::recording::Header;
use crate::recording::recorder::Recorder;
use crate::source::session::{Attachment, Session};
use crate::telemetry::Telemetry;

/// What is attached and kept.
#[derive(Debug)]
pub struct Plan {
    pub options: Options,
    /// Most spans of a trace.
    pub max_spans: usize,
    pub recording: Option<ToRecord>,
    /// What the driver of the machine's GPUs says is wanted.
    pub gpus: bool,
    /// How long; nothing is until something else ends it.
    pub duration: Option<Duration>,
}

/// A recording that is asked for.
#[derive(Debug, Clone)]
pub struct ToRecord {
    pub file: PathBuf,
    /// With the bytes of the streams.
    pub raw: bool,
    /// Who writes it: version and commit.
    pub writer: String,
}

/// A run that has begun.
#[derive(Debug)]
pub struct Begun {
    live: Live,
    stop: Stop,
    duration: Option<Duration>,
    deadline: Option<Instant>,
}

impl Begun {
    /// Attaches; nothing when a signal came meanwhile.
    pub fn begin(
        servers: Vec<ServerProcesses>,
        plan: &Plan,
        sinks: Sinks,
        telemetry: Arc<Telemetry>,
        stop: Stop,
    ) -> Result<Option<Self>, Failure> {
        let level = plan.options.level;
        telemetry.set_level(level);
        let config = Config { max_spans: plan.max_spans, ..Config::default() };
        let mut run = Run::new(servers.len(), LAG_NS, &config, sinks, telemetry);
        if let Some(recording) = &plan.recording {
            run.record(start_recording(recording, servers.len(), &config, level)?, recording.raw);
        }
        let targets: Vec<_> = servers.iter().flat_map(|found| targets_of(found, level)).collect();
        let session = Session::start(&plan.options, &targets)?;
        // Between the look at /proc and the filter a PID may have changed hands.
        for found in &servers {
            if !discover::same_process(found.server.pid, found.server.start_ticks) {
                let what = format!("process {} ended while inferspan attached to it", found.server.pid);
                return Err(Failure::new(Code::NoTarget, what, LIST));
            }
        }
        if stop.is_asked_for() {
            return Ok(None);
        }
        let mut live = Live::new(servers, session, run);
        if plan.gpus {
            live.watch_gpus();
        }
        Ok(Some(Self { live, stop, duration: plan.duration, deadline: None }))
    }

    /// Probes the libraries, which takes its time: what was asked for begins behind it. Gives what a user should know.
    pub fn probe_libraries(&mut self) -> Vec<String> {
        let warnings = self.live.probe_libraries();
        self.deadline = self.duration.and_then(|duration| length::deadline(Instant::now(), duration));
        warnings
    }

    /// Gives up the capabilities that nothing needs any more, once the libraries are probed; gives those that are kept. `files` are
    /// opened later.
    pub fn give_up_privileges<'a>(
        &mut self,
        mut files: impl Iterator<Item = &'a Path>,
    ) -> Result<Privileges, privileges::NotGivenUp> {
        let events = self.live.uses_events().then_some(Later::UprobeEvents);
        let reopens = files.any(privileges::is_in_others_hands).then_some(Later::Reopening);
        let later: Vec<Later> = events.into_iter().chain(reopens).collect();
        let kept = Privileges::own().kept(&later);
        privileges::give_up(kept).map(|()| kept)
    }

    pub fn servers(&self) -> &[ServerProcesses] {
        self.live.servers()
    }

    pub fn session(&self) -> &Session {
        self.live.session()
    }

    /// As [`Live::turn`].
    pub fn turn(&mut self, warn: &mut impl FnMut(&str)) -> Option<StoppedBy> {
        // The core has events to take, whatever the terminal does.
        let _hurried = console::hurry();
        self.live.turn(&self.stop, self.deadline, warn)
    }

    /// As [`Run::views`].
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.live.views()
    }

    /// As [`Live::finish`].
    pub fn finish(self) -> (Ended, Attachment) {
        self.live.finish()
    }
}

fn start_recording(plan: &ToRecord, servers: usize, config: &Config, level: Level) -> Result<Recorder, Failure> {
    let origin = Origin::of_this_process(true);
    let header = Header {
        writer: plan.writer.clone(),
        servers: servers as u32,
        raw: plan.raw,
        closes_visible: config.closes_visible,
        level: Some(level),
        host: origin.host,
        resource: origin.extra,
    };
    Recorder::start(&plan.file, &header).map_err(|error| error.failure("a recording", &plan.file))
}
