//! A real browser without a window, on a page that somebody serves.
//!
//! Enters: an address and what is to be done there, by name. Leaves: what was seen, as JSON. `tests/fixtures/page/drive.mjs` drives
//! Chromium by Playwright, under Node.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::installed;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/page/drive.mjs");

/// What drives a browser, and the browser.
#[derive(Debug, Clone)]
pub struct Browser {
    node: PathBuf,
    packages: PathBuf,
    chromium: PathBuf,
}

impl Browser {
    /// Chromium of `INFERSPAN_CHROMIUM` and Node of `INFERSPAN_NODE`, or those of the `PATH`, and the folder of Node's packages that
    /// `INFERSPAN_PLAYWRIGHT` names. `None`, said loudly, when one is missing.
    pub fn from_env() -> Option<Self> {
        let packages = installed::folder("INFERSPAN_PLAYWRIGHT")?;
        let chromium = installed::program("INFERSPAN_CHROMIUM", Some("chromium"))?;
        let node = installed::program("INFERSPAN_NODE", Some("node"))?;
        Some(Self { node, packages, chromium })
    }

    pub fn new(node: PathBuf, packages: PathBuf, chromium: PathBuf) -> Self {
        Self { node, packages, chromium }
    }

    /// Does what `name` says with the page at `url`; `arguments` are what it asks for.
    ///
    /// # Errors
    /// The browser does not start, or what was to be done cannot be.
    pub fn run<A: AsRef<OsStr>>(&self, url: &str, name: &str, arguments: impl IntoIterator<Item = A>) -> Result<Value> {
        let mut command = Command::new(&self.node);
        command.arg(SCRIPT).arg(&self.packages).arg(&self.chromium).arg(url).arg(name).args(arguments);
        let output = command.output().with_context(|| format!("cannot start {}", self.node.display()))?;
        if !output.status.success() {
            bail!("drive.mjs {name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("drive.mjs {name} printed {text:?}"))
    }
}
