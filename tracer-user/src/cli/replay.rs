//! `inferspan replay`: the same pipeline as `attach`, on a file, unprivileged.
//!
//! Everything is written when the file is read; with `--metrics` the endpoint then stays until a signal.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::sync::Arc;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::say;
use crate::exit::{Code, Failure};
use crate::export::flags::OutputArgs;
use crate::export::otlp::spans::Origin;
use crate::export::{Pressure, Sinks};
use crate::recording::reader::is_recording;
use crate::run::Ended;
use crate::run::recorded::{self, Played};
use crate::run::replay::{Opened, ReplayError, Replayed};
use crate::source::syscall_log::LogError;
use crate::telemetry::Telemetry;
use crate::ui::flags::UiArgs;
use crate::ui::{Shown, Time, Ui};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A recording of `inferspan record`, or a syscall log: JSON lines, plain or gzip
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub ui: UiArgs,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let open = || -> io::Result<(BufReader<File>, bool)> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(&args.file)?);
        let is_recording = is_recording(&mut file)?;
        Ok((file, is_recording))
    };
    let (file, is_recording) = open().map_err(|error| {
        let path = args.file.clone();
        failure(&ReplayError::Log(LogError::Open { path, error }))
    })?;
    let (code, finished, ui) = if is_recording { replay_recording(args, file)? } else { replay_log(args, file)? };
    if let Some(server) = &finished.metrics_server {
        eprintln!("inferspan: metrics stay at http://{}/metrics; Ctrl-C ends", server.address());
    }
    if let Some(ui) = &ui {
        say(&format!("{}; Ctrl-C ends", ui.told()));
    }
    if finished.metrics_server.is_some() || ui.is_some() {
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?.forever().next();
    }
    Ok(code)
}

fn replay_recording(args: &Args, file: BufReader<File>) -> anyhow::Result<(Code, Ended, Option<Ui>)> {
    let opened = recorded::Opened::read(&args.file, file).map_err(|error| {
        let fix = "give a file that `inferspan record` wrote; one of another version is read by that version";
        Failure::new(Code::Usage, error.to_string(), fix)
    })?;
    let telemetry = Arc::new(Telemetry::default());
    let origin = Origin::of_recording(opened.header());
    let mut sinks = Sinks::open_as(&args.output, Arc::clone(&telemetry), Pressure::Wait, origin.clone())?;
    let ui = serve(args, &mut sinks, &telemetry, origin)?;
    let played = opened.run(args.output.max_spans, sinks, telemetry);
    Ok((say_played(&played), played.finished, ui))
}

/// The live view, where it is asked for.
fn serve(args: &Args, sinks: &mut Sinks, telemetry: &Arc<Telemetry>, origin: Origin) -> anyhow::Result<Option<Ui>> {
    let address = args.ui.address();
    // The summary looks at what is kept, too; where nobody reads one, a replay costs less without.
    if address.is_none() && !sinks.tells_a_person() {
        return Ok(None);
    }
    let kept = sinks.keep(Pressure::Wait)?;
    let Some(address) = address else { return Ok(None) };
    let (telemetry, max_spans) = (Arc::clone(telemetry), args.output.max_spans);
    Ui::start(address, Shown { kept, telemetry, origin, time: Time::Newest, max_spans }).map(Some)
}

fn replay_log(args: &Args, file: BufReader<File>) -> anyhow::Result<(Code, Ended, Option<Ui>)> {
    let opened = Opened::read(&args.file, file).map_err(|error| failure(&error))?;
    let service = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let telemetry = Arc::new(Telemetry::default());
    let mut sinks = Sinks::open(&args.output, Arc::clone(&telemetry), Pressure::Wait)?;
    let ui = serve(args, &mut sinks, &telemetry, Origin::of_this_process(false))?;
    let replayed = opened.run(service.as_deref(), args.output.max_spans, sinks, telemetry);
    Ok((say_replayed(&replayed), replayed.finished, ui))
}

/// Says what was made of a recording.
fn say_played(played: &Played) -> Code {
    let Played { header, entries, missing, damage, unanswered, late, finished } = played;
    let raw = if header.raw { " of a raw recording" } else { "" };
    let servers = if header.servers == 1 { "1 server".to_owned() } else { format!("{} servers", header.servers) };
    say(&format!("replayed {entries} entries{raw} of {servers}, written by inferspan {}", header.writer));
    if *late > 0 {
        eprintln!("inferspan: {late} events came too late to be put in order");
    }
    let mut code = say_finished(finished);
    if *missing > 0 {
        eprintln!("inferspan: {missing} entries were left out when it was recorded");
        code = Code::Finding;
    }
    if let Some(damage) = damage {
        say(&format!("{damage}; what came before is reported"));
        code = Code::Finding;
    }
    if *unanswered > 0 {
        eprintln!(
            "inferspan: {unanswered} places of it do not fit this version of inferspan; what it says of them is missing"
        );
        code = Code::Finding;
    }
    code
}

/// What is said of every replay.
fn say_finished(finished: &Ended) -> Code {
    if let Some(line) = finished.summary.left_out_line() {
        eprintln!("inferspan: {line}");
    }
    if let Some(line) = finished.summary.grown_line() {
        eprintln!("inferspan: {line}");
    }
    for failure in &finished.summary.failures {
        say(failure);
    }
    if finished.summary.failures.is_empty() { Code::Ok } else { Code::Finding }
}

/// Says what was made of the log.
fn say_replayed(replayed: &Replayed) -> Code {
    let Replayed { events, lines, bad_lines, uncertainty, broken, finished } = replayed;
    eprintln!("inferspan: replayed {events} calls of {lines} lines");
    if let Some(ns) = uncertainty {
        eprintln!("inferspan: engine clock placed to ±{:.1} ms (a syscall log has no clock anchor)", *ns as f64 / 1e6);
    }
    let mut code = say_finished(finished);
    if *bad_lines > 0 {
        eprintln!("inferspan: {bad_lines} lines did not parse and were skipped");
        code = Code::Finding;
    }
    if let Some(error) = broken {
        say(&format!("{error}; what came before is reported"));
        code = Code::Finding;
    }
    code
}

fn failure(error: &ReplayError) -> Failure {
    let (code, fix) = match error {
        ReplayError::Log(LogError::Open { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            (Code::NoTarget, "check the path")
        }
        ReplayError::Log(LogError::Open { error, .. }) if error.kind() == io::ErrorKind::PermissionDenied => {
            (Code::Permission, "make the file readable")
        }
        _ => (
            Code::Usage,
            "give a recording, or a syscall log: one {\"t0\",\"t1\",\"tid\",\"sc\",\"fd\",\"sock\",\"n\",\"hex\"} object a line, plain or gzip",
        ),
    };
    Failure::new(code, error.to_string(), fix)
}
