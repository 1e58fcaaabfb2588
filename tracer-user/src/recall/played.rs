//! Recordings and syscall logs: through the same pipeline as a run, and into a taker.
//!
//! Enters: a file. Leaves: what the pipeline made of it. Nothing else hears of it: no exporter runs, whatever the environment asks for.

use std::cell::RefCell;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::{About, Kind, Loss, Seeing, Taker};
use crate::exit::{Code, Failure};
use crate::export::Sinks;
use crate::export::flags::OutputArgs;
use crate::export::sink::Sink;
use crate::input::LossStage;
use crate::output::{AccessRecord, EngineStep, Trace};
use crate::run::recorded;
use crate::run::replay::{Opened, ReplayError};
use crate::source::syscall_log::LogError;
use crate::telemetry::Telemetry;

/// Hands what leaves the core to a taker, on the core's own thread.
#[derive(Debug)]
struct Handing<T> {
    to: Rc<RefCell<Seeing<T>>>,
    /// A request's record, until its tree comes: next.
    record: Option<Arc<AccessRecord>>,
}

impl<T: Taker> Sink for Handing<T> {
    fn access(&mut self, record: &Arc<AccessRecord>) {
        self.record = Some(Arc::clone(record));
    }

    fn request(&mut self, trace: &Arc<Trace>) {
        let is_its = |record: &Arc<AccessRecord>| {
            trace.spans.first().is_some_and(|root| (root.trace_id, root.span_id) == (record.trace_id, record.span_id))
        };
        let record = self.record.take().filter(is_its);
        self.to.borrow_mut().request(trace, record.as_ref());
    }

    fn step(&mut self, step: &EngineStep) {
        self.to.borrow_mut().step(&Arc::new(step.clone()));
    }

    fn is_beside(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>) -> Option<String> {
        None
    }
}

fn sinks<T: Taker + 'static>(telemetry: &Arc<Telemetry>, to: Rc<RefCell<Seeing<T>>>) -> Sinks {
    let mut sinks = Sinks::none(Arc::clone(telemetry));
    sinks.add(Box::new(Handing { to, record: None }));
    sinks
}

pub(super) fn recording<T: Taker + 'static>(
    path: &Path,
    file: BufReader<File>,
    to: Rc<RefCell<Seeing<T>>>,
) -> Result<About, Failure> {
    let opened = recorded::Opened::read(path, file).map_err(|error| {
        let fix = "give a file that `inferspan record` wrote; one of another version is read by that version";
        Failure::new(Code::Usage, error.to_string(), fix)
    })?;
    let telemetry = Arc::new(Telemetry::default());
    let played = opened.run(OutputArgs::default().max_spans, sinks(&telemetry, to), Arc::clone(&telemetry));
    let mut losses = lost_by(&telemetry);
    if played.missing > 0 {
        let said = format!("{} entries were left out when it was recorded", played.missing);
        losses.push(Loss { what: "entries", count: played.missing, said });
    }
    if let Some(damage) = &played.damage {
        losses.push(Loss { what: "damage", count: 1, said: format!("{damage}; what came before is used") });
    }
    if played.unanswered > 0 {
        let said = format!("{} places of it do not fit this version of inferspan", played.unanswered);
        losses.push(Loss { what: "version", count: played.unanswered, said });
    }
    let (writer, servers) = (Some(played.header.writer), u64::from(played.header.servers));
    Ok(About { kind: Kind::Recording, writer, span_ns: None, servers, uncertainty_ns: None, losses })
}

pub(super) fn syscall_log<T: Taker + 'static>(
    path: &Path,
    file: BufReader<File>,
    to: Rc<RefCell<Seeing<T>>>,
) -> Result<About, Failure> {
    let opened = Opened::read(path, file).map_err(|error| unreadable(&error))?;
    let telemetry = Arc::new(Telemetry::default());
    let service = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let max_spans = OutputArgs::default().max_spans;
    let replayed = opened.run(service.as_deref(), max_spans, sinks(&telemetry, to), Arc::clone(&telemetry));
    let mut losses = lost_by(&telemetry);
    // Lines that did not parse are among what could not be decoded: said once, in their own words.
    if replayed.bad_lines > 0 {
        losses.retain(|loss| loss.what != LossStage::Decode.name());
        let said = format!("{} lines did not parse and were skipped", replayed.bad_lines);
        losses.push(Loss { what: "lines", count: replayed.bad_lines, said });
    }
    if let Some(broken) = &replayed.broken {
        losses.push(Loss { what: "damage", count: 1, said: format!("{broken}; what came before is used") });
    }
    let uncertainty_ns = replayed.uncertainty;
    Ok(About { kind: Kind::SyscallLog, writer: None, span_ns: None, servers: 1, uncertainty_ns, losses })
}

/// What the run that is replayed had lost.
fn lost_by(telemetry: &Telemetry) -> Vec<Loss> {
    let lost = LossStage::ALL.into_iter().filter(|stage| telemetry.lost(*stage) > 0);
    let counts: Vec<(LossStage, u64)> = lost.map(|stage| (stage, telemetry.lost(stage))).collect();
    // A sentence a stage, in their order.
    let losses = counts.into_iter().zip(telemetry.losses());
    losses.map(|((stage, count), said)| Loss { what: stage.name(), count, said }).collect()
}

fn unreadable(error: &ReplayError) -> Failure {
    let code = match error {
        ReplayError::Log(LogError::Open { error, .. }) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Code::Permission
        }
        _ => Code::Usage,
    };
    Failure::new(code, error.to_string(), "give a recording, a syscall log or a trace file, plain or gzip")
}
