//! The CPU time of a token with 16, 256 and 4,096 generations open, and whether every one is counted.
//!
//! Enters: logs that `madeup-log` writes. Leaves: a table; fails when a count differs from what the log holds, or when a token
//! with 4,096 open costs more than [`GROWTH`] times one with 16 open.
//!
//! Most of a replay is reading JSON and hex digits, so the logs to be compared have the same bytes a token: engine messages of
//! 16 outputs, whatever is open. `reading` is the same log with payloads that say nothing. The real shape, a message of every
//! open generation a step, is measured too; it has fewer bytes a token the more is open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::measured;
use crate::{build, shell};

/// How many times as much a token may cost with 4,096 open.
const GROWTH: f64 = 1.5;
const REQUESTS: usize = 4096;
const TOKENS: usize = 32;
const PER_MESSAGE: usize = 16;
const WAITING: usize = 5000;
/// The least of so many runs: a neighbour only ever adds.
const RUNS: usize = 2;
/// A load that seems to cost too much, and what it is compared with, are measured again so often at most.
const AGAIN: usize = 2;

/// One log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    stream: bool,
    waiting: usize,
    /// Messages of all open generations, not of 16.
    whole: bool,
    open: usize,
}

impl Load {
    /// All that are measured: those that are compared, then the real shape.
    fn all() -> Vec<Self> {
        let mut loads = Vec::new();
        for stream in [false, true] {
            for open in [16, 256, 4096] {
                loads.push(Self { stream, waiting: 0, whole: false, open });
            }
            for open in [16, 4096] {
                loads.push(Self { stream, waiting: WAITING, whole: false, open });
            }
            for open in [256, 4096] {
                loads.push(Self { stream, waiting: 0, whole: true, open });
            }
        }
        loads
    }

    fn name(self) -> String {
        let Self { stream, waiting, whole, open } = self;
        let kind = if stream { "streaming" } else { "not streaming" };
        let waiting = if waiting > 0 { format!(", {waiting} waiting") } else { String::new() };
        let shape = if whole { format!(", {open} a message") } else { String::new() };
        format!("{kind}{waiting}{shape}")
    }

    fn write(self, madeup: &Path, log: &Path, blank: bool) -> Result<Value> {
        let account = log.with_extension("account");
        let mut command = Command::new(madeup);
        command.args(["--open", &self.open.to_string(), "--requests", &REQUESTS.to_string()]);
        command.args(["--tokens", &TOKENS.to_string(), "--waiting", &self.waiting.to_string()]);
        command.args(["--per-message", &(if self.whole { 0 } else { PER_MESSAGE }).to_string(), "--account"]);
        command.arg(&account);
        if self.stream {
            command.arg("--stream");
        }
        if blank {
            command.arg("--blank");
        }
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let line = shell::display(&command);
        let status =
            command.stdin(Stdio::null()).stdout(out).status().with_context(|| format!("cannot start `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed: {status}");
        }
        let text = fs::read_to_string(&account).with_context(|| format!("cannot read {}", account.display()))?;
        serde_json::from_str(&text).context("madeup-log left no account")
    }
}

/// What a replay took and counted.
struct Outcome {
    /// ns of CPU a token.
    token: f64,
    reading: f64,
    /// Bytes a token.
    bytes: f64,
    wrong: Vec<String>,
}

pub(super) fn run(inferspan: &Path) -> Result<()> {
    let madeup = build::programs(build::TESTS_CRATE, &["madeup-log"])?.remove(0);
    let folder = build::target_folder().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let bench = Bench { inferspan, madeup, core: measured::last_core()?, log: folder.join("madeup.jsonl") };
    println!(
        "replay: {REQUESTS} made-up requests of {TOKENS} tokens, CPU of a token in ns, least of {RUNS} runs on one core"
    );
    println!("{:46} {:>6} {:>9} {:>9} {:>9} {:>9}  counts", "load", "open", "bytes", "CPU", "reading", "the rest");
    let mut outcomes = BTreeMap::new();
    for load in Load::all() {
        let outcome = bench.measure(load)?;
        let Outcome { token, reading, bytes, wrong } = &outcome;
        println!(
            "{:46} {:6} {bytes:9.0} {token:9.0} {reading:9.0} {:9.0}  {}",
            load.name(),
            load.open,
            token - reading,
            if wrong.is_empty() { "exact".to_owned() } else { wrong.join("; ") }
        );
        outcomes.insert(load, outcome);
    }
    for _ in 0..AGAIN {
        let broken: Vec<Comparison> = comparisons(&outcomes).into_iter().filter(Comparison::is_broken).collect();
        let loads: BTreeSet<Load> = broken.iter().flat_map(|broken| [broken.load, broken.base]).collect();
        for load in loads {
            let token = bench.measure(load)?.token;
            if let Some(outcome) = outcomes.get_mut(&load) {
                println!("{}, {} open, again: {token:.0} ns", load.name(), load.open);
                outcome.token = outcome.token.min(token);
            }
        }
    }
    bench.clean()?;
    judge(&outcomes)
}

/// How much more a token of one load may cost than one of another.
#[derive(Debug, Clone, Copy)]
struct Comparison {
    load: Load,
    base: Load,
    growth: f64,
    allowed: f64,
}

impl Comparison {
    fn is_broken(&self) -> bool {
        self.growth > self.allowed
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { load, base, growth, allowed } = self;
        write!(f, "{}, {} open: a token costs {growth:.2} times ", load.name(), load.open)?;
        write!(f, "one of {}, {} open (at most {allowed:.2})", base.name(), base.open)
    }
}

fn comparisons(outcomes: &BTreeMap<Load, Outcome>) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for (load, outcome) in outcomes {
        // There is one log with 16 open, whatever is in a message.
        let few = Load { open: 16, whole: false, ..*load };
        let mut compare = |base: Load, allowed: f64| {
            if let Some(of_base) = outcomes.get(&base) {
                comparisons.push(Comparison { load: *load, base, growth: outcome.token / of_base.token, allowed });
            }
        };
        if load.open == 4096 {
            compare(few, GROWTH);
        }
        if load.waiting > 0 {
            // Those that wait are begun, and given up at the end: so many times the work of the requests.
            compare(Load { waiting: 0, ..few }, GROWTH * (REQUESTS + WAITING) as f64 / REQUESTS as f64);
        }
    }
    comparisons
}

/// Counts, then growth.
fn judge(outcomes: &BTreeMap<Load, Outcome>) -> Result<()> {
    let mut faults = Vec::new();
    let wrong = outcomes.iter().filter(|(_, outcome)| !outcome.wrong.is_empty());
    for (load, outcome) in wrong {
        faults.push(format!("{}, {} open: {}", load.name(), load.open, outcome.wrong.join("; ")));
    }
    for comparison in comparisons(outcomes) {
        println!("{comparison}");
        if comparison.is_broken() {
            faults.push(comparison.to_string());
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("the replay does not scale:\n  {}", faults.join("\n  ")) }
}

struct Bench<'a> {
    inferspan: &'a Path,
    madeup: PathBuf,
    core: String,
    log: PathBuf,
}

impl Bench<'_> {
    fn measure(&self, load: Load) -> Result<Outcome> {
        // Nothing is found in it, so it takes next to nothing but reading.
        load.write(&self.madeup, &self.log, true)?;
        let blank = self.replay()?;
        let account = load.write(&self.madeup, &self.log, false)?;
        let mut least = f64::INFINITY;
        for _ in 0..RUNS {
            least = least.min(self.replay()?);
        }
        let page = fs::read_to_string(self.page()).context("the replay left no metrics")?;
        let number = |name: &str| account[name].as_u64().unwrap_or(0);
        let tokens = number("generation_tokens") as f64;
        Ok(Outcome {
            token: least * 1e9 / tokens,
            reading: blank * 1e9 / tokens,
            bytes: number("bytes") as f64 / tokens,
            wrong: differences(&account, &page),
        })
    }

    fn page(&self) -> PathBuf {
        self.log.with_extension("prom")
    }

    /// CPU seconds.
    fn replay(&self) -> Result<f64> {
        let mut command = measured::on_core(&self.core, self.inferspan);
        command.arg("replay").arg(&self.log).args(["--access-log", "/dev/null", "--metrics-out"]).arg(self.page());
        Ok(measured::run(&mut command)?.cpu)
    }

    fn clean(&self) -> Result<()> {
        for file in [self.log.clone(), self.page(), self.log.with_extension("account")] {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(())
    }
}

/// Where the metrics say something else than the log's own account.
pub(super) fn differences(account: &Value, page: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, label, counted) in [
        ("inferspan_generation_tokens_total", "", "generation_tokens"),
        ("inferspan_prompt_tokens_total", "", "prompt_tokens"),
        ("inferspan_prefix_cache_queries_total", "", "prefix_queries"),
        ("inferspan_generations_total", "finish_reason=\"length\"", "finished"),
        ("inferspan_generations_total", "finish_reason=\"stop\"", ""),
        ("inferspan_generations_total", "finish_reason=\"abort\"", ""),
        ("inferspan_generations_total", "finish_reason=\"error\"", ""),
    ] {
        let expected = account[counted].as_u64().unwrap_or(0) as f64;
        let found = sum(page, name, label);
        if (found - expected).abs() > 0.5 {
            wrong.push(format!("{name}{{{label}}} is {found}, not {expected}"));
        }
    }
    wrong
}

/// Sum of the series called `name` whose labels hold `label`.
fn sum(page: &str, name: &str, label: &str) -> f64 {
    let series = page.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
    series
        .filter(|rest| rest.contains(label))
        .filter_map(|rest| rest.rsplit('}').next()?.split_whitespace().next()?.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_count_that_differs_is_named() {
        let page = "inferspan_generation_tokens_total{engine=\"0\"} 90\n\
            inferspan_generation_tokens_total{engine=\"1\"} 10\n\
            inferspan_generations_total{engine=\"0\",finish_reason=\"length\"} 4\n";
        let mut account = json!({"generation_tokens": 100, "finished": 4});
        assert_eq!(differences(&account, page), Vec::<String>::new());
        account["finished"] = 5.into();
        assert_eq!(differences(&account, page), ["inferspan_generations_total{finish_reason=\"length\"} is 4, not 5"]);
    }
}
