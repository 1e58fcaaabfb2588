//! `cargo xtask test`: every test of the workspace, with the real servers that they need.
//!
//! Enters: the working tree, an optional filter. Leaves: the tests' own output and a closing line
//! `N passed, N failed, N skipped`, summed over all test binaries. A test that finds something missing prints a line that
//! starts with `SKIPPED` and returns; it is counted as skipped, not as passed. Tests of the crate `tests` share one
//! machine's probes and ports, so they run one at a time; unit tests run in parallel.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{build, setup, shell};

/// The crate whose tests run one at a time.
const LIVE_CRATE: &str = "inferspan-tests";
/// Where it is set, a test that lacks what it needs fails instead of skipping.
const REQUIRED: &str = "INFERSPAN_REQUIRE_BACKENDS";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave out what needs the real vLLM (which needs 6 GB of disk and a minute for a start)
    #[arg(long)]
    quick: bool,
    /// Keep what the tests against real servers write (logs, pages, what differs) in this folder, whether they fail or not
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Run only tests whose name holds this, or those of tests/tests/FILTER.rs
    filter: Option<String>,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let environment = environment(arguments)?;
    if !shell::is_root() {
        eprintln!(
            "xtask: not root: tests that load eBPF programs will be skipped; `sudo -E env PATH=$PATH cargo xtask test` runs them"
        );
    }

    // `vllm-scale` is easier to type than `vllm_scale`, and no test has a dash in its name.
    let filter = arguments.filter.as_ref().map(|filter| filter.replace('-', "_"));
    let file = filter.as_ref().filter(|name| shell::root().join(format!("tests/tests/{name}.rs")).is_file());
    let mut total = Counts::default();
    let mut complete = true;
    let mut run = |cargo_arguments: &[&str], test_arguments: &[&str]| -> Result<()> {
        let mut command = shell::cargo();
        command.current_dir(shell::root()).args(["test", "--locked", "--no-fail-fast"]).args(cargo_arguments);
        if file.is_none() {
            command.args(filter.as_deref());
        }
        command.arg("--").args(test_arguments);
        // Variables of a name that is not set here would make `--quick` not leave out anything.
        for name in ["INFERSPAN_VLLM_VENV", "INFERSPAN_VLLM_MODEL"] {
            command.env_remove(name);
        }
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let (counts, success) = count(&mut command)?;
        // Without a single failed test a failure is a build that broke or a test binary that died.
        complete &= success || counts.failed > 0;
        total.add(&counts);
        Ok(())
    };
    if let Some(file) = file {
        run(&["--package", LIVE_CRATE, "--test", file], &["--test-threads=1", "--nocapture"])?;
    } else {
        run(&["--workspace", "--exclude", LIVE_CRATE], &["--show-output"])?;
        run(&["--package", LIVE_CRATE], &["--test-threads=1", "--nocapture"])?;
    }

    eprintln!("xtask: tests took {:.0} s", started.elapsed().as_secs_f64());
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if !complete {
        bail!("a test binary did not build or did not finish; see above");
    }
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    if total.passed == 0 {
        bail!(
            "no test ran{}",
            arguments.filter.as_ref().map(|f| format!(": none has `{f}` in its name")).unwrap_or_default()
        );
    }
    Ok(())
}

/// Where the tests find what they need.
fn environment(arguments: &Arguments) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut environment = vec![
        ("INFERSPAN_JAEGER", setup::jaeger::ensure()?),
        ("INFERSPAN_PERFETTO", setup::perfetto::ensure()?),
        ("INFERSPAN_PROMETHEUS", setup::prometheus::ensure()?.server),
        ("INFERSPAN_PROMTOOL", setup::prometheus::ensure()?.promtool),
        ("INFERSPAN_CUDA_LIBRARIES", setup::cuda_libraries::ensure()?),
        ("INFERSPAN_NVCC", setup::nvcc::ensure()?),
        ("INFERSPAN_NODE", setup::node::ensure()?.program),
    ];
    // Debian packages of the system, which only root can install.
    let browser = unless_only_root(setup::browser::ensure(), "browser", "a browser")?;
    let tmux = unless_only_root(setup::tmux::ensure(), "tmux", "a terminal")?;
    if browser.is_some() && tmux.is_some() {
        // What the tests need is here, so that one that lacks it fails instead of skipping.
        environment.push((REQUIRED, "1".into()));
    }
    if let Some(browser) = browser {
        environment.push(("INFERSPAN_CHROMIUM", browser.chromium));
        environment.push(("INFERSPAN_PLAYWRIGHT", browser.packages));
    }
    environment.extend(tmux.map(|tmux| ("INFERSPAN_TMUX", tmux)));
    if !arguments.quick {
        let vllm = setup::vllm::ensure()?;
        environment.push(("INFERSPAN_VLLM_VENV", vllm.venv));
        environment.push(("INFERSPAN_VLLM_MODEL", vllm.model));
    }
    environment.push(("INFERSPAN_BIN", build::inferspan()?));
    if let Some(folder) = &arguments.keep {
        // Cargo runs each test in its own crate's folder.
        let folder = std::path::absolute(folder).with_context(|| format!("no path: {}", folder.display()))?;
        environment.push(("INFERSPAN_KEEP", folder));
    }
    Ok(environment)
}

/// What a part gave; `None`, said loudly, where it failed for somebody who cannot install it and asked for no more.
fn unless_only_root<T>(made: Result<T>, part: &str, what: &str) -> Result<Option<T>> {
    allowed(made, shell::is_root() || std::env::var_os(REQUIRED).is_some(), part, what)
}

fn allowed<T>(made: Result<T>, is_required: bool, part: &str, what: &str) -> Result<Option<T>> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(error) if is_required => Err(error),
        Err(error) => {
            eprintln!("xtask: SKIPPED: tests that need {what} are skipped; `cargo xtask setup {part}` said: {error:#}");
            Ok(None)
        }
    }
}

#[derive(Default, Debug, PartialEq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Tests that said that they skipped; libtest counts them as passed.
    said_skipped: u64,
    /// The test whose output is being read said so already.
    in_skipped: bool,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        let Self { passed, failed, skipped, said_skipped, in_skipped: _ } = other;
        self.passed += passed.saturating_sub(*said_skipped);
        self.failed += failed;
        self.skipped += skipped + said_skipped;
    }

    /// Takes in one line of libtest's output.
    fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            for part in result.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(number), Some(what)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
                else {
                    continue;
                };
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.skipped += number,
                    _ => {}
                }
            }
            return;
        }
        // With --nocapture the first line that a test prints follows its name: `test name ... skipped: why`.
        let printed = match line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            Some((_, printed)) => printed,
            None => line,
        };
        if line.starts_with("test ") || line.starts_with("---- ") {
            self.in_skipped = false;
        }
        // "SKIPPED: why" or "SKIPPED test_name: why", once a test however often it says so.
        let says_so = printed.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("skipped"))
            && printed[7..].starts_with([':', ' ']);
        if says_so && !self.in_skipped {
            self.in_skipped = true;
            self.said_skipped += 1;
        }
    }
}

/// Runs a `cargo test`, passes its output on, and counts.
fn count(command: &mut Command) -> Result<(Counts, bool)> {
    let line = shell::display(command);
    eprintln!("xtask: {line}");
    // eprintln of a test comes on stderr when it is not captured; one pipe for both keeps the lines in order.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let error_writer = writer.try_clone().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(error_writer);
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    // The command still holds the writing ends, and the reader would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut counts = Counts::default();
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("cannot read what the tests print")?;
        out.write_all(&line).and_then(|()| out.write_all(b"\n")).context("cannot write to stdout")?;
        counts.read(&String::from_utf8_lossy(&line));
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    Ok((counts, status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lines: &str) -> Counts {
        let mut counts = Counts::default();
        lines.lines().for_each(|line| counts.read(line));
        let mut total = Counts::default();
        total.add(&counts);
        total
    }

    #[test]
    fn results_of_several_binaries_are_summed() {
        let text = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\
                    test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s";
        assert_eq!(counts(text), Counts { passed: 14, failed: 3, skipped: 1, ..Counts::default() });
    }

    #[test]
    fn what_only_root_can_install_is_left_out_unless_it_is_required() {
        let fails = || -> Result<()> { bail!("only root can install them") };
        assert!(allowed(fails(), false, "tmux", "a terminal").unwrap().is_none());
        assert!(allowed(fails(), true, "tmux", "a terminal").is_err());
        assert_eq!(allowed(Ok(7), false, "tmux", "a terminal").unwrap(), Some(7));
    }

    #[test]
    fn a_test_that_says_skipped_is_not_passed() {
        let text = "test attaches ... SKIPPED attaches: not root\nSKIPPED: twice\nok\ntest other ... ok\n\
                    test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(counts(text), Counts { passed: 1, failed: 0, skipped: 1, ..Counts::default() });
        let shown = "---- x stdout ----\nskipped: INFERSPAN_BIN is unset\n\
                     test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(counts(shown), Counts { passed: 0, failed: 0, skipped: 1, ..Counts::default() });
    }
}
