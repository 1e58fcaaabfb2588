//! Perfetto's own trace processor, which its UI runs in the browser, asked by SQL without one.
//!
//! Enters: a trace file and queries. Leaves: rows. `tests/fixtures/perfetto/query.mjs` runs the engine under Node.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::installed;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/perfetto/query.mjs");

/// The rows of one query.
pub type Rows = Vec<Vec<Value>>;

/// Where the engine is, and what runs it.
#[derive(Debug, Clone)]
pub struct Perfetto {
    node: PathBuf,
    folder: PathBuf,
}

impl Perfetto {
    /// The engine of `INFERSPAN_PERFETTO` (its `engine_bundle.js`), and Node of `INFERSPAN_NODE` or the `PATH`. `None`, said loudly,
    /// when one is missing.
    pub fn from_env() -> Option<Self> {
        let engine = installed::program("INFERSPAN_PERFETTO", None)?;
        let node = installed::program("INFERSPAN_NODE", Some("node"))?;
        Some(Self { node, folder: engine.parent()?.to_owned() })
    }

    /// Opens `file` and answers each query.
    ///
    /// # Errors
    /// The engine does not start, cannot read the file, or refuses a query.
    pub fn query(&self, file: &Path, queries: &[&str]) -> Result<Vec<Rows>> {
        let mut command = Command::new(&self.node);
        command.arg(SCRIPT).arg(&self.folder).arg(file).args(queries);
        let output = command.output().with_context(|| format!("cannot start {}", self.node.display()))?;
        if !output.status.success() {
            bail!("query.mjs: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8(output.stdout).context("query.mjs printed no UTF-8")?;
        let answers: Vec<Rows> = text.lines().zip(queries).map(|(line, sql)| rows(line, sql)).collect::<Result<_>>()?;
        if answers.len() != queries.len() {
            bail!("{} answers to {} queries", answers.len(), queries.len());
        }
        Ok(answers)
    }
}

fn rows(line: &str, sql: &str) -> Result<Rows> {
    let answer: Value = serde_json::from_str(line).with_context(|| format!("query.mjs printed {line:?}"))?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{sql}: {error}");
    }
    Ok(serde_json::from_value(answer["rows"].clone())?)
}
