//! A program that runs, traced or not.
//!
//! Enters: a command that says `ready`, waits for a line, works, says `done`, waits for a line and gives its account. Leaves: the account,
//! and what Inferspan saw between. Everything has a limit of time; what is started is killed with its owner.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use inferspan_gpu_check::truth::Truth;
use inferspan_harness::attached::Attached;

use crate::compare::Kernel;

/// For a program's next word, and for its end. PyTorch loads for a minute from a cold disk.
const LIMIT: Duration = Duration::from_mins(5);
/// For Inferspan to end behind its target: it reads libraries of gigabytes.
const END_LIMIT: Duration = Duration::from_mins(2);

/// What Inferspan saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) page: String,
    pub(crate) kernels: Vec<Kernel>,
    /// Its stderr.
    pub(crate) said: String,
}

/// A started process; killed when dropped.
pub(crate) struct Started {
    child: Child,
    what: String,
}

impl Started {
    pub(crate) fn new(command: &mut Command) -> Result<Self> {
        let what = format!("{command:?}");
        let child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        Ok(Self { child, what })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lines of a pipe, as they come. A thread reads, so that waiting for one can end.
    pub(crate) fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        lines
    }

    pub(crate) fn stdout(&mut self) -> Result<Receiver<String>> {
        Ok(Self::lines(self.child.stdout.take().context("stdout is no pipe")?))
    }

    pub(crate) fn end(&mut self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().context("cannot wait")? {
                ensure!(status.success(), "{}: {status}", self.what);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("{} does not end", self.what)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It has ended already, unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that stands at `ready`.
pub(crate) struct Program {
    started: Started,
    lines: Receiver<String>,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut started = Started::new(command)?;
        let lines = started.stdout()?;
        let program = Self { started, lines };
        program.reach("ready")?;
        Ok(program)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.started.pid()
    }

    fn line(&self) -> Result<String> {
        let line = self.lines.recv_timeout(LIMIT);
        line.with_context(|| format!("{} ended or stands still; stderr says why", self.started.what))
    }

    /// Libraries may print lines of their own.
    fn reach(&self, word: &str) -> Result<()> {
        while self.line()?.trim() != word {}
        Ok(())
    }

    fn go(&mut self) -> Result<()> {
        self.started.child.stdin.as_mut().context("stdin is no pipe")?.write_all(b"go\n").context("it is gone")
    }

    /// Lets it work and end.
    pub(crate) fn finish(mut self) -> Result<Truth> {
        self.go()?;
        self.reach("done")?;
        self.go()?;
        let account = loop {
            let line = self.line()?;
            if line.starts_with('{') {
                break line;
            }
        };
        self.started.end(LIMIT)?;
        serde_json::from_str(&account).context("the program's account")
    }
}

/// Runs it to its end with Inferspan attached at a level; what Inferspan writes stays in `folder`.
pub(crate) fn run(inferspan: &Path, program: &mut Command, level: &str, folder: &Path) -> Result<(Truth, Seen)> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let program = Program::start(program)?;
    let (kernels, page) = (folder.join("kernels.jsonl"), folder.join("metrics.txt"));
    let mut command = Command::new(inferspan);
    command.args(["attach", "--cuda-only", "-p", &program.pid().to_string(), "--level", level]);
    command.arg("--kernels-out").arg(&kernels).arg("--metrics-out").arg(&page);
    let tracer = Attached::start(command.stdout(Stdio::null()))?;
    let truth = program.finish()?;
    // It ends with its target.
    let (status, said) = tracer.end(END_LIMIT)?;
    ensure!(status.success(), "inferspan: {status}:\n{said}");
    fs::write(folder.join("stderr.txt"), &said).context("cannot write what inferspan said")?;
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("inferspan did not write {}", path.display()));
    let rows: Result<Vec<Kernel>, _> = read(&kernels)?.lines().map(serde_json::from_str).collect();
    Ok((truth, Seen { page: read(&page)?, kernels: rows.context("a row of --kernels-out")?, said }))
}
