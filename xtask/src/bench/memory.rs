//! The most memory that a replay takes.
//!
//! Enters: made-up logs, through a pipe, so that none is on disk. Leaves: peak resident memory of each; fails when one is over
//! [`LIMIT`] or counts something else than its log holds.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{measured, scale};
use crate::{build, shell};

/// What the product promises, bytes.
const LIMIT: u64 = 64 << 20;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Run this share of the long loads' requests and tokens, for a look: 0.01 takes seconds
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    share: f64,
}

/// (what it is, arguments of `madeup-log` with `{}` for the number that a share is taken of, that number)
const LOADS: [(&str, &str, u64); 4] = [
    ("1,000 open streams", "--stream --open 1000 --requests 1000 --tokens {}", 400),
    ("1,000 open, not streaming, 5,000 waiting", "--open 1000 --requests 1000 --waiting 5000 --tokens {}", 400),
    ("1,000,000 finished requests", "--open 64 --requests {} --tokens 2 --prompt 8", 1_000_000),
    ("1,024 open generations of 65,000 tokens", "--one-end --no-http --open 1024 --requests 1024 --tokens {}", 65_000),
];

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let inferspan = build::inferspan()?;
    let madeup = build::programs(build::TESTS_CRATE, &["madeup-log"])?.remove(0);
    let folder = build::target_folder().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut faults = Vec::new();
    for (what, template, whole) in LOADS {
        // Below these nothing is long.
        let scaled = ((whole as f64 * arguments.share) as u64).max(whole.min(10));
        let options = template.replace("{}", &scaled.to_string());
        let (used, wrong) = replay(&inferspan, &madeup, &folder, &options)?;
        println!(
            "memory: {what}{}: peak {:.1} MiB, {:.1} s of CPU, counts {}",
            if scaled == whole { String::new() } else { format!(" ({scaled} of {whole})") },
            used.memory as f64 / f64::from(1 << 20),
            used.cpu,
            if wrong.is_empty() { "exact".to_owned() } else { wrong.join("; ") }
        );
        faults.extend(wrong.into_iter().map(|wrong| format!("{what}: {wrong}")));
        if used.memory > LIMIT {
            faults.push(format!("{what}: {} MiB, not below {}", used.memory >> 20, LIMIT >> 20));
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("the replay's memory or counts:\n  {}", faults.join("\n  ")) }
}

fn replay(inferspan: &Path, madeup: &Path, folder: &Path, options: &str) -> Result<(measured::Used, Vec<String>)> {
    let (account, page) = (folder.join("memory.account"), folder.join("memory.prom"));
    let mut writer = Command::new(madeup);
    writer.args(options.split(' ')).arg("--account").arg(&account).stdin(Stdio::null()).stdout(Stdio::piped());
    let line = shell::display(&writer);
    let mut writing = writer.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let log = writing.stdout.take().context("no stdout")?;
    let mut command = Command::new(inferspan);
    command.args(["replay", "/dev/stdin", "--access-log", "/dev/null", "--metrics-out"]).arg(&page).stdin(log);
    let used = measured::run(&mut command);
    // With its reader gone a writer ends by itself.
    drop(command);
    let status = writing.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    let used = used?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let counts = serde_json::from_str(&read(&account)?).context("madeup-log left no account")?;
    let wrong = scale::differences(&counts, &read(&page)?);
    for file in [&account, &page] {
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok((used, wrong))
}
