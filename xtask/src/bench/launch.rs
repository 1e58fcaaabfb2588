//! What a probe costs a launch, of the fake CUDA libraries: a table, and a failure where a level is over its share of the floor.
//!
//! The floor is an empty BPF program at the same instruction. At most: level `steps` 1.3 times, `kernels` 1.6 times (issue 8).

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{build, shell};

/// Levels, and what they may be of the floor.
const PROMISED: [(&str, f64); 2] = [("steps", 1.3), ("kernels", 1.6)];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Launches of a turn
    #[arg(long, default_value_t = 20_000)]
    launches: u64,
    /// Turns, at most 64; each share of the floor is the median of what it was in so many
    #[arg(long, default_value_t = 31)]
    turns: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    build::inferspan()?;
    build::programs("inferspan-gpu-check", &["empty-uprobe"])?;
    let program = build::programs(build::TESTS_CRATE, &["launch-cost"])?.remove(0);
    let mut command = Command::new(program);
    command.args([arguments.launches.to_string(), arguments.turns.to_string()]).stderr(std::process::Stdio::inherit());
    let measured = shell::step("launching", || command.output().context("launch-cost does not run"))?;
    if !measured.status.success() {
        bail!("launch-cost failed: {}", measured.status);
    }
    let text = String::from_utf8(measured.stdout).context("its output is no text")?;
    let rows: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("its output")?;
    println!("{:<8} {:<10} {:>12} {:>10}", "driver", "run", "ns a launch", "of floor");
    let mut over = Vec::new();
    for row in &rows {
        let (driver, run) = (row["driver"].as_str().unwrap_or("?"), row["run"].as_str().unwrap_or("?"));
        let (ns, share) = (row["ns"].as_f64().unwrap_or(f64::NAN), row["of_floor"].as_f64().unwrap_or(f64::NAN));
        println!("{driver:<8} {run:<10} {ns:>12.1} {share:>10.2}");
        if PROMISED.iter().any(|(level, most)| *level == run && share > *most) {
            over.push(format!("{run} on {driver}: {share:.2} times the floor"));
        }
    }
    if over.is_empty() { Ok(()) } else { bail!("over what was promised: {}", over.join("; ")) }
}
