//! What `attach` and `record` share: find the server, attach, let `run` follow it until the user, the clock or the server ends it, and say
//! what was seen.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::target::{LIST, TargetArgs, find};
use crate::attach::loader::Options;
use crate::attach::{Level, LoadError};
use crate::core::Config;
use crate::discover::privilege::Privileges;
use crate::discover::{self, role_name};
use crate::exit::{Code, Failure};
use crate::export::flags::OutputArgs;
use crate::export::otlp::spans::Origin;
use crate::export::{Pressure, Sinks};
use crate::input::{LossStage, Probe, Role};
use crate::recording::Header;
use crate::recording::recorder::{Recorded, Recorder};
use crate::run::live::{LAG_NS, Live, StoppedBy, is_bare, targets_of};
use crate::run::{Ended, Run};
use crate::source::ring::unix_ns;
use crate::source::session::Session;
use crate::telemetry::Telemetry;

/// The flags of every verb that attaches.
#[derive(Debug, Clone, clap::Args)]
pub struct TraceArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// How much is observed
    #[arg(long, value_enum, default_value_t = Level::Steps)]
    pub level: Level,
    /// Trace what any process, no inference server, does with CUDA (with -p): no requests, everything else
    #[arg(long, conflicts_with_all = ["all", "name"])]
    pub cuda_only: bool,
    /// Stop after this long: 90s, 10m, 2h, or a number of seconds
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Print the BPF programs' log to stderr (needs an object built with it, see --bpf-object)
    #[arg(long)]
    pub debug_bpf: bool,
    /// Load this BPF object instead of the built-in one
    #[arg(long, value_name = "FILE", env = "TRACER_EBPF_OBJECT")]
    pub bpf_object: Option<PathBuf>,
    /// Attach each uprobe by a perf event of its own, as on Linux before 6.10
    #[arg(long, hide = true)]
    pub uprobe_events: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What to record, and where to.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub file: &'a PathBuf,
    pub raw: bool,
}

/// `90s`, `10m`, `2h`, `500ms`, `90`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is no time; write 90s, 10m or 2h"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        unit => return Err(format!("`{unit}` is no unit of time; write 90s, 10m or 2h")),
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("a duration is longer than 0".to_owned()),
    }
}

/// A trace that has begun.
pub(super) struct Begun {
    live: Live,
    telemetry: Arc<Telemetry>,
    stop: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

/// Traces until something ends it.
pub(super) fn trace(args: &TraceArgs, plan: Option<&Plan<'_>>) -> anyhow::Result<Code> {
    let Some(Begun { mut live, telemetry, stop, deadline }) = begin(args, plan)? else { return Ok(Code::Interrupted) };
    let end = loop {
        if let Some(end) = live.turn(&stop, deadline, &mut warn) {
            break end;
        }
    };
    let (ended, attachment) = live.finish();
    let code = conclude(end, &ended, &telemetry);
    attachment.leave();
    Ok(code)
}

/// Finds the servers, attaches, and says so; nothing when a signal came meanwhile.
pub(super) fn begin(args: &TraceArgs, plan: Option<&Plan<'_>>) -> anyhow::Result<Option<Begun>> {
    let stop = stop_on_signals()?;
    let servers = match args.target.pid {
        Some(pid) if args.cuda_only => vec![discover::process_tree(pid)?],
        _ => find(&args.target)?,
    };
    let telemetry = Arc::new(Telemetry::default());
    let sinks = Sinks::open(&args.output, Arc::clone(&telemetry), Pressure::Drop)?;
    let config = Config { max_spans: args.output.max_spans, ..Config::default() };
    let mut run = Run::new(servers.len(), LAG_NS, &config, sinks, Arc::clone(&telemetry));
    if let Some(plan) = plan {
        run.record(start_recording(plan, servers.len(), &config)?, plan.raw);
    }
    let options = Options {
        object: args.bpf_object.clone(),
        debug_log: args.debug_bpf,
        uprobe_events: args.uprobe_events,
        level: args.level,
        launch_sample: args.output.launch_sample(),
        ..Options::default()
    };
    let targets: Vec<_> = servers.iter().flat_map(|found| targets_of(found, args.level)).collect();
    let session = Session::start(&options, &targets).map_err(|error| failure_of(&error))?;
    // Between the look at /proc and the filter a PID may have changed hands.
    for found in &servers {
        if !discover::same_process(found.server.pid, found.server.start_ticks) {
            let what = format!("process {} ended while inferspan attached to it", found.server.pid);
            return Err(Failure::new(Code::NoTarget, what, LIST).into());
        }
    }
    if stop.load(Relaxed) {
        return Ok(None);
    }
    let mut live = Live::new(servers, session, run);
    introduce(&mut live, plan, args.level);
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    Ok(Some(Begun { live, telemetry, stop, deadline }))
}

fn start_recording(plan: &Plan<'_>, servers: usize, config: &Config) -> Result<Recorder, Failure> {
    let origin = Origin::of_this_process(true);
    let header = Header {
        writer: super::VERSION.clone(),
        started_unix_ns: unix_ns(),
        servers: servers as u32,
        raw: plan.raw,
        closes_visible: config.closes_visible,
        host: origin.host,
        resource: origin.extra,
    };
    Recorder::start(plan.file, &header).map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Code::Permission,
            _ => Code::Usage,
        };
        let what = format!("cannot write a recording to {}: {error}", plan.file.display());
        Failure::new(code, what, "name a file in a folder that exists and can be written")
    })
}

/// Both signals set the flag; with the flag set, another one ends the process.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, Code::Interrupted as i32, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

fn failure_of(error: &LoadError) -> Failure {
    match error {
        LoadError::Permission { .. } => {
            let missing = Privileges::own().missing_for_bpf();
            let names: Vec<&str> = missing.iter().map(|capability| capability.name()).collect();
            let why = if names.is_empty() {
                "the capabilities are there, so a security module, kernel lockdown or seccomp profile forbids it"
                    .to_owned()
            } else {
                format!("missing {}", names.join(" and "))
            };
            Failure::new(
                Code::Permission,
                format!("{error}: {why}"),
                "run inferspan as root (sudo), or give it CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE; `inferspan doctor` checks the rest",
            )
        }
        LoadError::PidNamespace => Failure::new(
            Code::Unsupported,
            error.to_string(),
            "run it on the host, or share its pid namespace (docker: --pid=host, Kubernetes: hostPID: true)",
        ),
        LoadError::Architecture => Failure::new(
            Code::Unsupported,
            error.to_string(),
            "trace a server on an x86-64 host; `inferspan replay` works everywhere",
        ),
        LoadError::NoLog(_) => Failure::new(
            Code::Usage,
            error.to_string(),
            "build one with `cargo xtask ebpf --features debug-log` and name it with --bpf-object",
        ),
        LoadError::Object { .. } | LoadError::Missing { .. } => Failure::new(
            Code::Usage,
            error.to_string(),
            "give --bpf-object a file built from this version (`cargo xtask ebpf`), or leave it out",
        ),
        LoadError::Verifier { .. } | LoadError::Attach { .. } | LoadError::Other(_) => Failure::new(
            Code::Unsupported,
            error.to_string(),
            "`inferspan doctor` checks what the kernel must offer (Linux 5.15 or later, BTF)",
        ),
    }
}

/// Probes the libraries, and says who is traced, and how.
fn introduce(live: &mut Live, plan: Option<&Plan<'_>>, level: Level) {
    for found in live.servers() {
        let server = &found.server;
        if is_bare(found) {
            let below = found.processes.len() - 1;
            eprintln!("inferspan: process {} ({}) and {below} below it: CUDA alone", server.pid, server.service);
            continue;
        }
        let version = server.engine_version.as_deref().unwrap_or("of unknown version");
        let model = if server.model.is_empty() { "a model whose name is not known yet" } else { &server.model };
        eprintln!("inferspan: process {}: {} {version}, serving {model}", server.pid, server.engine);
        for process in &found.processes {
            let how = match process.role {
                Role::Worker if level >= Level::Steps => "CUDA",
                Role::Worker => "lifecycle only",
                Role::Other => "sockets, carries no requests",
                _ => "sockets",
            };
            eprintln!("inferspan:   {:>7} {:<11} {:<15} {how}", process.pid, role_name(process.role), process.comm);
        }
    }
    if let Some(why) = live.session().not_following() {
        eprintln!("inferspan: warning: processes that the server starts from now on are not traced: {why}");
    }
    live.probe_libraries().iter().for_each(|what| warn(what));
    if plan.is_some_and(|plan| plan.raw) {
        warn("the recording keeps what goes over the server's sockets: prompts, outputs and headers, keys among them");
    } else {
        eprintln!("inferspan: prompts and outputs are neither kept nor exported; nothing is written to the server");
    }
    let processes: usize = live.servers().iter().map(|found| found.processes.len()).sum();
    let probes = live.session().attached();
    let level = level.to_possible_value().map(|level| level.get_name().to_owned()).unwrap_or_default();
    eprintln!("inferspan: attached to {processes} processes with {probes} probes at level {level}; Ctrl-C stops");
}

fn warn(what: &str) {
    eprintln!("inferspan: warning: {what}");
}

/// Says what was seen.
fn conclude(end: StoppedBy, finished: &Ended, telemetry: &Telemetry) -> Code {
    let Ended { summary, late, recorded, .. } = finished;
    if end == StoppedBy::Target {
        eprintln!("inferspan: the server has ended");
    }
    let lost: Vec<String> = LossStage::ALL
        .iter()
        .filter(|stage| telemetry.lost(**stage) > 0)
        .map(|stage| format!("{} at {}", telemetry.lost(*stage), stage.name()))
        .collect();
    let lost = if lost.is_empty() { "none".to_owned() } else { lost.join(", ") };
    if *late > 0 {
        eprintln!("inferspan: {late} events came too late to be put in order");
    }
    if let Some(line) = summary.left_out_line() {
        eprintln!("inferspan: {line}");
    }
    if let Some(line) = summary.grown_line() {
        eprintln!("inferspan: {line}");
    }
    let recording_failed = recorded.as_ref().is_some_and(|recorded| !say_recorded(recorded));
    eprintln!(
        "inferspan: detached: {} requests, {} spans exported, {} dropped; {} socket, {} tokenizer, {} process and {} CUDA events, lost: {lost}",
        summary.requests,
        summary.spans_exported,
        summary.spans_dropped,
        telemetry.delivered(Probe::Syscall),
        telemetry.delivered(Probe::Tokenizer),
        telemetry.delivered(Probe::Process),
        telemetry.delivered(Probe::Cuda),
    );
    for failure in &summary.failures {
        eprintln!("inferspan: {failure}");
    }
    if summary.failures.is_empty() && !recording_failed { Code::Ok } else { Code::Finding }
}

/// Says what became of a recording; whether it is whole.
fn say_recorded(recorded: &Recorded) -> bool {
    let Recorded { path, entries, bytes, missing, failure } = recorded;
    let path = path.display();
    eprintln!("inferspan: recorded {entries} entries in {bytes} bytes: `inferspan replay {path}`");
    if *missing > 0 {
        eprintln!(
            "inferspan: {missing} entries are missing in it: the disk did not keep up, and its replay will differ"
        );
    }
    if let Some(failure) = failure {
        eprintln!("inferspan: {failure}; what was written before can be replayed");
    }
    *missing == 0 && failure.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in [("60s", 60_000), ("2", 2000), ("1.5m", 90_000), ("500ms", 500), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "0", "-1s", "5 parsecs", "1d", "nan", "inf", "1e300h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
