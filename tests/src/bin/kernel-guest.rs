//! What `cargo xtask kernels` runs on another kernel: the demo server, traffic and `inferspan attach`, and their counts side by side.
//!
//! Enters: programs, the BPF object and the fake CUDA libraries, by their paths. Leaves: lines of JSON, one a finding (`programs`, a `level`,
//! the `end`), on stdout. The first process of a machine prepares it (file systems, the loopback), runs itself again with the second serial
//! port as stdout, and turns the machine off. Nothing is judged here but what the tests' judge judges: that the tables are equal.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::Program;
use clap::Parser;
use inferspan::attach::Level;
use inferspan::attach::loader::{Options, Probes};
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::{Attach, Page, Target, compare};
use inferspan_tests::traffic::{Kind, Load, Until};
use serde::Serialize;
use serde_json::{Value, json};

/// How often a page is read that lacks requests; each takes 0.7 s or more.
const SETTLING: usize = 20;

/// Counts of a kernel.
#[derive(Debug, Parser)]
struct Arguments {
    /// The demo server.
    #[arg(long, default_value = "/bin/demo-engine")]
    engine: PathBuf,
    /// Folder of the fake CUDA libraries.
    #[arg(long, default_value = "/cuda")]
    cuda: PathBuf,
    /// Where to write.
    #[arg(long, default_value = "/run/kernel-guest")]
    folder: PathBuf,
    /// Requests at each level.
    #[arg(long, default_value_t = 80)]
    requests: usize,
}

fn main() -> Result<()> {
    if std::process::id() == 1 {
        return machine::run();
    }
    let error = run(&Arguments::parse()).err().map(|error| format!("{error:#}"));
    say(&json!({"end": {"error": error}}))
}

/// A finding, for whoever reads our stdout.
fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write what was found")
}

fn run(arguments: &Arguments) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    say(&json!({"programs": programs()?, "release": release.trim()}))?;
    for level in [Level::Requests, Level::Steps] {
        let found = at(level, arguments).with_context(|| format!("level {}", name(level)))?;
        say(&json!({ "level": found }))?;
    }
    Ok(())
}

fn name(level: Level) -> &'static str {
    if level == Level::Requests { "requests" } else { "steps" }
}

/// Every program of the object, given to the kernel: how many it took, of which kind, and what it said to the others.
fn programs() -> Result<Value> {
    let options = Options { level: Level::Kernels, ..Options::default() };
    let (mut probes, _rings) = Probes::load(&options).context("the maps")?;
    let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
    let mut refused: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for (name, program) in probes.ebpf_mut().programs_mut() {
        let (kind, loaded) = match program {
            Program::RawTracePoint(program) => ("tracepoint", program.load()),
            Program::UProbe(program) => ("uprobe", program.load()),
            other => anyhow::bail!("{name} is a program of another kind: {:?}", other.prog_type()),
        };
        match loaded {
            Ok(()) => *taken.entry(kind).or_default() += 1,
            Err(error) => {
                let said = format!("{:#}", anyhow::Error::from(error));
                refused.entry(kind).or_default().insert(name.to_owned(), said);
            }
        }
    }
    Ok(json!({"taken": taken, "refused": refused}))
}

/// The demo server under traffic, traced at a level.
fn at(level: Level, arguments: &Arguments) -> Result<Value> {
    let folder = arguments.folder.join(name(level));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let account = folder.join("cuda.jsonl");
    let mut command = Command::new(&arguments.engine);
    // Few blocks, so that there are preemptions, and a small budget, so that prompts are chunked. Steps so long that the front end of a slow
    // machine is not far behind: what waits there when a client leaves is dropped.
    command.args(["--blocks", "32", "--max-num-batched-tokens", "128", "--step-ms", "20"]);
    command.arg("--enable-prompt-tokens-details");
    if level != Level::Requests {
        command.arg("--cuda").arg(&arguments.cuda).arg("--cuda-account").arg(&account);
    }
    let engine = DemoEngine::start(command, &folder, |_, announced| Some(announced))?;
    let target = &engine.target;
    target.quiet()?;
    let attach = Attach::start(target.pid, &folder, &["--level", name(level)])?;
    let took = attach.took.as_secs_f64();
    let links = links(attach.pid())?;
    let before = target.quiet()?;
    let done_before = Did::read(&account)?;
    let load = load(target, arguments.requests).run()?;
    let server = target.quiet()?.since(&before);
    // The last step's totals come when its threads are looked at.
    std::thread::sleep(Duration::from_millis(500));
    let requests = load.requests.len() as f64;
    let ours = settled(&attach, requests)?;
    let dropped = dropped(&attach.metrics_text()?);
    let finished = attach.finish()?;
    let cancelled = load.requests.iter().filter(|sent| sent.aborted).map(|sent| sent.generations).sum();
    let table = compare(&server, &ours, &finished.access, cancelled);
    let mut counts = vec![
        Count("requests", requests, ours.sum("inferspan_requests_total", ""), 0.0),
        Count("access log", requests, finished.access.len() as f64, 0.0),
        Count::tokens("prompt", &server, &ours),
        Count::tokens("generation", &server, &ours),
    ];
    if level != Level::Requests {
        counts.extend(Did::read(&account)?.since(&done_before).beside(&ours));
    }
    Ok(json!({
        "name": name(level),
        "attach_seconds": took,
        "links": links,
        "counts": counts,
        "dropped": dropped,
        "faults": table.faults(),
        "table": table.to_string(),
        "said": finished.stderr,
        "access": finished.access,
    }))
}

/// The tracer's page once it has so many requests. A machine that was not let run for a moment has a tracer that is behind.
fn settled(attach: &Attach, requests: f64) -> Result<Page> {
    let mut page = attach.metrics()?;
    for _ in 0..SETTLING {
        if page.sum("inferspan_requests_total", "") >= requests {
            break;
        }
        page = attach.metrics()?;
    }
    Ok(page)
}

/// What is counted, by the server, by inferspan, and how much more inferspan's may be: of what had come when its request was given up, and
/// which the server dropped.
#[derive(Debug, Serialize)]
struct Count(&'static str, f64, f64, f64);

impl Count {
    fn tokens(of: &str, server: &Page, ours: &Page) -> Self {
        let (what, given_up) = match of {
            "prompt" => ("prompt tokens", "given_up_prompt_tokens"),
            _ => ("generation tokens", "given_up_tokens"),
        };
        let theirs = server.sum(&format!("vllm:{of}_tokens_total"), "");
        let ours = ours.sum(&format!("inferspan_{of}_tokens_total"), "");
        Self(what, theirs, ours, server.sum(&format!("vllm:demo_{given_up}_total"), ""))
    }
}

fn load(target: &Target, requests: usize) -> Load {
    let (url, model) = (target.url.clone(), target.model.clone());
    Load { url, model, kinds: Kind::ALL.to_vec(), clients: 4, until: Until::Requests(requests), seed: 5 }
}

/// What a tracer counts as lost, by stage.
fn dropped(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("inferspan_events_dropped_total{")?.split_once("} "));
    lines
        .filter_map(|(labels, count)| Some((labels.to_owned(), count.parse().ok()?)))
        .filter(|(_, n)| *n > 0.0)
        .collect()
}

/// What a process holds of probes, by kind of link, as its descriptors say.
fn links(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).context("cannot list the tracer's descriptors")? {
        let path = entry?.path();
        // It may be closed by now.
        let Ok(to) = fs::read_link(&path) else { continue };
        let kind = match to.to_string_lossy().as_ref() {
            "anon_inode:[perf_event]" => "perf event".to_owned(),
            "anon_inode:bpf_link" | "anon_inode:bpf-link" => link_kind(&path),
            _ => continue,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    Ok(kinds)
}

fn link_kind(descriptor: &Path) -> String {
    let info = descriptor.to_string_lossy().replace("/fd/", "/fdinfo/");
    let text = fs::read_to_string(info).unwrap_or_default();
    let kind = text.lines().find_map(|line| line.strip_prefix("link_type:"));
    kind.map_or("link", str::trim).to_owned()
}

/// What the demo server says that it called of CUDA.
#[derive(Debug, Default)]
struct Did {
    launches: u64,
    graph_launches: u64,
    copies: u64,
}

impl Did {
    /// Nothing, where there is no account.
    fn read(account: &Path) -> Result<Self> {
        let mut did = Self::default();
        let text = if account.exists() { fs::read_to_string(account)? } else { String::new() };
        let sum = |of: &Value| of.as_object().map_or(0, |of| of.values().filter_map(Value::as_u64).sum());
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).context("a line of the account")?;
            did.launches += sum(&line["launches"]);
            did.graph_launches += line["graph_launches"].as_u64().unwrap_or(0);
            did.copies += sum(&line["copies"]);
        }
        Ok(did)
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            launches: self.launches - earlier.launches,
            graph_launches: self.graph_launches - earlier.graph_launches,
            copies: self.copies - earlier.copies,
        }
    }

    fn beside(&self, ours: &Page) -> [Count; 3] {
        let row = |what, did: u64, name: &str| Count(what, did as f64, ours.sum(name, ""), 0.0);
        [
            row("launches", self.launches, "inferspan_cuda_launches_total"),
            row("graph launches", self.graph_launches, "inferspan_cuda_graph_launches_total"),
            row("copies", self.copies, "inferspan_cuda_copies_total"),
        ]
    }
}

/// The machine whose first process this is.
mod machine {
    use std::ffi::CStr;
    use std::fs::{self, OpenOptions};
    use std::process::{Command, Stdio};

    use anyhow::{Context as _, Result, ensure};

    /// Where it stands, and of which type: what inferspan and the demo server read, and room for what they write.
    const FILE_SYSTEMS: [(&CStr, &CStr); 6] = [
        (c"/proc", c"proc"),
        (c"/sys", c"sysfs"),
        (c"/dev", c"devtmpfs"),
        (c"/sys/kernel/tracing", c"tracefs"),
        (c"/tmp", c"tmpfs"),
        (c"/run", c"tmpfs"),
    ];

    /// The binary under test, for the judge.
    const INFERSPAN: (&str, &str) = ("INFERSPAN_BIN", "/bin/inferspan");

    /// The whole life of a machine. An error ends its first process, and with it the machine, with the reason on its console.
    pub(super) fn run() -> Result<()> {
        prepare()?;
        let found = OpenOptions::new().write(true).open("/dev/ttyS1").context("cannot open the second serial port")?;
        let me = std::env::current_exe().context("this program has no path")?;
        let ended = Command::new(me).env(INFERSPAN.0, INFERSPAN.1).stdin(Stdio::null()).stdout(found).status();
        let ended = ended.context("cannot start the check")?;
        ensure!(ended.success(), "the check ended with {ended}");
        // SAFETY: no arguments; a number.
        unsafe {
            libc::sync();
            libc::reboot(libc::RB_POWER_OFF);
        }
        Ok(())
    }

    /// Mounts file systems and brings up the loopback.
    fn prepare() -> Result<()> {
        for (place, kind) in FILE_SYSTEMS {
            // A part of /sys is there already.
            let _ = fs::create_dir_all(place.to_str()?);
            // SAFETY: NUL-terminated texts, and no data.
            let failed = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
            ensure!(failed == 0, "cannot mount {}: {}", place.to_string_lossy(), std::io::Error::last_os_error());
        }
        loopback()
    }

    fn loopback() -> Result<()> {
        // SAFETY: three numbers.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
        ensure!(socket >= 0, "no socket: {}", std::io::Error::last_os_error());
        // SAFETY: all bits zero are a valid request.
        let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        // SAFETY: a socket of ours and a request that lives across the call.
        let failed = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) };
        ensure!(failed == 0, "the loopback does not come up: {}", std::io::Error::last_os_error());
        Ok(())
    }
}
