//! `inferspan attach`: trace a running server until Ctrl-C.
//!
//! Finds the server, attaches, lets `run` follow it until the user, the clock or the server ends it, and says what was seen.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::attach::LoadError;
use crate::attach::Session;
use crate::attach::loader::Options;
use crate::core::Config;
use crate::discover::failure::parse_pid;
use crate::discover::privilege::Privileges;
use crate::discover::{self, ServerProcesses, role_name};
use crate::exit::{Code, Failure};
use crate::export::flags::OutputArgs;
use crate::export::{Pressure, Sinks};
use crate::input::{LossStage, Probe, Role, Server};
use crate::run::live::{End, LAG_NS, Live, targets_of};
use crate::run::{Ended, Run};
use crate::telemetry::Telemetry;

/// Digits of a container id that are enough to name it.
const SHORT_ID: usize = 12;

const LIST: &str = "`inferspan ls` lists the inference servers on this host";

/// Trace a running server until Ctrl-C.
///
/// Ctrl-C and SIGTERM detach, flush what was seen and exit 0 (130 when attaching was not finished yet); a second Ctrl-C exits
/// at once. Exits 3 when the server is not found or is gone before it is traced; a server that ends later ends the trace.
/// Prompts and outputs are neither kept nor exported.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["pid", "name", "all"]))]
pub struct Args {
    /// Trace the server that this process belongs to
    #[arg(short, long, value_name = "PID", value_parser = parse_pid, allow_negative_numbers = true)]
    pub pid: Option<u32>,
    /// Trace the one server that `inferspan ls` shows under this engine, model, container, service or server name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Trace every server on this host
    #[arg(long)]
    pub all: bool,
    /// How much is observed
    #[arg(long, value_enum, default_value_t = Level::Requests)]
    pub level: Level,
    /// Stop after this long: 90s, 10m, 2h, or a number of seconds
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Print the BPF programs' log to stderr (needs an object built with it, see --bpf-object)
    #[arg(long)]
    pub debug_bpf: bool,
    /// Load this BPF object instead of the built-in one
    #[arg(long, value_name = "FILE", env = "TRACER_EBPF_OBJECT")]
    pub bpf_object: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// Sockets and libraries of the front end
    Requests,
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

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let stop = stop_on_signals()?;
    let servers = find(args)?;
    let telemetry = Arc::new(Telemetry::default());
    let sinks = Sinks::open(&args.output, Arc::clone(&telemetry), Pressure::Drop)?;
    let options = Options { object: args.bpf_object.clone(), debug_log: args.debug_bpf, ..Options::default() };
    let targets: Vec<_> = servers.iter().flat_map(targets_of).collect();
    let session = Session::start(&options, &targets).map_err(|error| failure_of(&error))?;
    // Between the look at /proc and the filter a PID may have changed hands.
    for found in &servers {
        if !discover::same_process(found.server.pid, found.server.start_ticks) {
            return Err(Failure::new(
                Code::NoTarget,
                format!("process {} ended while inferspan attached to it", found.server.pid),
                LIST,
            )
            .into());
        }
    }
    if stop.load(Relaxed) {
        return Ok(Code::Interrupted);
    }
    let config = Config { max_spans: args.output.max_spans, ..Config::default() };
    let run = Run::new(servers.len(), LAG_NS, &config, sinks, Arc::clone(&telemetry));
    let mut live = Live::new(servers, session, run);
    introduce(&live);
    live.probe_libraries().iter().for_each(|what| warn(what));
    eprintln!("inferspan: prompts and outputs are neither kept nor exported; nothing is written to the server");
    let processes: usize = live.servers().iter().map(|found| found.processes.len()).sum();
    let probes = live.session().attached();
    eprintln!("inferspan: attached to {processes} processes with {probes} probes at level requests; Ctrl-C stops");
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    let end = live.follow(&stop, deadline, &mut warn);
    Ok(conclude(end, &live.finish(), &telemetry))
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

/// The servers that the arguments name; at least one.
fn find(args: &Args) -> Result<Vec<ServerProcesses>, Failure> {
    if let Some(pid) = args.pid {
        return Ok(vec![discover::server(pid)?]);
    }
    let all = discover::servers();
    if all.is_empty() {
        return Err(Failure::new(
            Code::NoTarget,
            "no inference server was found on this host",
            "start one, or run inferspan as root and in the host's pid namespace to see those of others",
        ));
    }
    let Some(name) = &args.name else { return Ok(all) };
    let mut matching: Vec<ServerProcesses> = all.into_iter().filter(|found| is_called(&found.server, name)).collect();
    match matching.len() {
        0 => Err(Failure::new(
            Code::NoTarget,
            format!("no server has the engine, model, container, service or server name {name:?}"),
            LIST,
        )),
        1 => Ok(vec![matching.remove(0)]),
        count => {
            let pids: Vec<String> = matching.iter().map(|found| found.server.pid.to_string()).collect();
            Err(Failure::new(
                Code::Usage,
                format!("{count} servers are called {name:?}: PIDs {}", pids.join(", ")),
                "name one with -p PID, or trace all with --all",
            ))
        }
    }
}

/// Whether a server has this name: any that `inferspan ls` shows or its JSON holds. A container's id may be cut, as docker cuts it.
fn is_called(server: &Server, name: &str) -> bool {
    let version = server.engine_version.as_deref().unwrap_or_default();
    [&server.engine, &server.service, &server.model, &server.instance()].into_iter().any(|own| own == name)
        || name.strip_prefix(&server.engine).and_then(|rest| rest.strip_prefix(' ')) == Some(version)
        || (name.len() >= SHORT_ID && server.container_id.as_deref().is_some_and(|id| id.starts_with(name)))
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

/// Says who is traced, and how.
fn introduce(live: &Live) {
    for found in live.servers() {
        let server = &found.server;
        let version = server.engine_version.as_deref().unwrap_or("of unknown version");
        let model = if server.model.is_empty() { "a model to be learned" } else { &server.model };
        eprintln!("inferspan: process {}: {} {version}, serving {model}", server.pid, server.engine);
        for process in &found.processes {
            let how = match process.role {
                Role::Worker => "life only",
                Role::Other => "sockets, carries no requests",
                _ => "sockets",
            };
            eprintln!("inferspan:   {:>7} {:<11} {:<15} {how}", process.pid, role_name(process.role), process.comm);
        }
    }
    if let Some(why) = live.session().not_following() {
        eprintln!("inferspan: warning: processes that the server starts from now on are not traced: {why}");
    }
}

fn warn(what: &str) {
    eprintln!("inferspan: warning: {what}");
}

/// Says what was seen.
fn conclude(end: End, finished: &Ended, telemetry: &Telemetry) -> Code {
    let Ended { summary, late, .. } = finished;
    if end == End::Target {
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
    eprintln!(
        "inferspan: detached: {} requests, {} spans exported, {} dropped; {} socket, {} tokenizer and {} process events, lost: {lost}",
        summary.requests,
        summary.spans_exported,
        summary.spans_dropped,
        telemetry.delivered(Probe::Syscall),
        telemetry.delivered(Probe::Tokenizer),
        telemetry.delivered(Probe::Process),
    );
    for failure in &summary.failures {
        eprintln!("inferspan: {failure}");
    }
    if summary.failures.is_empty() { Code::Ok } else { Code::Finding }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from(std::iter::once("attach").chain(words.iter().copied())).map(|cli| cli.args)
    }

    #[test]
    fn exactly_one_way_to_name_the_target_is_asked_for() {
        assert_eq!(parse(&["-p", "42"]).unwrap().pid, Some(42));
        assert_eq!(parse(&["--name", "vllm"]).unwrap().name.as_deref(), Some("vllm"));
        assert!(parse(&["--all"]).unwrap().all);
        assert!(parse(&[]).is_err());
        assert!(parse(&["-p", "42", "--all"]).is_err());
        assert!(parse(&["-p", "-1"]).is_err());
    }

    #[test]
    fn durations_have_units() {
        for (text, millis) in [("60s", 60_000), ("2", 2000), ("1.5m", 90_000), ("500ms", 500), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "0", "-1s", "5 parsecs", "1d", "nan", "inf", "1e300h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_is_found_by_every_name_that_ls_shows() {
        let server = Server {
            service: "chat".into(),
            model: "llama".into(),
            engine: "vllm".into(),
            engine_version: Some("0.32.0".into()),
            container_id: Some("0123456789abcdef0123456789abcdef".into()),
            pid: 42,
            ..Server::default()
        };
        for name in ["vllm", "vllm 0.32.0", "chat", "llama", "chat-0123456789ab", "0123456789ab", "0123456789abcdef"] {
            assert!(is_called(&server, name), "{name}");
        }
        for name in ["", "vllm 0.31.0", "vllm ", "0123", "lla"] {
            assert!(!is_called(&server, name), "{name}");
        }
        let alone = Server { container_id: None, engine_version: None, ..server };
        assert!(is_called(&alone, "chat-42"));
    }

    #[test]
    fn only_levels_that_exist_are_offered() {
        assert_eq!(parse(&["--all"]).unwrap().level, Level::Requests);
        assert_eq!(parse(&["--all", "--level", "kernels"]).unwrap_err().exit_code(), 2);
    }
}
