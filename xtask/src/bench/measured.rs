//! A program's own CPU time and peak memory, from the kernel's account of it when it is waited for.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// What a program used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    /// Seconds by the clock.
    pub wall: f64,
    /// User and system time of its threads, seconds.
    pub cpu: f64,
    /// Peak resident memory, bytes. Never below that of `cargo xtask` itself, since a child begins as its copy.
    pub memory: u64,
}

/// `program`, kept on one core.
pub(super) fn on_core(core: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", core]).arg(program).stdin(Stdio::null());
    command
}

/// Runs it to its end; fails unless it exits 0. Its stdout goes nowhere.
pub(super) fn run(command: &mut Command) -> Result<Used> {
    let line = shell::display(command);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    wait(child, started).with_context(|| format!("`{line}` failed"))
}

/// Waits for a child whose stderr is a pipe.
fn wait(mut child: Child, started: Instant) -> Result<Used> {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        std::io::Read::read_to_string(&mut stderr, &mut said).context("cannot read its stderr")?;
    }
    let (status, usage) = wait4(child.id())?;
    let wall = started.elapsed().as_secs_f64();
    if !(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0) {
        let tail: Vec<&str> = said.lines().rev().take(12).collect();
        bail!("wait status {status:#x}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let cpu = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    // In KiB (getrusage(2)).
    Ok(Used { wall, cpu, memory: usage.ru_maxrss as u64 * 1024 })
}

fn wait4(pid: u32) -> Result<(libc::c_int, libc::rusage)> {
    let mut status = 0;
    loop {
        // SAFETY: all zero is a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to what the kernel writes, and live.
        let waited = unsafe { libc::wait4(pid as libc::pid_t, &raw mut status, 0, &raw mut usage) };
        if waited > 0 {
            return Ok((status, usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).context("cannot wait for it");
        }
    }
}

/// The last core this process may use, as `taskset` names it; the first ones serve most interrupts.
pub(super) fn last_core() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let last =
        allowed.context("/proc/self/status has no Cpus_allowed_list")?.trim().rsplit([',', '-']).next().unwrap_or("0");
    Ok(last.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_fails_is_an_error_with_its_words() {
        let error = run(Command::new("sh").args(["-c", "echo oh >&2; exit 3"])).unwrap_err();
        assert!(format!("{error:#}").contains("oh"), "{error:#}");
        let used = run(&mut Command::new("true")).unwrap();
        assert!(used.memory > 0 && used.wall >= 0.0 && used.cpu >= 0.0);
    }
}
