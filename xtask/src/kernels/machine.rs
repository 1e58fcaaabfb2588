//! A machine of qemu's that runs a kernel and says what it found.
//!
//! Enters: a kernel's image, an archive of files, a folder. Leaves: the findings, lines of JSON of its second serial port. One that ends
//! without an end, or takes too long, is an error with the end of its console. It is emulated (TCG), as not every host lends KVM, and slow:
//! times in it mean nothing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use inferspan_harness::process::Process;
use inferspan_harness::wait::Interrupt;
use serde_json::Value;

/// The findings, in the machine's folder.
const FOUND: &str = "findings.jsonl";
/// From its start to its end. Three minutes on an idle host with two cores, for the slowest.
const LIMIT: Duration = Duration::from_mins(20);
/// From its last word to its end.
const OFF_LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(200);
/// Between two lines that say that it runs.
const PROGRESS: Duration = Duration::from_secs(15);
/// Lines of the console in an error.
const TAIL: usize = 25;
/// Without `cmpxchg16b`: after one qemu 7.2 leaves flags that are none now and then (the direction flag too), and Linux 6.12, whose allocator
/// uses it, dies of them at any time.
const CPU: &str = "max,-cx16";
/// How often a machine is started that ends before its first word: nothing of ours has run then.
const STARTS: u32 = 3;

/// Runs `kernel` until the machine turns itself off; calls `seen` for each finding as it comes.
pub(super) fn run(
    kernel: &Path,
    archive: &Path,
    folder: &Path,
    interrupt: &Interrupt,
    mut seen: impl FnMut(&Value),
) -> Result<Vec<Value>> {
    let mut start = 1;
    loop {
        let mut words = 0;
        let result = start_one(kernel, archive, folder, interrupt, |finding| {
            words += 1;
            seen(finding);
        });
        match result {
            Err(error) if words == 0 && start < STARTS && !interrupt.came() => {
                start += 1;
                eprintln!("xtask: {error:#}\nxtask: it had not begun, and is started again");
            }
            result => return result,
        }
    }
}

fn start_one(
    kernel: &Path,
    archive: &Path,
    folder: &Path,
    interrupt: &Interrupt,
    mut seen: impl FnMut(&Value),
) -> Result<Vec<Value>> {
    // Of a start before.
    let _ = fs::remove_file(folder.join(FOUND));
    let (console, found) = (folder.join("console.txt"), folder.join(FOUND));
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", "1536"]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-serial").arg(format!("file:{}", found.display()));
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
    // A kernel that panics ends the machine: it reboots, which `-no-reboot` forbids.
    command.args(["-append", "console=ttyS0 quiet panic=-1"]);
    let mut qemu = Process::start("qemu", &mut command, folder)?.with_patience(Duration::from_secs(1));
    let (started, mut next, mut findings) = (Instant::now(), PROGRESS, Vec::new());
    let failed = |what: &str| {
        let text = fs::read(&console).unwrap_or_default();
        format!("{what}; the end of its console, {}:\n{}", console.display(), tail(&String::from_utf8_lossy(&text)))
    };
    loop {
        interrupt.check()?;
        // Before its findings are read: what it said last is in them then.
        let running = qemu.check_running();
        let all = read(&found)?;
        for finding in &all[findings.len().min(all.len())..] {
            seen(finding);
        }
        findings = all;
        if findings.last().is_some_and(|last| last.get("end").is_some()) {
            // It is killed where it does not turn itself off, as all that it had to say is said.
            if running.is_ok() {
                qemu.end(OFF_LIMIT)?;
            }
            return Ok(findings);
        }
        running.with_context(|| failed("the machine ended before it had said all"))?;
        if started.elapsed() > LIMIT {
            bail!("{}", failed(&format!("the machine was not done within {} s", LIMIT.as_secs())));
        }
        if started.elapsed() > next {
            eprintln!("xtask: the machine runs: {} s …", next.as_secs());
            next += PROGRESS;
        }
        interrupt.sleep(POLL);
    }
}

/// Whole lines; what is no JSON is not the guest's.
fn read(findings: &Path) -> Result<Vec<Value>> {
    // qemu makes it when it starts.
    let text =
        if findings.exists() { fs::read(findings).context("cannot read what the machine says")? } else { Vec::new() };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = text[..whole].split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line.trim_ascii()).ok()).collect())
}

/// The last lines, without what moves a terminal's cursor.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = lines[lines.len().saturating_sub(TAIL)..].iter();
    let clean = |line: &&str| format!("  | {}", line.replace(|c: char| c.is_control(), ""));
    shown.map(clean).collect::<Vec<_>>().join("\n")
}
