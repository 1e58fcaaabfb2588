//! A program of the fixture: what it is started with, and while it runs.
//!
//! Enters: a script, the libraries that it finds. Leaves: a process that waits before its script, where the script says `wait`, and
//! after it, so that a tracer can come and go at any time; then its account. A program that fails is an error with what it said.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
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
    script: String,
}

impl Program {
    pub(super) fn new(folder: PathBuf, user: User, libraries: Vec<PathBuf>) -> Self {
        Self { folder, user, libraries, patch: None, script: String::new() }
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
        let mut child = command
            .env("LD_LIBRARY_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdin = child.stdin.take().context("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut running = Running { child, stdin, stdout, is_done: false };
        running.reach("ready")?;
        Ok(running)
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
    pub fn finish(mut self) -> Result<Truth> {
        self.reach_end()?;
        self.start()?;
        let line = self.line()?;
        let status = self.child.wait().context("cannot wait")?;
        ensure!(status.success(), "the program failed: {status}");
        serde_json::from_str(&line).context("the program's account")
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
