//! `cargo xtask screenshots`: the pictures of the live view in the README, made anew from a real run.
//!
//! Starts the demo server with little room, attaches with `--ui`, sends more than it can take, and photographs the view in a real browser
//! while that goes on: all of it, and the request that waited longest in the queue; and that in Jaeger's own UI, where one is built. Leaves:
//! `docs/images/*.png`, each below [`MOST`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use inferspan_harness::browser::Browser;
use inferspan_harness::jaeger::Jaeger;
use inferspan_harness::process::Process;
use inferspan_harness::server::Server;
use inferspan_harness::wait::{Interrupt, wait_for};
use inferspan_harness::{attached, http};
use serde_json::Value;

use crate::{build, setup, shell};

/// Bytes of a picture: a README is loaded over slow lines too.
const MOST: u64 = 250_000;
/// How long traffic goes on, and after how much of it pictures are taken, s: the plots show five minutes.
const TRAFFIC: u64 = 240;
const BEFORE: Duration = Duration::from_secs(150);
const CLIENTS: &str = "14";
/// Requests that the shown one is chosen from: those that ended last.
const RECENT: &str = "400";

/// File, what is opened (`request`: the request that is shown), scheme, width, height.
const PICTURES: [(&str, &str, &str, &str, &str); 4] = [
    ("live.png", "", "light", "1280", "720"),
    ("live-dark.png", "", "dark", "1280", "720"),
    ("request.png", "request", "light", "1280", "720"),
    ("request-phone.png", "request", "dark", "360", "740"),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Take builds without optimisation: quicker to make, and the tracer's own cost in the pictures is not what users see
    #[arg(long)]
    debug: bool,
    /// Take pictures after so many seconds of traffic
    #[arg(long, value_name = "N", default_value_t = BEFORE.as_secs(), value_parser = clap::value_parser!(u64).range(5..=200))]
    after: u64,
    /// Photograph the request in Jaeger too: the folder of a built jaeger-ui (its packages/jaeger-ui/build)
    #[arg(long, value_name = "FOLDER")]
    jaeger_ui: Option<PathBuf>,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    if !shell::is_root() {
        bail!("attaching needs root. Run: sudo -E env \"PATH=$PATH\" cargo xtask screenshots");
    }
    let profile = if arguments.debug { build::Profile::Debug } else { build::Profile::Release };
    let program =
        |package: &str, name: &str| build::programs_as(package, &[name], profile).map(|mut all| all.remove(0));
    let inferspan = program("inferspan", "inferspan")?;
    let engine = program(build::ENGINE_CRATE, "demo-engine")?;
    let traffic = program(build::TESTS_CRATE, "demo-traffic")?;
    let browser = browser()?;
    let interrupt = Interrupt::catch("xtask: ")?;
    let folder = build::target_folder().join("screenshots");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;

    let mut command = Command::new(engine);
    command.args(["--port", "0", "--served-model-name", "Qwen/Qwen3-8B"]);
    // Few blocks and a small batch: requests wait, are preempted, and long prompts are computed in chunks.
    command.args(["--blocks", "96", "--max-num-batched-tokens", "256", "--step-ms", "9"]);
    let mut server = shell::step("starting the demo server", || Server::start_demo(&mut command, &folder, &interrupt))?;
    let [port] = http::free_ports()?;
    let address = format!("127.0.0.1:{port}");
    let jaeger = arguments.jaeger_ui.as_deref().map(|ui| jaeger(ui, &folder, &interrupt)).transpose()?;
    let mut attach = Command::new(inferspan);
    attach.args(["attach", "-p", &server.pid.to_string(), "--ui", &address]);
    if let Some(jaeger) = &jaeger {
        attach.args(["--otlp", &jaeger.otlp_grpc]);
    }
    let mut attach = Process::start("attach", &mut attach, &folder)?;
    shell::step("attaching", || attached::wait(&mut attach, &mut [&mut server.process], &interrupt))?;

    let mut load = Command::new(traffic);
    load.args(["--url", &server.url, "--model", &server.model, "--seconds", &TRAFFIC.to_string()]);
    load.args(["--clients", CLIENTS, "--brief"]);
    let mut load = Process::start("traffic", &mut load, &folder)?;
    shell::step(&format!("letting {} s of traffic pass", arguments.after), || {
        interrupt.sleep(Duration::from_secs(arguments.after));
        interrupt.check()
    })?;
    load.check_running()?;
    let url = format!("http://{address}/");
    let request = wait_for("a request that waited", Duration::from_secs(30), &interrupt, &mut [&mut attach], || {
        Ok(slowest(&http::json(&format!("{url}ui/api/requests"), &[("limit", RECENT)])?))
    })?;
    shell::step("taking pictures", || photograph(&browser, &url, &request))?;
    jaeger.map_or(Ok(()), |jaeger| {
        let trace = request.split('/').nth(2).context("the address of a request names its trace")?;
        let file = path(&shell::root().join("docs/images/jaeger.png"))?;
        let shown = [file, format!("/trace/{trace}"), ".span-row".into()];
        browser.run(&jaeger.query, "foreign", shown)?;
        measure("jaeger.png")
    })
}

/// A Jaeger that serves this UI.
fn jaeger(ui: &Path, folder: &Path, interrupt: &Interrupt) -> Result<Jaeger> {
    let program = setup::jaeger::ensure()?;
    let ui = path(&std::path::absolute(ui)?)?;
    let command = |config: &Path| {
        let mut command = Command::new(program);
        let assets = format!("extensions.jaeger_query.ui.assets_path={ui}");
        command.arg("--config").arg(config).args(["--set", &assets]);
        command
    };
    shell::step("starting Jaeger", || Jaeger::start_with(folder, Duration::ZERO, interrupt, command))
}

fn browser() -> Result<Browser> {
    let setup::browser::Browser { chromium, node, packages } = setup::browser::ensure()?;
    Ok(Browser::new(node, packages, chromium))
}

/// Of those with one generation that gave tokens, the one that waited longest to be scheduled, as the page's address names it.
fn slowest(answer: &Value) -> Option<String> {
    let requests = answer["requests"].as_array()?;
    let queued = |request: &Value| request["seconds"]["queue"].as_f64().unwrap_or(0.0);
    let is_plain = |request: &&Value| {
        let is_long = request["output_tokens"].as_u64().is_some_and(|tokens| tokens > 20);
        is_long && request["generations"].as_array().is_some_and(|all| all.len() == 1)
    };
    let one = requests.iter().filter(is_plain).max_by(|a, b| queued(a).total_cmp(&queued(b)))?;
    Some(format!("#/request/{}/{}", one["trace_id"].as_str()?, one["span_id"].as_str()?))
}

fn photograph(browser: &Browser, url: &str, request: &str) -> Result<()> {
    let folder = shell::root().join("docs/images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut arguments = Vec::new();
    for (file, what, scheme, width, height) in PICTURES {
        let hash = if what == "request" { request } else { "" };
        arguments.extend([path(&folder.join(file))?, hash.to_owned(), scheme.into(), width.into(), height.into()]);
    }
    let seen = browser.run(url, "pictures", arguments)?;
    if seen["complaints"].as_array().is_none_or(|complaints| !complaints.is_empty()) {
        bail!("the page complained: {}", seen["complaints"]);
    }
    PICTURES.iter().try_for_each(|(file, ..)| measure(file))
}

/// Refuses a picture that is too large.
fn measure(file: &str) -> Result<()> {
    let path = shell::root().join("docs/images").join(file);
    let bytes = fs::metadata(&path).with_context(|| format!("{} is missing", path.display()))?.len();
    println!("{file:<20} {} kB", bytes / 1000);
    if bytes > MOST {
        bail!("{file} has {bytes} bytes, more than {MOST}");
    }
    Ok(())
}

fn path(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}
