//! Two real CUDA libraries that are small, from PyPI: one stripped, with the runtime linked in, and one that loads it.
//!
//! NVIDIA's is under its licence: fetched where it is needed, never committed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::vllm;
use crate::{cache, shell};

const PACKAGES: [&str; 2] = ["nvidia-nvjpeg==13.3.2.43", "torchvision==0.29.2"];

/// The folder that holds the packages, fetched if they are missing (12 MB).
pub(crate) fn ensure() -> Result<PathBuf> {
    let recipe = format!("{}\n", PACKAGES.join("\n"));
    cache::Part::new("cuda-libraries-1", &recipe)?.ensure(|folder| {
        let venv = folder.join("venv");
        shell::run(Command::new(vllm::find_python()?).args(["-m", "venv"]).arg(&venv))?;
        let mut pip = Command::new(venv.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]);
        shell::run(pip.arg("--target").arg(folder).args(PACKAGES))?;
        fs::remove_dir_all(&venv).with_context(|| format!("cannot remove {}", venv.display()))
    })
}
