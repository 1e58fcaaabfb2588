//! `inferspan`, started, until it says that it is attached.
//!
//! Enters: a command that attaches. Leaves: the running process once its probes are there, and at its end all that it said on stderr.
//! One that ends or stands still before is an error with what it said; it is killed with its owner.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::{Process, Signal, send};
use crate::wait::{Interrupt, wait_for};

/// It reads libraries of gigabytes, and on older kernels places a probe in 0.1 s.
const LIMIT: Duration = Duration::from_mins(2);
/// How often its end is looked for.
const POLL: Duration = Duration::from_millis(5);

/// Whether it is attached, by what it said on stderr so far.
pub fn is_said(stderr: &str) -> bool {
    stderr.lines().any(|line| line.starts_with("inferspan: attached"))
}

/// Waits until a tracer whose stderr is a file is attached, as long as `others` run.
pub fn wait(tracer: &mut Process, others: &mut [&mut Process], interrupt: &Interrupt) -> Result<()> {
    let errors = tracer.errors.clone();
    let mut processes = vec![tracer];
    processes.extend(others.iter_mut().map(|other| &mut **other));
    wait_for("inferspan to attach", LIMIT, interrupt, &mut processes, || Ok(said_in(&errors).then_some(())))
}

/// As [`is_said`], of what is in a file; one that cannot be read says nothing.
fn said_in(file: &Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|said| is_said(&said))
}

/// A tracer whose stderr is read here.
#[derive(Debug)]
pub struct Attached {
    child: Child,
    /// Gives all of stderr at its end.
    reader: Option<JoinHandle<String>>,
    /// What it said until it was attached.
    pub said: String,
    /// From its start until then.
    pub took: Duration,
}

impl Attached {
    /// Runs `command`, whose stderr it takes.
    pub fn start(command: &mut Command) -> Result<Self> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stderr = child.stderr.take().context("stderr is no pipe")?;
        let (sender, lines) = channel();
        let reader = std::thread::spawn(move || read(stderr, &sender));
        let mut attached = Self { child, reader: Some(reader), said: String::new(), took: Duration::ZERO };
        attached.wait(&lines)?;
        attached.took = started.elapsed();
        Ok(attached)
    }

    fn wait(&mut self, lines: &Receiver<String>) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.push_str(&line);
                    if is_said(&line) {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("inferspan did not attach within {LIMIT:?}:\n{}", self.said),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().context("cannot wait")?;
                    bail!("inferspan ended before it was attached ({status}):\n{}", self.said);
                }
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal).context("it is gone")
    }

    /// Waits for its end: how it ended, and all of stderr. It is killed after `limit`.
    pub fn end(mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let until = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("cannot wait")? {
                break status;
            }
            if Instant::now() >= until {
                bail!("inferspan did not end within {limit:?}");
            }
            std::thread::sleep(POLL);
        };
        let said = self.reader.take().map(JoinHandle::join).transpose();
        let said = said.map_err(|_| anyhow::anyhow!("reading stderr failed"))?.unwrap_or_default();
        Ok((status, said))
    }
}

/// Gives lines away as they come, as long as somebody takes them; all of them at the end.
fn read(stderr: ChildStderr, lines: &Sender<String>) -> String {
    let mut all = String::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let line = line + "\n";
        all.push_str(&line);
        // Nobody listens any more once it is attached.
        let _ = lines.send(line);
    }
    all
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It has ended already, unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn it_is_there_when_it_says_so_and_all_it_said_is_kept() {
        let script =
            "echo a warning >&2; echo 'inferspan: attached to 1 processes' >&2; read line; echo more >&2; exit 3";
        let attached = Attached::start(&mut shell(script)).unwrap();
        assert_eq!(attached.said.lines().count(), 2);
        let (status, said) = attached.end(Duration::from_secs(10)).unwrap();
        assert_eq!((status.code(), said.lines().count()), (Some(3), 3), "{said}");
    }

    #[test]
    fn one_that_ends_before_is_an_error_with_what_it_said() {
        let error = Attached::start(&mut shell("echo no such process >&2; exit 3")).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such process"), "{error}");
    }
}
