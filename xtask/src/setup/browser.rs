//! A browser for the tests of the live view's page: Debian's Chromium, Node ([`super::node`]), and what drives them.
//!
//! The versions, and the hashes of what npm fetches, are those of `tests/fixtures/page/package-lock.json`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{apt, node};
use crate::{cache, shell};

/// What npm is given.
const FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// What is installed.
pub(crate) struct Browser {
    pub(crate) chromium: PathBuf,
    /// Node's program.
    pub(crate) node: PathBuf,
    /// Holds a folder for each package: `playwright-core`, `axe-core`.
    pub(crate) packages: PathBuf,
}

pub(crate) fn ensure() -> Result<Browser> {
    if shell::find_on_path("chromium").is_none() {
        apt::install(&["chromium"])?;
    }
    let node = node::ensure()?;
    let folder = packages()?.ensure(|folder| fetch(folder, &node))?;
    let chromium = shell::find_on_path("chromium").context("chromium is installed, and not on PATH")?;
    Ok(Browser { chromium, node: node.program, packages: folder.join("node_modules") })
}

fn packages() -> Result<cache::Part> {
    let lock = fixtures().join(FILES[1]);
    let recipe = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    cache::Part::new("page-tests-1", &recipe)
}

fn fixtures() -> PathBuf {
    shell::root().join("tests/fixtures/page")
}

fn fetch(folder: &Path, node: &node::Node) -> Result<()> {
    for name in FILES {
        let from = fixtures().join(name);
        fs::copy(&from, folder.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    // `ci` takes what the lock file says and nothing else, and checks its hashes.
    let mut npm = node.npm()?;
    npm.args(["ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder);
    shell::run(&mut npm)
}
