//! Files out of Python packages of PyPI, without an environment that stays.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::vllm;
use crate::shell;

/// Unpacks `packages` below `into`, which no other package is in: each a line of a requirements file, its version pinned, with its hash where
/// one is known (PyPI's own is checked in any case). What they depend on is left out.
pub(super) fn unpack(packages: &[&str], into: &Path) -> Result<()> {
    let venv = into.join("venv");
    shell::run(Command::new(vllm::find_python()?).args(["-m", "venv"]).arg(&venv))?;
    // Hashes are taken from a file alone.
    let requirements = venv.join("requirements.txt");
    fs::write(&requirements, format!("{}\n", packages.join("\n")))
        .with_context(|| format!("cannot write {}", requirements.display()))?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--target"]).arg(into).arg("--requirement").arg(&requirements);
    shell::run(&mut pip)?;
    fs::remove_dir_all(&venv).with_context(|| format!("cannot remove {}", venv.display()))
}
