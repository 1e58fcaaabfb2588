//! What a user is told of a run, line by line: who is traced and how, and what was seen.
//!
//! Enters: a run that has begun, or is over. Leaves: sentences; a verb prints them.

use super::Ended;
use super::begun::Begun;
use super::live::{StoppedBy, is_bare};
use super::privileges::NotGivenUp;
use crate::attach::Level;
use crate::discover::privilege::{Privileges, listed};
use crate::discover::{ServerProcesses, role_name};
use crate::input::{Probe, Role};
use crate::recording::recorder::Recorded;
use crate::telemetry::Telemetry;

/// Who is traced.
pub fn introduction(begun: &Begun) -> Vec<String> {
    begun.servers().iter().flat_map(|found| of_server(found, begun.session().level())).collect()
}

fn of_server(found: &ServerProcesses, level: Level) -> Vec<String> {
    let server = &found.server;
    if is_bare(found) {
        let below = found.processes.len() - 1;
        return vec![format!("process {} ({}) and {below} below it: CUDA alone", server.pid, server.service)];
    }
    let version = server.engine_version.as_deref().unwrap_or("of unknown version");
    let model = match server.model.as_str() {
        "" => "model not known yet".to_owned(),
        model => format!("serving {model}"),
    };
    let mut lines = vec![format!("process {}: {} {version}, {model}", server.pid, server.engine)];
    lines.extend(found.processes.iter().map(|process| {
        let how = match process.role {
            Role::Worker if level >= Level::Steps => "CUDA",
            Role::Worker => "lifecycle only",
            Role::Other => "sockets, carries no requests",
            _ => "sockets",
        };
        format!("  {:>7} {:<11} {:<15} {how}", process.pid, role_name(process.role), process.comm)
    }));
    lines
}

/// What is attached.
pub fn attached(begun: &Begun) -> String {
    let processes: usize = begun.servers().iter().map(|found| found.processes.len()).sum();
    let (probes, level) = (begun.session().attached(), begun.session().level().name());
    format!("attached to {processes} processes with {probes} probes at level {level}; Ctrl-C stops")
}

/// What this process may still do.
pub fn privileges(kept: Result<Privileges, NotGivenUp>) -> String {
    match kept.map(Privileges::listed).as_deref() {
        Ok([]) => "privileges: none is left, and none can be gained".to_owned(),
        Ok(kept) => {
            format!("privileges: kept {} for what comes later; all others are given up for good", listed(kept, ", "))
        }
        Err(error) => format!("warning: {error}"),
    }
}

/// What was seen, and whether all of it went where it was to go.
pub fn conclusion(end: StoppedBy, ended: &Ended, telemetry: &Telemetry) -> (Vec<String>, bool) {
    let Ended { summary, late, recorded, .. } = ended;
    let mut lines = Vec::new();
    if end == StoppedBy::Target {
        lines.push("the server has ended".to_owned());
    }
    if *late > 0 {
        lines.push(format!("{late} events came too late to be put in order"));
    }
    lines.extend(summary.left_out_line());
    lines.extend(summary.grown_line());
    let losses = telemetry.losses();
    let lost = if losses.is_empty() { "none" } else { "see above" };
    lines.extend(losses);
    lines.extend(recorded.iter().flat_map(of_recording));
    lines.push(format!(
        "detached: {} requests, {} spans exported, {} dropped; {} socket, {} tokenizer, {} process and {} CUDA events, lost: {lost}",
        summary.requests,
        summary.spans_exported,
        summary.spans_dropped,
        telemetry.delivered(Probe::Syscall),
        telemetry.delivered(Probe::Tokenizer),
        telemetry.delivered(Probe::Process),
        telemetry.delivered(Probe::Cuda),
    ));
    lines.extend(summary.failures.iter().cloned());
    let is_recorded = recorded.as_ref().is_none_or(|recorded| recorded.missing == 0 && recorded.failure.is_none());
    (lines, summary.failures.is_empty() && is_recorded)
}

/// What became of a recording.
fn of_recording(recorded: &Recorded) -> Vec<String> {
    let Recorded { path, entries, bytes, missing, failure } = recorded;
    let path = path.display();
    let mut lines = vec![format!("recorded {entries} entries in {bytes} bytes: `inferspan replay {path}`")];
    if *missing > 0 {
        lines
            .push(format!("{missing} entries are missing in it: the disk did not keep up, and its replay will differ"));
    }
    lines.extend(failure.iter().map(|failure| format!("{failure}; what was written before can be replayed")));
    lines
}
