//! What `/proc` says of processes: who started whom, what they call themselves, what they used.
//!
//! Enters: process ids. Leaves: numbers and texts; of a process that is gone nothing and 0.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The fields of `stat` behind the name, which ends with the last bracket (proc(5)): state, parent, …
fn stat(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    fields.split_whitespace().map(str::to_owned).collect()
}

/// Whether it runs, or stands: neither gone nor a zombie that nobody has collected yet.
pub fn is_running(pid: u32) -> bool {
    stat(pid).first().is_some_and(|state| state != "Z")
}

/// Time on a CPU, user and system, of all threads that it ever had; in hundredths of a second.
pub fn cpu_time(pid: u32) -> Duration {
    let fields = stat(pid);
    // utime and stime, in USER_HZ, which is 100 on every Linux.
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// Time on a CPU of the threads that it has now, ns. A server at work ends none.
pub fn cpu_nanos(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| on_cpu(&task.path().join("schedstat"))).sum()
}

/// CPU time of the thread that asks.
pub fn own_cpu_nanos() -> u64 {
    on_cpu(Path::new("/proc/thread-self/schedstat")).unwrap_or(0)
}

fn on_cpu(schedstat: &Path) -> Option<u64> {
    fs::read_to_string(schedstat).ok()?.split_whitespace().next()?.parse().ok()
}

/// Its command line, words parted by zeros, or the title that it gave itself.
pub fn title(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

/// A process and all that it started, and those.
pub fn family(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let parent = stat(pid).get(1).and_then(|parent| parent.parse::<u32>().ok());
        parents.insert(pid, parent.unwrap_or(0));
    }
    let mut found = vec![root];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_and_what_it_started_are_found_and_gone_when_they_end() {
        let mut shell = Command::new("sh").args(["-c", "sleep 600 & wait"]).spawn().unwrap();
        let pid = shell.id();
        let start = std::time::Instant::now();
        while family(pid).unwrap().len() < 2 && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let family = family(pid).unwrap();
        assert_eq!(family.len(), 2, "{family:?}");
        assert!(is_running(pid) && title(family[1]).starts_with("sleep\x00600"), "{}", title(family[1]));
        let child = rustix::process::Pid::from_raw(family[1].cast_signed()).unwrap();
        rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
        shell.wait().unwrap();
        assert!(!is_running(pid) && title(pid).is_empty());
    }

    #[test]
    fn time_on_a_cpu_grows_with_work() {
        let me = std::process::id();
        let before = (cpu_time(me), cpu_nanos(me));
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(100) {}
        let after = (cpu_time(me), cpu_nanos(me));
        assert!(after.0 > before.0 && after.1 > before.1, "{before:?} {after:?}");
    }
}
