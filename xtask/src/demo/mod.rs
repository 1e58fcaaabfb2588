//! `cargo xtask demo`: the whole product in one command.
//!
//! Starts a server, attaches to it by PID as a user would, sends it mixed traffic, and prints three of its requests with what the running
//! `attach` answers of them, a step's kernels, and where to look further; at most [`report::MOST_LINES`] lines. With `--backends` traces and
//! metrics go to a real Jaeger and Prometheus too, and are read back. Leaves: the files in `target/demo`. Everything that was started is
//! stopped at the end, on failure and on Ctrl-C. Fails when a request, a trace or a metric is missing, the live view says other than the
//! access log, or a step's CUDA is not what the engine did.

mod backends;
mod cases;
mod cuda;
mod report;
pub(crate) mod server;
mod view;

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use inferspan_harness::process::{Process, Signal};
use inferspan_harness::wait::{Interrupt, wait_for};
use inferspan_harness::{attached, http};

use self::backends::Backends;
use crate::{build, shell};

/// From the word of `attach` that it is attached to an answer of its live view.
const PAGE_LIMIT: Duration = Duration::from_secs(30);
/// What `attach` may take to detach, flush its exporters and print its summary.
const DETACH_LIMIT: Duration = Duration::from_secs(30);
/// Added to the traffic's own length: vLLM compiles for twenty seconds when it first samples.
const TRAFFIC_GRACE: Duration = Duration::from_mins(2);

/// What `attach` writes, in the demo's folder.
const ACCESS_LOG: &str = "access.jsonl";
const TRACES_OUT: &str = "traces.jsonl";

/// Requests of the burst at the end of the traffic, and the clients that send them: more than the server has room for.
const BURST: [&str; 6] = ["--requests", "40", "--clients", "20", "--kinds", "completion_stream"];
/// Seconds of traffic before the attach.
const BEFORE: u64 = 1;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Trace the real vLLM on CPU (installs it if need be: 6 GB) instead of the demo's own small server
    #[arg(long)]
    vllm: bool,
    /// Leave everything running until Ctrl-C: open the live view
    #[arg(long)]
    keep: bool,
    /// Send traces to a real Jaeger and metrics to a real Prometheus too (installs them if need be), and read them back
    #[arg(long)]
    backends: bool,
    /// How long mixed traffic is sent, seconds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// The programs of the demo. Debug builds: they are there in half the time, and the demo measures nothing.
struct Programs {
    inferspan: PathBuf,
    engine: PathBuf,
    traffic: PathBuf,
    libraries: PathBuf,
}

impl Programs {
    fn build() -> Result<Self> {
        let packages = ["inferspan", build::ENGINE_CRATE, build::TESTS_CRATE];
        let names = ["inferspan", "demo-engine", "demo-traffic", "cuda-libraries"];
        let built = build::programs_of(&packages, &names, build::Profile::Debug)?;
        let [inferspan, engine, traffic, libraries] = <[PathBuf; 4]>::try_from(built)
            .map_err(|built| anyhow::anyhow!("{} programs were built, not four", built.len()))?;
        Ok(Self { inferspan, engine, traffic, libraries })
    }
}

/// Who sends it, whereto.
struct Traffic {
    program: PathBuf,
    url: String,
    model: String,
    /// For what it prints.
    folder: PathBuf,
}

impl Traffic {
    /// Sends some and waits until it is answered. `seconds`: what it takes by its own account.
    fn send(&self, what: &'static str, flags: &[&str], seconds: u64, interrupt: &Interrupt) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["--url", &self.url, "--model", &self.model]).args(flags);
        let limit = Duration::from_secs(seconds) + TRAFFIC_GRACE;
        Process::start(what, &mut command, &self.folder)?.finish(limit, interrupt)
    }
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    if !shell::is_root() {
        bail!(
            "the demo must run as root: attaching loads eBPF programs and reads the server's /proc files.\n  \
             Run: sudo -E env \"PATH=$PATH\" cargo xtask demo\n  Without root, `inferspan replay FILE` runs the same pipeline on a recording."
        );
    }
    let started = Instant::now();
    let programs = Programs::build()?;
    let interrupt = Interrupt::catch("xtask: ")?;
    let folder = fresh_folder()?;

    // vLLM on CPU calls no CUDA.
    let mut fake = if arguments.vllm { None } else { cuda::Fake::ready(&programs.libraries, &folder)? };
    let mut server = if arguments.vllm {
        shell::step("starting vLLM", || server::start_vllm(&folder, &interrupt, &[]))?
    } else {
        let cuda = fake.as_ref().map(cuda::Fake::engine_arguments);
        let start = || server::start_demo(&programs.engine, cuda.iter().flatten(), &folder, &interrupt);
        shell::step("starting the demo server", start)?
    };
    let (url, model) = (server.url.clone(), server.model.clone());
    let traffic = Traffic { program: programs.traffic, url, model, folder: folder.clone() };
    // The server has a past when a user attaches; vLLM also compiles now what would else be in the first traces.
    let before = BEFORE.to_string();
    shell::step("sending traffic before the attach", || {
        traffic.send("traffic before the attach", &["--seconds", &before], BEFORE, &interrupt)
    })?;
    let mut backends = if arguments.backends { Some(Backends::start(&folder, &interrupt)?) } else { None };

    let [port] = http::free_ports()?;
    let view = format!("127.0.0.1:{port}");
    let mut command = attach_command(&programs.inferspan, server.pid, &view, backends.as_ref(), &folder);
    if let Some(fake) = &mut fake {
        fake.attached()?;
        command.args(cuda::Fake::attach_arguments(&folder));
    }
    let seconds = arguments.seconds.to_string();
    let mut attach = attach(&mut command, &view, &mut server.process, &folder, &interrupt)?;
    shell::step(&format!("sending traffic for {seconds} s, and a burst"), || {
        traffic.send("traffic", &["--seconds", &seconds], arguments.seconds, &interrupt)?;
        traffic.send("burst", &BURST, 0, &interrupt)
    })?;
    attach.check_running()?;

    let cases = cases::find(&programs.inferspan, &folder.join(ACCESS_LOG), arguments.vllm, &interrupt)?;
    view::check(&view, &folder.join(ACCESS_LOG))?;
    let mut read_back = String::new();
    if let Some(backends) = &backends {
        read_back += &backends.metrics(&mut attach, &interrupt)?;
    }
    if !arguments.keep {
        shell::step("detaching", || detach(&mut attach))?;
    }
    if let Some(backends) = &backends {
        read_back += &backends.traces(&folder.join(ACCESS_LOG), &interrupt)?;
    }
    let step = fake.as_ref().map(|fake| fake.show(&folder, !arguments.keep)).transpose()?;
    let took = started.elapsed().as_secs_f64();
    let page = report::page(&server, &cases, step.as_deref(), &read_back)
        + &report::next(&view, backends.as_ref(), &folder, arguments.keep, took)?;
    println!("\n{page}");
    let lines = page.lines().count();
    ensure!(backends.is_some() || lines <= report::MOST_LINES, "the demo's page has {lines} lines");
    if arguments.keep {
        let mut others = backends.as_mut().map(Backends::processes).unwrap_or_default();
        others.push(&mut server.process);
        return keep(&mut attach, &mut others, &interrupt);
    }
    Ok(())
}

/// `inferspan attach` as a user would write it.
fn attach_command(inferspan: &Path, pid: u32, view: &str, backends: Option<&Backends>, folder: &Path) -> Command {
    let mut command = Command::new(inferspan);
    command.args(["attach", "-p", &pid.to_string(), "--ui", view]);
    if let Some(backends) = backends {
        command.args(backends.attach_arguments());
    }
    command.arg("--access-log").arg(folder.join(ACCESS_LOG)).arg("--traces-out").arg(folder.join(TRACES_OUT));
    command
}

/// Runs `attach` until it is attached and serves its live view.
fn attach(
    command: &mut Command,
    view: &str,
    server: &mut Process,
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
        attached::wait(&mut attach, &mut [&mut *server], interrupt)?;
        let page = format!("http://{view}/");
        let ready = || Ok(http::answers(&page).then_some(()));
        wait_for("the live view", PAGE_LIMIT, interrupt, &mut [&mut attach, server], ready)?;
        Ok(attach)
    })
}

/// Until Ctrl-C, or until one of them ends.
fn keep(attach: &mut Process, others: &mut [&mut Process], interrupt: &Interrupt) -> Result<()> {
    while !interrupt.came() {
        attach.check_running()?;
        for other in &mut *others {
            other.check_running()?;
        }
        interrupt.sleep(Duration::from_secs(1));
    }
    detach(attach)
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

/// Stops `attach` as Ctrl-C does.
fn detach(attach: &mut Process) -> Result<()> {
    let status = attach.stop_with(Signal::INT, DETACH_LIMIT)?;
    // 130 is what product conventions give an interrupted run; 0 is a clean end.
    if !matches!(status.code(), Some(0 | 130)) {
        bail!("attach ended with {status}\n{}", attach.tail(15));
    }
    Ok(())
}
