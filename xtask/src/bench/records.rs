//! Launch records a second of the collector on one core: at least [`PROMISED`] (issue 8).

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{build, shell};

const PROMISED: f64 = 1e6;
/// Turns, of which the median counts.
const TURNS: usize = 3;

pub(super) fn run() -> Result<()> {
    let program = build::programs(build::TESTS_CRATE, &["launch-records"])?.remove(0);
    let mut all = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        let text = shell::output(&mut Command::new(&program))?;
        let row: Value = serde_json::from_str(&text).context("launch-records says no JSON")?;
        all.push(row["a_second"].as_f64().context("launch-records says no number")?);
    }
    all.sort_by(f64::total_cmp);
    let median = all[TURNS / 2];
    println!("launch records a second, one core: {median:.0} (at least {PROMISED:.0})");
    if median < PROMISED {
        bail!("the collector takes {median:.0} launch records a second, fewer than {PROMISED:.0}");
    }
    Ok(())
}
