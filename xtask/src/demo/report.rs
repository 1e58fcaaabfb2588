//! What the demo shows at its end, read back from where a user would read it.
//!
//! Enters: what was found. Leaves: the page, which without back ends is at most [`MOST_LINES`] lines together with what it ends with.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use inferspan_harness::prometheus::{Prometheus, Sample};
use inferspan_harness::server::Server;
use serde_json::Value;

use super::backends::{Backends, Jaeger};
use super::cases::Case;

/// Lines of the demo's page without back ends.
pub(super) const MOST_LINES: usize = 60;

/// The questions that the metrics excerpt asks, with what each is.
const QUESTIONS: [(&str, &str); 12] = [
    ("requests by outcome", "sum by (outcome) (inferspan_requests_total)"),
    ("generations by finish reason", "sum by (finish_reason) (inferspan_generations_total)"),
    ("prompt tokens", "sum(inferspan_prompt_tokens_total)"),
    ("generated tokens", "sum(inferspan_generation_tokens_total)"),
    ("preemptions", "sum(inferspan_preemptions_total)"),
    (
        "time to first token, p50, s",
        "histogram_quantile(0.5, sum by (le) (gen_ai_server_time_to_first_token_seconds_bucket))",
    ),
    (
        "time to first token, p99, s",
        "histogram_quantile(0.99, sum by (le) (gen_ai_server_time_to_first_token_seconds_bucket))",
    ),
    (
        "request duration, p50, s",
        "histogram_quantile(0.5, sum by (le) (gen_ai_server_request_duration_seconds_bucket))",
    ),
    (
        "request duration, p99, s",
        "histogram_quantile(0.99, sum by (le) (gen_ai_server_request_duration_seconds_bucket))",
    ),
    ("queue, mean, s", "sum(inferspan_request_queue_seconds_sum) / sum(inferspan_request_queue_seconds_count)"),
    ("events seen by the probes", "sum(inferspan_events_total)"),
    ("events dropped", "sum by (stage) (inferspan_events_dropped_total)"),
];

/// The request total as Prometheus has it; 0 as long as it has none.
pub(super) fn requests_total(prometheus: &Prometheus) -> Result<f64> {
    Ok(prometheus.query("sum(inferspan_requests_total)")?.first().map_or(0.0, |sample| sample.value))
}

/// The metrics excerpt.
pub(super) fn metrics(prometheus: &Prometheus) -> Result<String> {
    let mut text = String::new();
    for (what, expression) in QUESTIONS {
        // A quantile of nothing is NaN.
        let values = prometheus.query(expression)?.into_iter().filter(|sample| !sample.value.is_nan());
        let values: Vec<String> = values.map(|sample| shown(&sample)).collect();
        let _ = writeln!(text, "  {what:<29} {}", if values.is_empty() { "-".to_owned() } else { values.join(" · ") });
    }
    Ok(text)
}

fn shown(Sample { labels, value }: &Sample) -> String {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if labels.is_empty() { number(*value) } else { format!("{}: {}", labels.join(", "), number(*value)) }
}

/// A count without decimals; times are seconds, and a queue can be microseconds.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.6}") }
}

/// The traces by service, from Jaeger, which must have every one of `expected` (trace ids).
pub(super) fn traces(jaeger: &Jaeger, expected: &BTreeSet<String>) -> Result<String> {
    let services = jaeger.traces_by_service()?;
    let mut text = String::new();
    for service in &services {
        let _ = writeln!(text, "  {:<29} {} traces, {} spans", service.name, service.trace_ids.len(), service.spans);
    }
    // The server's own service and the one of its engine's steps.
    if services.len() < 2 || services.iter().any(|service| service.trace_ids.is_empty()) {
        bail!("Jaeger lacks traces: the server's service and its engine's should both have some, but it has\n{text}");
    }
    let found: BTreeSet<&str> = services.iter().flat_map(|service| &service.trace_ids).map(String::as_str).collect();
    let missing: Vec<&str> = expected.iter().map(String::as_str).filter(|id| !found.contains(id)).collect();
    if let Some(first) = missing.first() {
        bail!(
            "Jaeger lacks {} of the {} traces that the access log names, among them {first}",
            missing.len(),
            expected.len()
        );
    }
    let _ = writeln!(text, "  every one of the {} traces that the access log names is there", expected.len());
    Ok(text)
}

/// What was found.
pub(super) fn page(server: &Server, cases: &[Case], step: Option<&str>, read_back: &str) -> String {
    let mut text =
        format!("Traced {} (pid {}), as `inferspan attach -p {}` sees it:\n", server.name, server.pid, server.pid);
    for Case { title, id, why, picture } in cases {
        let _ = write!(text, "── {title}: inferspan why {id} ──\n{}\n{picture}", why.trim_end());
    }
    if let Some(step) = step {
        let _ = write!(
            text,
            "── one engine step (its CUDA is a fake one: no GPU is needed; a launch is a call of the CPU) ──\n{step}"
        );
    }
    text + read_back
}

/// Where to look, and what to try next.
pub(super) fn next(
    view: &str,
    backends: Option<&Backends>,
    folder: &Path,
    is_kept: bool,
    seconds: f64,
) -> Result<String> {
    let (_, requests) = access_log(&folder.join(super::ACCESS_LOG))?;
    let traces = folder.join(super::TRACES_OUT);
    let exports = lines(&traces, "the trace file")?;
    let state = if is_kept { "" } else { " (stopped now; --keep leaves it running)" };
    let mut text = format!("── live view: http://{view}/{state} ──\n");
    if let Some(backends) = backends {
        let ui = if backends.jaeger.has_ui { "" } else { ", query API only: this Jaeger was built without its UI" };
        let _ = writeln!(
            text,
            "Jaeger {}{ui}; Prometheus {}{state}",
            backends.jaeger.server.query, backends.prometheus.url
        );
    }
    let _ = writeln!(
        text,
        "{requests} requests and {exports} traces in {}, {seconds:.0} s in all. Try next:",
        folder.display()
    );
    let _ = writeln!(text, "  inferspan report {}", traces.display());
    if is_kept {
        text += "  open the live view; ask the running attach: inferspan why --slow\n";
        text += "Everything keeps running. Ctrl-C stops it.";
    } else {
        text += "  cargo xtask demo --keep              leaves all running: open the live view, or watch inferspan top --all\n";
        text += "  cargo xtask demo --backends          with a real Jaeger and Prometheus\n";
        text += "  inferspan ls                         your own servers; then: inferspan attach -p PID";
    }
    Ok(text)
}

/// The trace ids in an access log, and its number of requests; requests that bring one `traceparent` share a trace.
pub(super) fn access_log(path: &Path) -> Result<(BTreeSet<String>, usize)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the access log {}", path.display()))?;
    let mut ids = BTreeSet::new();
    for line in text.lines() {
        let record: Value =
            serde_json::from_str(line).with_context(|| format!("{} holds no JSON: {line}", path.display()))?;
        let Some(id) = record["trace_id"].as_str() else {
            bail!("{} has a request without a trace_id: {line}", path.display());
        };
        ids.insert(id.to_owned());
    }
    if ids.is_empty() {
        bail!("the access log is empty: {}", path.display());
    }
    Ok((ids, text.lines().count()))
}

/// The number of lines of a file that must have some.
fn lines(path: &Path, what: &str) -> Result<usize> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{what} is missing: cannot read {}", path.display()))?;
    let lines = text.lines().count();
    if lines == 0 {
        bail!("{what} is empty: {}", path.display());
    }
    Ok(lines)
}
