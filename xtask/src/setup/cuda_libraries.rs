//! Two real CUDA libraries that are small, from PyPI: one stripped, with the runtime linked in, and one that loads it.
//!
//! NVIDIA's is under its licence: fetched where it is needed, never committed.

use std::path::PathBuf;

use anyhow::Result;

use super::pypi;
use crate::cache;

const PACKAGES: [&str; 2] = ["nvidia-nvjpeg==13.3.2.43", "torchvision==0.29.2"];

/// The folder that holds the packages, fetched if they are missing (12 MB).
pub(crate) fn ensure() -> Result<PathBuf> {
    let recipe = format!("{}\n", PACKAGES.join("\n"));
    cache::Part::new("cuda-libraries-1", &recipe)?.ensure(|folder| pypi::unpack(&PACKAGES, folder))
}
