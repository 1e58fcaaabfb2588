//! `cargo xtask demo`: the whole product in one command.
//!
//! Starts a server, Jaeger and Prometheus, attaches to the server by PID as a user would, sends it mixed traffic, and prints
//! what was found as read back from Jaeger and Prometheus. Leaves: the files in `target/demo`. Everything that was started
//! is stopped at the end, on failure and on Ctrl-C. Fails when traces or metrics are missing, or a step's CUDA is not what the engine did.

mod backends;
mod cuda;
mod report;
pub(crate) mod server;

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use inferspan_harness::process::{Process, Signal};
use inferspan_harness::prometheus::Prometheus;
use inferspan_harness::server::Server;
use inferspan_harness::wait::{Interrupt, wait_for};
use inferspan_harness::{attached, http};

use self::backends::{Jaeger, start_prometheus};
use crate::{build, shell};

/// From the word of `attach` that it is attached to an answer of its metrics page.
const PAGE_LIMIT: Duration = Duration::from_secs(30);
/// From the last request to what it left being in Prometheus and Jaeger.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(20);
/// What `attach` may take to detach, flush its exporters and print its summary.
const DETACH_LIMIT: Duration = Duration::from_secs(30);
/// Added to the traffic's own length: vLLM compiles for twenty seconds when it first samples.
const TRAFFIC_GRACE: Duration = Duration::from_mins(2);

/// What `attach` writes, in the demo's folder.
const ACCESS_LOG: &str = "access.jsonl";
const TRACES_OUT: &str = "traces.jsonl";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Trace the real vLLM on CPU (installs it if need be: 6 GB) instead of the demo's own small server
    #[arg(long)]
    vllm: bool,
    /// Leave the server, attach, Jaeger and Prometheus running until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Without Jaeger and Prometheus: traces and metrics go to files only
    #[arg(long)]
    no_backends: bool,
    /// How long traffic is sent, seconds
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    if !shell::is_root() {
        bail!(
            "the demo must run as root: attaching loads eBPF programs and reads the server's /proc files.\n  \
             Run: sudo -E env \"PATH=$PATH\" cargo xtask demo\n  Without root, `inferspan replay FILE` runs the same pipeline on a recording."
        );
    }
    let started = Instant::now();
    let inferspan = build::inferspan()?;
    let engine = build::programs(build::ENGINE_CRATE, &["demo-engine"])?.remove(0);
    let traffic = build::programs(build::TESTS_CRATE, &["demo-traffic"])?.remove(0);
    let interrupt = Interrupt::catch("xtask: ")?;
    let folder = fresh_folder()?;

    // vLLM on CPU calls no CUDA.
    let mut fake = if arguments.vllm { None } else { cuda::Fake::ready(&folder)? };
    let mut server = if arguments.vllm {
        shell::step("starting vLLM", || server::start_vllm(&folder, &interrupt, &[]))?
    } else {
        let cuda = fake.as_ref().map(cuda::Fake::engine_arguments);
        let start = || server::start_demo(&engine, cuda.iter().flatten(), &folder, &interrupt);
        shell::step("starting the demo server", start)?
    };
    // The server has a past when a user attaches; vLLM also compiles now what would else be in the first traces.
    let warm = || send(&traffic, &server, 2, "traffic before the attach", &folder, &interrupt);
    shell::step("sending traffic before the attach", warm)?;

    let [metrics_port] = http::free_ports()?;
    let metrics = format!("127.0.0.1:{metrics_port}");
    let (mut jaeger, mut prometheus) = if arguments.no_backends {
        (None, None)
    } else {
        let jaeger = shell::step("starting Jaeger", || Jaeger::start(&folder, &interrupt))?;
        let prometheus = shell::step("starting Prometheus", || start_prometheus(&metrics, &folder, &interrupt))?;
        (Some(jaeger), Some(prometheus))
    };

    let mut command = attach_command(&inferspan, server.pid, &metrics, jaeger.as_ref(), &folder);
    if let Some(fake) = &mut fake {
        fake.attached()?;
        command.args(cuda::Fake::attach_arguments(&folder));
    }
    let mut attach = attach(&mut command, &metrics, &mut server, &folder, &interrupt)?;
    shell::step(&format!("sending traffic for {} s", arguments.seconds), || {
        send(&traffic, &server, arguments.seconds, "traffic", &folder, &interrupt)
    })?;
    attach.check_running()?;

    let excerpt = excerpt(prometheus.as_ref(), &metrics, &mut attach, &interrupt)?;

    if !arguments.keep {
        shell::step("detaching", || detach(&mut attach))?;
    }
    let found = found(jaeger.as_ref(), &attach, &folder, &interrupt)?;
    let step = fake.as_ref().map(|fake| fake.show(&folder, !arguments.keep)).transpose()?;
    show(&server, &found, &excerpt, step.as_deref());
    place(jaeger.as_ref(), prometheus.as_ref(), &folder, arguments.keep);
    if arguments.keep {
        println!("Metrics page: http://{metrics}/metrics");
        println!("Server:       {} (pid {}, model {})", server.url, server.pid, server.model);
        println!("Everything keeps running. Ctrl-C stops it.");
        let mut backends: Vec<&mut Process> = Vec::new();
        backends.extend(jaeger.as_mut().map(|jaeger| &mut jaeger.server.process));
        backends.extend(prometheus.as_mut().map(|prometheus| &mut prometheus.process));
        return keep(&mut attach, &mut server, &mut backends, &interrupt);
    }
    eprintln!("xtask: the demo took {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// `inferspan attach` as a user would write it.
fn attach_command(inferspan: &Path, pid: u32, metrics: &str, jaeger: Option<&Jaeger>, folder: &Path) -> Command {
    let mut command = Command::new(inferspan);
    command.args(["attach", "-p", &pid.to_string(), "--metrics", metrics]);
    if let Some(jaeger) = jaeger {
        command.args(["--otlp", &jaeger.server.otlp_grpc]);
    }
    command.arg("--access-log").arg(folder.join(ACCESS_LOG)).arg("--traces-out").arg(folder.join(TRACES_OUT));
    command
}

/// Runs `attach` until it is attached and serves its metrics.
fn attach(
    command: &mut Command,
    metrics: &str,
    server: &mut Server,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<Process> {
    eprintln!("xtask: {}", shell::display(command));
    if !std::io::stdout().is_terminal() {
        // It has a terminal, but where its lines end up has none.
        command.env("NO_COLOR", "1");
    }
    shell::step("attaching", || {
        let mut attach = Process::start_on_terminal("attach", command, folder)?;
        // The page is there before the probes are.
        attached::wait(&mut attach, &mut [&mut server.process], interrupt)?;
        let page = format!("http://{metrics}/metrics");
        let ready = || Ok(http::answers(&page).then_some(()));
        wait_for("the metrics page", PAGE_LIMIT, interrupt, &mut [&mut attach, &mut server.process], ready)?;
        Ok(attach)
    })
}

/// Until Ctrl-C, or until one of them ends.
fn keep(attach: &mut Process, server: &mut Server, backends: &mut [&mut Process], interrupt: &Interrupt) -> Result<()> {
    while !interrupt.came() {
        attach.check_running()?;
        server.process.check_running()?;
        for backend in &mut *backends {
            backend.check_running()?;
        }
        interrupt.sleep(Duration::from_secs(1));
    }
    detach(attach)?;
    println!("\n{}", report::terminal(&attach.output)?);
    Ok(())
}

/// The metrics of the run, as its users get them.
fn excerpt(
    prometheus: Option<&Prometheus>,
    metrics: &str,
    attach: &mut Process,
    interrupt: &Interrupt,
) -> Result<String> {
    if let Some(prometheus) = prometheus {
        wait_for("the metrics in Prometheus", ARRIVAL_LIMIT, interrupt, &mut [&mut *attach], || {
            Ok((report::requests_total(prometheus)? > 0.0).then_some(()))
        })?;
        // Two more scrapes, so that the last requests are in.
        interrupt.sleep(Duration::from_millis(2200));
        interrupt.check()?;
    }
    let excerpt = match prometheus {
        Some(prometheus) => report::metrics(prometheus)?,
        None => first_lines(&http::text(&format!("http://{metrics}/metrics"))?, "inferspan_requests_total"),
    };
    if excerpt.trim().is_empty() {
        bail!("the metrics page has no inferspan_requests_total; see http://{metrics}/metrics with --keep");
    }
    Ok(excerpt)
}

/// `target/demo`, empty.
fn fresh_folder() -> Result<PathBuf> {
    let folder = build::target_folder().join("demo");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn send(
    traffic: &Path,
    server: &Server,
    seconds: u64,
    what: &'static str,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut command = Command::new(traffic);
    command.args(["--url", &server.url, "--model", &server.model, "--seconds", &seconds.to_string()]);
    Process::start(what, &mut command, folder)?.finish(Duration::from_secs(seconds) + TRAFFIC_GRACE, interrupt)
}

/// Stops `attach` as Ctrl-C does.
fn detach(attach: &mut Process) -> Result<()> {
    let status = attach.stop_with(Signal::INT, DETACH_LIMIT)?;
    // 130 is what product conventions give an interrupted run; 0 is a clean end.
    if !matches!(status.code(), Some(0 | 130)) {
        bail!("attach ended with {status}\n{}", attach.tail(15));
    }
    Ok(())
}

struct Found {
    terminal: String,
    traces: String,
    requests: usize,
    exports: usize,
}

/// Reads everything back; fails when something is missing.
fn found(jaeger: Option<&Jaeger>, attach: &Process, folder: &Path, interrupt: &Interrupt) -> Result<Found> {
    let (trace_ids, requests) = report::access_log(&folder.join(ACCESS_LOG))?;
    let exports = report::lines(&folder.join(TRACES_OUT), "the trace file")?;
    let traces = match jaeger {
        None => "  (not sent anywhere)\n".to_owned(),
        Some(jaeger) => {
            let mut last = None;
            let waited = wait_for("the traces in Jaeger", ARRIVAL_LIMIT, interrupt, &mut [], || {
                match report::traces(jaeger, &trace_ids) {
                    Ok(traces) => Ok(Some(traces)),
                    Err(error) => {
                        last = Some(error);
                        Ok(None)
                    }
                }
            });
            match (waited, last) {
                (Ok(traces), _) => traces,
                (Err(_), Some(error)) if !interrupt.came() => return Err(error),
                (Err(error), _) => return Err(error),
            }
        }
    };
    Ok(Found { terminal: report::terminal(&attach.output)?, traces, requests, exports })
}

fn show(server: &Server, found: &Found, excerpt: &str, step: Option<&str>) {
    println!("\n── what attach printed ({}, pid {}) ──\n{}", server.name, server.pid, found.terminal);
    println!("── metrics ──\n{excerpt}");
    println!("── traces ──\n{}", found.traces);
    if let Some(step) = step {
        println!(
            "── one engine step (its CUDA is a fake one: no GPU is needed; a launch is a call of the CPU) ──\n{step}"
        );
    }
    println!(
        "── files ──\n  {} requests in the access log, {} export requests in the trace file",
        found.requests, found.exports
    );
}

fn place(jaeger: Option<&Jaeger>, prometheus: Option<&Prometheus>, folder: &Path, running: bool) {
    println!("  access log:  {}", folder.join(ACCESS_LOG).display());
    println!("  trace file:  {} (OTLP/JSON; Jaeger's UI can load it)", folder.join(TRACES_OUT).display());
    println!("  logs:        {}/*.err", folder.display());
    let state = if running { "" } else { " (stopped now; --keep leaves it running)" };
    if let Some(jaeger) = jaeger {
        let ui = if jaeger.has_ui { "" } else { ", query API only: this Jaeger was built without its UI" };
        println!("Jaeger:       {}{ui}{state}", jaeger.server.query);
    }
    if let Some(prometheus) = prometheus {
        println!("Prometheus:   {}{state}", prometheus.url);
    }
}

/// The first ten lines of `page` that begin with `prefix`.
fn first_lines(page: &str, prefix: &str) -> String {
    let lines: Vec<String> =
        page.lines().filter(|line| line.starts_with(prefix)).take(10).map(|line| format!("  {line}\n")).collect();
    lines.concat()
}
