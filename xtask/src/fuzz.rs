//! `cargo xtask fuzz`: the parsers and the pure pipeline under libFuzzer.
//!
//! Enters: `fuzz/` and its kept corpora. Leaves: what a target found, in `target/fuzz`; a failure where one broke. Built by the stable
//! compiler: coverage is a pass of LLVM's that it has (`sancov-module`), and no sanitiser is needed where no `unsafe` is. Debug assertions
//! and overflow checks are on (the profile `fuzz`). `cargo fuzz` works on the same folder, with a nightly compiler and its sanitisers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{build, setup, shell};

const CRATE: &str = "inferspan-fuzz";
/// The only machine that `setup` knows. Named, so that build scripts and macros are built without the pass.
const MACHINE: &str = "x86_64-unknown-linux-gnu";
/// As cargo-fuzz 0.13 has them.
const FLAGS: [&str; 7] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Of each target in a short run.
const SHORT: Duration = Duration::from_secs(4);
/// An input that takes longer is a finding, seconds.
const SLOWEST: u32 = 10;
/// A target that takes more memory is a finding, MiB.
const MEMORY: u32 = 1_024;
/// Longest input, bytes: of the longest line that is kept of an event stream (16 KiB) there must be room for two.
const LONGEST: u32 = 40_000;
/// Longest input that is kept in the repository, bytes: all corpora together are below 2 MB.
const LONGEST_KEPT: u32 = 1_024;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which one; see --list
    #[arg(required_unless_present_any = ["list", "short"])]
    name: Option<String>,
    /// How long: 90s, 10m, 2h
    #[arg(long, default_value = "10m", value_parser = duration)]
    time: Duration,
    /// Names every target
    #[arg(long)]
    list: bool,
    /// Every target over its kept corpus, and a few seconds more
    #[arg(long, conflicts_with_all = ["name", "list"])]
    short: bool,
    /// Afterwards put what is new into the kept corpus, minimised
    #[arg(long)]
    keep: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let names = names()?;
    if arguments.list {
        for name in names {
            println!("{name}");
        }
        return Ok(());
    }
    if let Some(name) = &arguments.name
        && !names.contains(name)
    {
        bail!("no fuzz target is called {name}; there are: {}", names.join(", "));
    }
    build()?;
    match &arguments.name {
        Some(name) => {
            let target = Target::new(name)?;
            target.run(arguments.time, &target.grown)?;
            if arguments.keep { target.keep() } else { Ok(()) }
        }
        None => names.iter().try_for_each(|name| {
            let target = Target::new(name)?;
            // What long runs have found would take a short one's time.
            target.run(SHORT, &emptied(folder().join("short").join(name))?)
        }),
    }
}

/// `90s`, `10m`, `2h`, or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        _ => (text, 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(|| "a time is a number and s, m or h, like 10m".to_owned())
}

fn names() -> Result<Vec<String>> {
    let folder = shell::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn folder() -> PathBuf {
    build::target_folder().join("fuzz")
}

fn build() -> Result<()> {
    setup::ensure_cpp_compiler()?;
    let mut command = shell::cargo();
    command
        .current_dir(shell::root())
        .args(["build", "--quiet", "--locked", "--profile", "fuzz", "--package", CRATE, "--bins"])
        .args(["--target", MACHINE, "--target-dir"])
        .arg(folder())
        .env("RUSTFLAGS", FLAGS.join(" "))
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    shell::step("building the fuzz targets", || shell::run(&mut command))
}

/// One target and its folders.
struct Target {
    name: String,
    program: PathBuf,
    /// In the repository.
    kept: PathBuf,
    /// What long runs have found so far.
    grown: PathBuf,
    crashes: PathBuf,
}

impl Target {
    fn new(name: &str) -> Result<Self> {
        let target = Self {
            name: name.to_owned(),
            program: folder().join(MACHINE).join("fuzz").join(name),
            kept: shell::root().join("fuzz/corpus").join(name),
            grown: folder().join("corpus").join(name),
            crashes: folder().join("crashes").join(name),
        };
        for folder in [&target.kept, &target.grown, &target.crashes] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(target)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(format!("-artifact_prefix={}/", self.crashes.display()));
        command.args([format!("-max_len={LONGEST}"), format!("-rss_limit_mb={MEMORY}"), format!("-timeout={SLOWEST}")]);
        command
    }

    /// What is found goes into `into`; what is kept is only read.
    fn run(&self, time: Duration, into: &Path) -> Result<()> {
        let (log, started) = (folder().join(format!("{}.log", self.name)), Instant::now());
        let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = self.command();
        command.args([format!("-max_total_time={}", time.as_secs()), "-print_final_stats=1".to_owned()]);
        command.args([into, &self.kept]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let status = command.status().with_context(|| format!("cannot start {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        if !status.success() {
            bail!("{}", self.broken(&said, &log));
        }
        let runs = stat(&said, "stat::number_of_executed_units:").unwrap_or("?");
        let peak = stat(&said, "stat::peak_rss_mb:").unwrap_or("?");
        let seconds = started.elapsed().as_secs_f64();
        println!("{:<12} {runs} executions in {seconds:.0} s, nothing found; {peak} MiB at most", self.name);
        Ok(())
    }

    /// Where the input lies, and how to run it again.
    fn broken(&self, said: &str, log: &Path) -> String {
        let why =
            said.lines().find(|line| line.contains("panicked at") || line.starts_with("==")).unwrap_or("it ended");
        let input = said.lines().filter_map(|line| line.split_once("Test unit written to ")).next_back();
        let Some((_, input)) = input else {
            return format!("{}: {why}\nall that it said: {}", self.name, log.display());
        };
        format!(
            "{}: {why}\n  the input: {input}\n  again:     cargo run -p {CRATE} --bin {} {input}\n  the log:   {}",
            self.name,
            self.name,
            log.display()
        )
    }

    /// Of what is kept and what has grown, the smallest inputs that reach all that they reach together.
    fn keep(&self) -> Result<()> {
        let fresh = emptied(folder().join("kept").join(&self.name))?;
        let mut command = self.command();
        // The later of two limits counts.
        command
            .args([format!("-max_len={LONGEST_KEPT}"), "-set_cover_merge=1".to_owned(), "-use_counters=0".to_owned()])
            .args([&fresh, &self.kept, &self.grown])
            .stderr(Stdio::null());
        shell::run(&mut command)?;
        emptied(self.kept.clone())?;
        for entry in fs::read_dir(&fresh).with_context(|| format!("cannot read {}", fresh.display()))? {
            let entry = entry?;
            fs::copy(entry.path(), self.kept.join(entry.file_name()))?;
        }
        Ok(())
    }
}

/// The folder, with nothing in it.
fn emptied(folder: PathBuf) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// What libFuzzer says of a run at its end.
fn stat<'s>(said: &'s str, name: &str) -> Option<&'s str> {
    said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for wrong in ["", "m", "0s", "10x", "-1m", "99999999999999999999h", "18446744073709551615h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_crash_says_where_the_input_lies_and_how_to_run_it_again() {
        let target = Target {
            name: "sse".to_owned(),
            program: PathBuf::new(),
            kept: PathBuf::new(),
            grown: PathBuf::new(),
            crashes: PathBuf::new(),
        };
        let said = "INFO: Seed: 1\nthread '<unnamed>' panicked at fuzz/src/streams.rs:9:1:\na line\n\
                    artifact_prefix='/a/'; Test unit written to /a/crash-12\nBase64: AA==\n";
        let told = target.broken(said, Path::new("/a/log"));
        assert!(told.contains("panicked at fuzz/src/streams.rs:9:1"), "{told}");
        assert!(told.contains("cargo run -p inferspan-fuzz --bin sse /a/crash-12"), "{told}");
    }
}
