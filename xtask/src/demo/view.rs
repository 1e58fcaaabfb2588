//! The live view of the demo's run, held against its access log.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use inferspan_harness::http;
use serde_json::Value;

/// More than the demo's traffic makes.
const ALL: &str = "100000";

/// Fails unless the live view at `address` has the page, and every request of the access log.
pub(super) fn check(address: &str, access_log: &Path) -> Result<()> {
    let page = http::text(&format!("http://{address}/"))?;
    ensure!(page.contains("<html"), "the live view is no page: {}", page.lines().next().unwrap_or_default());
    let text = fs::read_to_string(access_log).with_context(|| format!("cannot read {}", access_log.display()))?;
    let logged: BTreeSet<String> = text.lines().filter_map(|line| span(&serde_json::from_str(line).ok()?)).collect();
    let answer = http::json(&format!("http://{address}/ui/api/requests"), &[("limit", ALL)])?;
    let Some(requests) = answer["requests"].as_array() else { bail!("the live view lists no requests: {answer}") };
    let shown: BTreeSet<String> = requests.iter().filter_map(span).collect();
    let missing = logged.difference(&shown).count();
    ensure!(missing == 0, "the live view lacks {missing} of {} requests of the access log", logged.len());
    Ok(())
}

fn span(record: &Value) -> Option<String> {
    record["span_id"].as_str().map(str::to_owned)
}
