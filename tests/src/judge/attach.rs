//! The `inferspan attach` or `inferspan record` process under test.
//!
//! What was recorded is replayed at the end, and what the replay exports is held against what the live run exported.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Page;
use super::Traces;
use crate::traffic::Client;
use inferspan_harness::attached::Attached;
use inferspan_harness::proc;
use inferspan_harness::process::Signal;

/// From Ctrl-C to its end.
const DETACH_LIMIT: Duration = Duration::from_secs(30);

/// The binary under test: `INFERSPAN_BIN`, else the newest build beside the test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("INFERSPAN_BIN") {
        return PathBuf::from(path);
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|root| root.join("target")).unwrap_or_default();
    let built = ["release", "debug"].map(|profile| target.join(profile).join("inferspan"));
    let age = |path: &PathBuf| fs::metadata(path).and_then(|data| data.modified()).ok();
    built.into_iter().filter(|path| path.exists()).max_by_key(age).unwrap_or_else(|| {
        panic!("no inferspan binary: run `cargo build -p inferspan`, or name one with INFERSPAN_BIN")
    })
}

/// A running `inferspan attach`.
#[derive(Debug)]
pub struct Attach {
    attached: Attached,
    folder: PathBuf,
    metrics: String,
    recording: Option<PathBuf>,
    /// From the start of the process to its word that it is attached.
    pub took: Duration,
}

/// What it left.
#[derive(Debug)]
pub struct Finished {
    pub access: Vec<Value>,
    pub traces: Traces,
    pub stderr: String,
    /// Where the replay of its recording, if it made one, says something else.
    pub replay_faults: Vec<String>,
}

impl Attach {
    /// Attaches to `pid` and waits for the word that it is done. What it writes goes to `folder`.
    pub fn start(pid: u32, folder: &Path, arguments: &[&str]) -> io::Result<Self> {
        let traces = folder.join("traces.jsonl");
        let traces = ["--traces-out", traces.to_str().ok_or_else(|| io::Error::other("a folder without a name"))?];
        Self::run("attach", pid, folder, &[&traces, arguments].concat())
    }

    /// The same with a recording.
    pub fn record(pid: u32, folder: &Path) -> io::Result<Self> {
        let traces = folder.join("traces.jsonl");
        let traces = traces.to_str().ok_or_else(|| io::Error::other("a folder without a name"))?;
        Self::record_with(pid, folder, &["--traces-out", traces])
    }

    /// A recording, with metrics and the access log only.
    pub fn record_without_traces(pid: u32, folder: &Path) -> io::Result<Self> {
        Self::record_with(pid, folder, &[])
    }

    fn record_with(pid: u32, folder: &Path, arguments: &[&str]) -> io::Result<Self> {
        let file = folder.join("run.isrec");
        let output = ["-o", file.to_str().ok_or_else(|| io::Error::other("a folder without a name"))?];
        let mut attach = Self::run("record", pid, folder, &[&output, arguments].concat())?;
        attach.recording = Some(file);
        Ok(attach)
    }

    /// The same, with metrics and the access log only, as a server that is watched all the time is.
    pub fn start_without_traces(pid: u32, folder: &Path, arguments: &[&str]) -> io::Result<Self> {
        Self::run("attach", pid, folder, arguments)
    }

    fn run(verb: &str, pid: u32, folder: &Path, arguments: &[&str]) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let metrics = format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let mut command = Command::new(binary());
        command.args([verb, "-p", &pid.to_string(), "--metrics", &metrics]);
        command.arg("--access-log").arg(folder.join("access.jsonl")).args(arguments);
        command.stdout(fs::File::create(folder.join("stdout.txt"))?);
        let attached = Attached::start(&mut command).map_err(io::Error::other)?;
        let took = attached.took;
        Ok(Self { attached, folder: folder.to_owned(), metrics, recording: None, took })
    }

    /// The text of the tracer's own `/metrics`.
    pub fn metrics_text(&self) -> io::Result<String> {
        Ok(Client::new(&format!("http://{}", self.metrics)).get("/metrics")?.body)
    }

    /// The tracer's own `/metrics`, once nothing moves in it any more.
    pub fn metrics(&self) -> io::Result<Page> {
        let read = || -> io::Result<Page> { Ok(Page::parse(&self.metrics_text()?)) };
        // What is in flight between the server's last byte and the page is bounded by a second or two.
        let mut before = read()?;
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(700));
            let page = read()?;
            let count = |page: &Page| {
                page.sum("inferspan_requests_total", "") + page.sum("inferspan_generation_tokens_total", "")
            };
            if (count(&page) - count(&before)).abs() < 0.5 {
                return Ok(page);
            }
            before = page;
        }
        Ok(before)
    }

    pub fn pid(&self) -> u32 {
        self.attached.pid()
    }

    /// CPU time used so far, seconds.
    pub fn cpu(&self) -> f64 {
        proc::cpu_time(self.attached.pid()).as_secs_f64()
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.attached.signal(signal).map_err(io::Error::other)
    }

    /// Ctrl-C, and what was written.
    pub fn finish(self) -> io::Result<Finished> {
        self.signal(Signal::INT)?;
        let (status, stderr) = self.attached.end(DETACH_LIMIT).map_err(io::Error::other)?;
        if !matches!(status.code(), Some(0 | 130)) {
            return Err(io::Error::other(format!("inferspan ended with {status}:\n{stderr}")));
        }
        let access = fs::read_to_string(self.folder.join("access.jsonl"))?;
        let access = access
            .lines()
            .map(|line| serde_json::from_str(line).map_err(|error| io::Error::other(format!("{error}: {line}"))))
            .collect::<io::Result<_>>()?;
        let traces = self.folder.join("traces.jsonl");
        let traces = if traces.exists() { Traces::read(&traces)? } else { Traces::default() };
        let replay_faults = self.recording.as_deref().map(|file| replay(file, &self.folder)).transpose()?;
        Ok(Finished { access, traces, stderr, replay_faults: replay_faults.unwrap_or_default() })
    }
}

/// Replays a recording and compares the files with those of the live run.
fn replay(file: &Path, folder: &Path) -> io::Result<Vec<String>> {
    let outputs = [("--access-log", "access.jsonl"), ("--traces-out", "traces.jsonl")];
    let mut command = Command::new(binary());
    command.arg("replay").arg(file);
    for (flag, name) in outputs.iter().filter(|(_, name)| folder.join(name).exists()) {
        command.arg(flag).arg(folder.join(format!("replayed-{name}")));
    }
    let start = Instant::now();
    let ended = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    let mut faults = Vec::new();
    if ended.status.code() != Some(0) {
        faults.push(format!("the replay ended with {}: {said}", ended.status));
    }
    for (_, name) in outputs.iter().filter(|(_, name)| folder.join(name).exists()) {
        let (live, replayed) = (fs::read(folder.join(name))?, fs::read(folder.join(format!("replayed-{name}")))?);
        if live.is_empty() || live != replayed {
            faults.push(format!("{name}: {} bytes live, {} replayed, and they differ", live.len(), replayed.len()));
        }
        eprintln!("{name}: {} bytes, the same from a recording of {} bytes", live.len(), fs::metadata(file)?.len());
    }
    eprintln!("replayed in {:.2} s: {}", start.elapsed().as_secs_f64(), said.lines().next().unwrap_or_default());
    Ok(faults)
}
