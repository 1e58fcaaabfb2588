//! A program of the fixture: what it is started with, and while it runs.
//!
//! Enters: a script, the libraries that it finds. Leaves: a process that waits before its script, where the script says `wait`, and
//! after it, so that a tracer can come and go at any time; then its account. A program that fails is an error with what it said.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::truth::Truth;

/// How the program patches its driver in memory before it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// The mapping is executable and not writable again, as UCX leaves it: a uprobe there would kill the program.
    ReadExecute,
    /// The mapping stays writable: a uprobe there would not be hit.
    ReadWriteExecute,
}

/// What the program calls.
#[derive(Debug, Clone, Copy)]
pub(super) enum User {
    Runtime { version: u32, per_thread: bool },
    Driver,
}

/// A program that was not started yet.
#[derive(Debug, Clone)]
pub struct Program {
    folder: PathBuf,
    user: User,
    libraries: Vec<PathBuf>,
    patch: Option<Patch>,
    environment: Vec<(String, OsString)>,
    script: String,
}

impl Program {
    pub(super) fn new(folder: PathBuf, user: User, libraries: Vec<PathBuf>) -> Self {
        Self { folder, user, libraries, patch: None, environment: Vec::new(), script: String::new() }
    }

    /// What it does (`fixtures/cuda/README.md`).
    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// Calls the `_ptsz` and `_ptds` functions, as a program does that was built with a default stream a thread.
    #[must_use]
    pub fn per_thread(mut self) -> Self {
        if let User::Runtime { per_thread, .. } = &mut self.user {
            *per_thread = true;
        }
        self
    }

    /// Patches `cuLaunchKernel` and `cuMemAlloc_v2` in its memory.
    #[must_use]
    pub fn patched(mut self, patch: Patch) -> Self {
        self.patch = Some(patch);
        self
    }

    /// Opens CUDA when it is let go, behind `ready`.
    #[must_use]
    pub fn late(self) -> Self {
        self.with_variable("FAKE_CUDA_LATE", "1".into())
    }

    /// Counts its launch calls in this file, which outlives it ([`Pulse`]).
    #[must_use]
    pub fn with_pulse(self, file: &Path) -> Self {
        self.with_variable("FAKE_CUDA_PULSE", file.into())
    }

    fn with_variable(mut self, name: &str, value: OsString) -> Self {
        self.environment.push((name.to_owned(), value));
        self
    }

    /// Looks for libraries here first.
    #[must_use]
    pub fn with_libraries(mut self, folder: PathBuf) -> Self {
        self.libraries.insert(0, folder);
        self
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.folder.join(match self.user {
            User::Driver => "program-driver".to_owned(),
            User::Runtime { version, per_thread } => {
                format!("program-{version}{}", if per_thread { "-per-thread" } else { "" })
            }
        })
    }

    /// The program and its arguments, for a caller that starts it through another one (`unshare`).
    pub fn words(&self) -> Vec<OsString> {
        let patch = match self.patch {
            Some(Patch::ReadExecute) => &["--patch", "rx"][..],
            Some(Patch::ReadWriteExecute) => &["--patch", "rwx"][..],
            None => &[],
        };
        let arguments = patch.iter().map(OsString::from).chain([OsString::from(&self.script)]);
        [self.path().into_os_string()].into_iter().chain(arguments).collect()
    }

    /// Starts it and waits until it is ready.
    pub fn spawn(&self) -> Result<Running> {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        self.spawn_with(command)
    }

    /// The same by a command that ends in [`Program::words`].
    pub fn spawn_with(&self, mut command: Command) -> Result<Running> {
        let path = std::env::join_paths(&self.libraries).context("a colon in the cache folder's path")?;
        command.env("LD_LIBRARY_PATH", path).envs(self.environment.iter().map(|(name, value)| (name, value)));
        Running::spawn(command)
    }
}

/// Launch calls of a program, whatever became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    pub begun: u64,
    /// At most one a thread less, of a program that was killed.
    pub done: u64,
}

impl Pulse {
    /// Of all threads of the program that was started with this file.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let (numbers, _) = bytes.as_chunks::<8>();
        let sum = |place: usize| numbers.iter().skip(place).step_by(2).map(|number| u64::from_ne_bytes(*number)).sum();
        Ok(Self { begun: sum(0), done: sum(1) })
    }
}

/// A started program; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    is_done: bool,
}

impl Running {
    /// Starts any program that says the same words, and waits until it is ready.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stdin = child.stdin.take().context("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut running = Self { child, stdin, stdout, is_done: false };
        running.reach("ready")?;
        Ok(running)
    }

    /// Its process, or that of the command that it was started with.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it go on: from `ready`, or from a `wait` of its script.
    pub fn start(&mut self) -> Result<()> {
        self.stdin.write_all(b"go\n").context("the program is gone")
    }

    /// Waits until it is at the next `wait` of its script.
    pub fn reach_wait(&mut self) -> Result<()> {
        self.reach("waiting")
    }

    /// Waits until its script is over; it stays there until [`Running::finish`].
    pub fn reach_end(&mut self) -> Result<()> {
        if !self.is_done {
            self.reach("done")?;
            self.is_done = true;
        }
        Ok(())
    }

    /// Waits until its script is over, lets it end, and gives its account.
    pub fn finish(self) -> Result<Truth> {
        serde_json::from_str(&self.account()?).context("the program's account")
    }

    /// The same as it says it.
    pub fn account(mut self) -> Result<String> {
        self.reach_end()?;
        self.start()?;
        let line = self.line()?;
        let status = self.child.wait().context("cannot wait")?;
        ensure!(status.success(), "the program failed: {status}");
        Ok(line)
    }

    /// Kills it, wherever it is.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill")?;
        self.child.wait().context("cannot wait")?;
        Ok(())
    }

    /// Waits until it is gone; for scripts that `exit`.
    pub fn wait(mut self) -> Result<ExitStatus> {
        self.child.wait().context("cannot wait")
    }

    fn reach(&mut self, word: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(line.trim() == word, "the program said `{}` and not `{word}`", line.trim());
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line).context("cannot read what the program says")? == 0 {
            let status = self.child.wait().context("cannot wait")?;
            bail!("the program ended: {status}; stderr says why");
        }
        Ok(line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a test that fails leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
