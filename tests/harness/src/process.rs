//! Processes, each in a group of its own, and gone with all that it started when its owner is.
//!
//! Enters: a command and a folder for what it prints. Leaves: a handle that watches and stops it. One that ends early, ends
//! badly or does not end is an error with the end of what it printed. An owner that is itself killed takes the process with
//! it, though not what that started; the kernel counts the thread that started it as the owner.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group, set_parent_process_death_signal};

use crate::wait::{Interrupt, POLL};

/// How long a process may take to stop before it is killed. vLLM takes a few seconds.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A process and everything it starts. Dropping it stops them all.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    group: Pid,
    stopped: bool,
    patience: Duration,
    /// Copies what it prints on its terminal, if it has one.
    terminal: Option<JoinHandle<()>>,
    /// Holds what it prints to stdout and, in `errors`, to stderr.
    pub output: PathBuf,
    pub errors: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to `<folder>/<name>.out` and `.err`.
    pub fn start(name: &'static str, command: &mut Command, folder: &Path) -> Result<Self> {
        let output = folder.join(format!("{name}.out"));
        let errors = folder.join(format!("{name}.err"));
        let create = |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
        command.stdin(Stdio::null()).stdout(create(&output)?).stderr(create(&errors)?);
        let child = spawn(command)?;
        let group = Pid::from_child(&child);
        Ok(Self { name, child, group, stopped: false, patience: STOP_LIMIT, terminal: None, output, errors })
    }

    /// Like [`Process::start`], but its stdout is a terminal, so that it prints what a user sees.
    pub fn start_on_terminal(name: &'static str, command: &mut Command, folder: &Path) -> Result<Self> {
        let output = folder.join(format!("{name}.out"));
        let errors = folder.join(format!("{name}.err"));
        let create = |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
        let (ours, theirs) = open_terminal(COLUMNS).context("cannot open a pseudo-terminal")?;
        let copy = create(&output)?;
        command.stdin(Stdio::null()).stdout(theirs).stderr(create(&errors)?);
        let child = spawn(command)?;
        // The command still holds the other end, and the reader would never see the end.
        command.stdout(Stdio::null());
        let group = Pid::from_child(&child);
        let terminal = Some(std::thread::spawn(move || copy_terminal(ours, copy)));
        Ok(Self { name, child, group, stopped: false, patience: STOP_LIMIT, terminal, output, errors })
    }

    /// Like [`Process::start`], but all that it prints goes to one terminal of so many columns, as it does at a user's.
    pub fn start_in_terminal(name: &'static str, command: &mut Command, folder: &Path, columns: u16) -> Result<Self> {
        let output = folder.join(format!("{name}.out"));
        let (ours, theirs) = open_terminal(columns).context("cannot open a pseudo-terminal")?;
        let copy = File::create(&output).with_context(|| format!("cannot write {}", output.display()))?;
        command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
        let child = spawn(command)?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let group = Pid::from_child(&child);
        let terminal = Some(std::thread::spawn(move || copy_terminal(ours, copy)));
        let errors = output.clone();
        Ok(Self { name, child, group, stopped: false, patience: STOP_LIMIT, terminal, output, errors })
    }

    /// Kills it after `patience` when it does not stop at its drop.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails when it has ended, with the end of what it printed.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().with_context(|| format!("cannot watch {}", self.name))? {
            self.stopped = true;
            bail!("{} ended by itself: {}\n{}", self.name, describe(status), self.tail(15));
        }
        Ok(())
    }

    /// Sends `signal` to the process itself and waits until it ended; kills it after `limit`.
    pub fn stop_with(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        // It may be gone already; then waiting below says so.
        let _ = kill_process(self.group, signal);
        let status = self.wait(limit)?;
        self.stopped = true;
        // What it started and left behind.
        let _ = kill_process_group(self.group, Signal::KILL);
        if let Some(terminal) = self.terminal.take() {
            // Nobody holds the other end any more, so it ends.
            let _ = terminal.join();
        }
        status.with_context(|| {
            format!(
                "{} did not stop within {} s of a signal and was killed\n{}",
                self.name,
                limit.as_secs(),
                self.tail(15)
            )
        })
    }

    /// Waits until it ends by itself; kills it after `limit`.
    pub fn end(&mut self, limit: Duration) -> Result<()> {
        self.wait(limit)?;
        self.stopped = true;
        let _ = kill_process_group(self.group, Signal::KILL);
        Ok(())
    }

    /// Waits until it ends by itself; `None` after `limit`.
    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("cannot watch {}", self.name))? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                let _ = kill_process_group(self.group, Signal::KILL);
                self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until it ends by itself, and fails unless it exits 0 within `limit`.
    pub fn finish(&mut self, limit: Duration, interrupt: &Interrupt) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            interrupt.check()?;
            if let Some(status) = self.child.try_wait().with_context(|| format!("cannot watch {}", self.name))? {
                self.stopped = true;
                if !status.success() {
                    bail!("{} failed: {}\n{}", self.name, describe(status), self.tail(15));
                }
                return Ok(());
            }
            if Instant::now() >= end {
                bail!("{} did not finish within {} s\n{}", self.name, limit.as_secs(), self.tail(15));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The last `lines` lines of what it printed to stderr, or to stdout when there is none.
    pub fn tail(&self, lines: usize) -> String {
        let read =
            |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let mut text = read(&self.errors);
        if text.trim().is_empty() {
            text = read(&self.output);
        }
        let all: Vec<&str> = text.lines().collect();
        let shown: Vec<String> =
            all.iter().skip(all.len().saturating_sub(lines)).map(|line| format!("  | {line}")).collect();
        shown.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        let _ = kill_process_group(self.group, Signal::TERM);
        let _ = self.wait(self.patience);
        let _ = kill_process_group(self.group, Signal::KILL);
    }
}

/// Starts `command` in a group of its own: Ctrl-C at the terminal reaches only us, and we stop things in order.
fn spawn(command: &mut Command) -> Result<Child> {
    let end_with_us = || Ok(set_parent_process_death_signal(Some(Signal::TERM))?);
    // SAFETY: between fork and exec only that one system call is made; it touches no memory.
    unsafe { command.pre_exec(end_with_us) };
    command.process_group(0).spawn().with_context(|| format!("cannot start `{}`", display(command)))
}

/// Columns of a terminal, where nobody says how many.
const COLUMNS: u16 = 110;

/// Both ends of a pseudo-terminal: ours and the program's.
fn open_terminal(columns: u16) -> rustix::io::Result<(File, File)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, rustix::fs::Mode::empty())?;
    // Lines end as in a file.
    let mut modes = tcgetattr(&theirs)?;
    modes.output_modes.remove(OutputModes::OPOST);
    tcsetattr(&theirs, OptionalActions::Now, &modes)?;
    tcsetwinsize(&theirs, Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    Ok((ours.into(), theirs.into()))
}

/// Copies until the program's end is closed everywhere, which Linux reports as an I/O error.
fn copy_terminal(mut from: File, mut to: File) {
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        // A full disk must not stop the program at its terminal: go on reading.
        let _ = to.write_all(&buffer[..read]);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Sends `signal` to the process `pid`.
pub fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(process, signal)?)
}

/// `command` as one would type it.
pub fn display(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        if argument.chars().all(|c| c.is_ascii_alphanumeric() || "-_=./:@,+%".contains(c)) {
            let _ = write!(line, " {argument}");
        } else {
            let _ = write!(line, " '{argument}'");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Folder;
    use crate::proc::is_running;
    use crate::wait::wait_for;

    fn folder() -> Folder {
        Folder::scratch("process").unwrap()
    }

    #[test]
    fn dropping_a_process_ends_what_it_started() {
        let folder = folder();
        let process =
            Process::start("sh", Command::new("sh").args(["-c", "sleep 600 & echo $!; wait"]), folder.path()).unwrap();
        let read = || Ok(fs::read_to_string(&process.output)?.trim().parse::<u32>().ok());
        let interrupt = Interrupt::never();
        let child = wait_for("the child", Duration::from_secs(10), &interrupt, &mut [], read).unwrap();
        drop(process);
        let gone = || Ok(!is_running(child)).map(|gone| gone.then_some(()));
        wait_for("its end", Duration::from_secs(10), &interrupt, &mut [], gone).unwrap();
    }

    #[test]
    fn what_is_printed_on_the_terminal_is_kept() {
        let folder = folder();
        let mut command = Command::new("sh");
        command.args(["-c", "test -t 1 && echo one && echo two; sleep 600"]);
        let mut process = Process::start_on_terminal("sh", &mut command, folder.path()).unwrap();
        let read = || Ok(fs::read_to_string(&process.output)?.ends_with("two\n").then_some(()));
        wait_for("the lines", Duration::from_secs(10), &Interrupt::never(), &mut [], read).unwrap();
        process.stop_with(Signal::TERM, Duration::from_secs(10)).unwrap();
        assert_eq!(fs::read_to_string(&process.output).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_process_that_ends_early_is_named_with_what_it_printed() {
        let folder = folder();
        let mut process =
            Process::start("sh", Command::new("sh").args(["-c", "echo broken >&2; exit 3"]), folder.path()).unwrap();
        let interrupt = Interrupt::never();
        let never = || Ok(None::<()>);
        let error = wait_for("an answer", Duration::from_secs(10), &interrupt, &mut [&mut process], never).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("exit code 3") && text.contains("broken"), "{text}");
    }
}
