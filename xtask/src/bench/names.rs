//! What it takes to name the kernels of a library.
//!
//! Enters: a library, the larger the better (`libtorch_cuda.so` of PyTorch's wheel on PyPI). Leaves: time and peak memory of
//! `inferspan names` on one core, the best of [`RUNS`]; fails when it is over what the product promises.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::measured::{self, Used};
use crate::build;

/// What the product promises, for libtorch (520 MB, 24,000 kernels): seconds and bytes.
const SECONDS: f64 = 1.0;
const MEMORY: u64 = 256 << 20;
/// The first reads the file from disk.
const RUNS: usize = 5;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The library to read
    #[arg(value_name = "FILE")]
    library: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let inferspan = build::inferspan()?;
    let core = measured::last_core()?;
    let mut best: Option<Used> = None;
    for _ in 0..RUNS {
        let mut command = measured::on_core(&core, &inferspan);
        let used = measured::run(command.arg("names").arg(&arguments.library).arg("--json"))?;
        best = best.filter(|best| best.wall <= used.wall).or(Some(used));
    }
    let Some(Used { wall, cpu, memory }) = best else { bail!("nothing was run") };
    let mebibytes = memory as f64 / f64::from(1 << 20);
    println!("names: {}: {wall:.2} s, {cpu:.2} s of CPU, peak {mebibytes:.1} MiB", arguments.library.display());
    if wall > SECONDS || memory > MEMORY {
        bail!("promised are {SECONDS} s and {} MiB", MEMORY >> 20);
    }
    Ok(())
}
