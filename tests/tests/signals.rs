//! docs/signals.md says what the code emits, and the dashboard asks for nothing else.
//!
//! `INFERSPAN_BLESS=1 cargo test -p inferspan-tests --test signals` rewrites the generated table.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use inferspan::attach::Level;
use inferspan::export::flags::OutputArgs;
use inferspan::export::otlp::spans::{Origin, resource};
use inferspan::export::prometheus::rows;
use inferspan::export::prometheus::server::MetricsServer;
use inferspan::export::{Pressure, Sinks};
use inferspan::input::LossStage;
use inferspan::model::keys;
use inferspan::output::{Metric, Missing, Outcome, Output, Service};
use inferspan::telemetry::Telemetry;
use inferspan_harness::http;
use inferspan_harness::prometheus::Prometheus;
use inferspan_tests::outputs;
use inferspan_tests::signals::{Family, document, families, names, repository, section, with_section};
use serde_json::Value;

/// Sinks that have seen a request that went well and one that did not, so that every series is there.
fn scraped() -> (Sinks, MetricsServer, String) {
    let args = OutputArgs {
        metrics: Some("127.0.0.1:0".into()),
        access_log: Some("/dev/null".into()),
        ..OutputArgs::default()
    };
    let telemetry = Arc::new(Telemetry::default());
    telemetry.set_level(Level::Steps);
    let mut sinks = Sinks::open(&args, telemetry, Pressure::Drop).unwrap();
    sinks.push(&mut outputs::all(1));
    for metric in outputs::metrics(2) {
        if let Metric::Request { labels, operation, provider, trace_id, span_id, seconds, .. } = metric {
            sinks.push(&mut vec![Output::Metric(Metric::Request {
                labels,
                outcome: Outcome::Rejected,
                operation,
                provider,
                error_type: Some("400".into()),
                trace_id,
                span_id,
                seconds,
                time_per_output_token: None,
            })]);
        }
    }
    let server = sinks.keep_metrics_server().unwrap();
    let text = http::text(&format!("http://{}/metrics", server.address())).unwrap();
    (sinks, server, text)
}

/// Labels that stand together, for which the table has a word.
const GEN_AI: &str = "`gen_ai_operation_name`, `gen_ai_provider_name`, `gen_ai_request_model`";

#[test]
fn the_metrics_table_is_the_code_s() {
    let mut rows = rows();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let mut table = String::from("| metric | type | labels | what |\n|---|---|---|---|\n");
    for row in rows {
        let labels: Vec<String> = row.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ").replace(GEN_AI, "GenAI");
        writeln!(table, "| `{}` | {} | {} | {} |", row.name, row.kind.name(), labels, row.help).unwrap();
    }
    let document = document().unwrap();
    if std::env::var_os("INFERSPAN_BLESS").is_some() {
        let blessed = with_section(&document, "metrics", &table).unwrap();
        std::fs::write(repository("docs/signals.md"), blessed).unwrap();
        return;
    }
    assert_eq!(
        section(&document, "metrics").unwrap(),
        table.trim_end(),
        "docs/signals.md is out of date: INFERSPAN_BLESS=1 cargo test -p inferspan-tests --test signals"
    );
}

#[test]
fn a_scrape_shows_every_row_of_the_table_and_nothing_else() {
    let (_sinks, _server, text) = scraped();
    // Those of GPUs are there where GPUs are: tests/gpu_facts.rs.
    let is_of_gpu = |name: &str| name.starts_with("inferspan_gpu_");
    let mut shown: BTreeMap<String, Family> = families(&text);
    shown.retain(|name, _| !is_of_gpu(name));
    let rows = rows().into_iter().filter(|row| !is_of_gpu(&row.name));
    let rows: BTreeMap<String, _> = rows.map(|row| (row.name.clone(), row)).collect();
    assert_eq!(shown.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>());
    for (name, family) in shown {
        let row = &rows[&name];
        assert_eq!(
            (family.kind.as_str(), &family.labels[..]),
            (row.kind.name(), &row.labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>()[..]),
            "{name}"
        );
        assert_eq!(family.help.trim_end_matches('.'), row.help, "{name}");
    }
}

#[test]
fn every_metric_of_the_product_is_there() {
    let (_sinks, _server, text) = scraped();
    let families = families(&text);
    let labelled = |name: &str, labels: &[&str]| {
        let family = families.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        let mut got: Vec<&str> = family.labels.iter().map(String::as_str).collect();
        let mut expected = labels.to_vec();
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected, "{name}");
    };
    let gen_ai = ["server", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"];
    labelled("gen_ai_server_request_duration_seconds", &[&gen_ai[..], &["error_type"]].concat());
    labelled("gen_ai_server_time_to_first_token_seconds", &gen_ai);
    labelled("gen_ai_server_time_per_output_token_seconds", &gen_ai);
    labelled("inferspan_requests_total", &["server", "model", "engine", "outcome"]);
    labelled("inferspan_generations_total", &["server", "model", "engine", "finish_reason"]);
    for name in [
        "requests_running",
        "requests_waiting",
        "kv_cache_usage_ratio",
        "preemptions_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "request_parse_seconds",
        "request_tokenize_seconds",
        "request_queue_seconds",
        "request_prefill_seconds",
        "request_decode_seconds",
        "request_inference_seconds",
        "request_detokenize_seconds",
        "request_ttft_engine_seconds",
        "usage_differs_total",
        "inter_token_seconds",
        "engine_step_seconds",
    ] {
        labelled(&format!("inferspan_{name}"), &["server", "model", "engine"]);
    }
    labelled("inferspan_events_total", &["probe"]);
    labelled("inferspan_events_dropped_total", &["stage"]);
    labelled("inferspan_spans_exported_total", &[]);
    labelled("inferspan_spans_dropped_total", &["reason"]);
    labelled("inferspan_traces_left_out_total", &["reason"]);
    labelled("inferspan_engine_steps_missed_total", &[]);
    labelled("inferspan_self_cpu_seconds_total", &[]);
    labelled("inferspan_self_memory_bytes", &[]);
    labelled("inferspan_level", &["level"]);
    labelled("inferspan_build_info", &["version"]);
}

#[test]
fn the_access_log_table_is_what_a_record_holds() {
    fn flatten(prefix: &str, value: &Value, out: &mut Vec<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let name = format!("{prefix}{key}");
            out.push(name.clone());
            match value {
                Value::Object(_) => flatten(&format!("{name}."), value, out),
                Value::Array(list) => list.iter().for_each(|item| flatten(&format!("{name}[]."), item, out)),
                _ => {}
            }
        }
    }
    let mut fields = Vec::new();
    flatten("", &serde_json::to_value(outputs::access(1)).unwrap(), &mut fields);
    let mut documented = names(&document().unwrap(), "access-log").unwrap();
    fields.sort();
    documented.sort();
    assert_eq!(documented, fields);
}

#[test]
fn the_span_tables_are_what_the_model_names() {
    let document = document().unwrap();
    for (table, emitted) in [
        ("spans", &keys::span::ALL[..]),
        ("span-events", &keys::event::ALL[..]),
        ("span-attributes", &keys::attribute::ALL[..]),
    ] {
        let mut documented = names(&document, table).unwrap();
        let mut emitted: Vec<&str> = emitted.to_vec();
        documented.sort();
        emitted.sort_unstable();
        assert_eq!(documented, emitted, "{table}");
    }
}

#[test]
fn the_tables_of_words_are_the_code_s() {
    let document = document().unwrap();
    let incomplete = Missing::ALL.map(Missing::name);
    assert_eq!(names(&document, "incomplete").unwrap(), incomplete);
    let stages = LossStage::ALL.map(LossStage::name);
    assert_eq!(names(&document, "loss-stages").unwrap(), stages);
}

#[test]
fn the_resource_table_is_what_a_resource_holds() {
    let origin = Origin { host: Some("h".into()), extra: vec![] };
    let emitted: Vec<String> = resource(&outputs::server(), Service::Requests, &origin)
        .iter()
        .map(|attribute| attribute.key.to_string())
        .collect();
    let mut documented = names(&document().unwrap(), "resource-attributes").unwrap();
    documented.sort();
    assert_eq!(documented, emitted);
}

/// Every query of the dashboard, variables' included.
fn expressions(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "expr" => out.push(text.clone()),
                    Value::String(text) if key == "query" && text.starts_with("label_values(") => {
                        out.push(text["label_values(".len()..].split([',', '{']).next().unwrap().to_owned());
                    }
                    other => expressions(other, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|item| expressions(item, out)),
        _ => {}
    }
}

fn dashboard() -> (Value, Vec<String>) {
    let text = std::fs::read_to_string(repository("deploy/grafana/inferspan.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    (dashboard, found)
}

#[test]
fn the_dashboard_asks_only_for_metrics_that_are_emitted() {
    let (_sinks, _server, text) = scraped();
    let mut samples: BTreeSet<String> = families(&text).into_values().flat_map(|family| family.samples).collect();
    // Those of GPUs are there where GPUs are: tests/gpu_facts.rs.
    samples.extend(rows().into_iter().map(|row| row.name).filter(|name| name.starts_with("inferspan_gpu_")));
    let (dashboard, expressions) = dashboard();
    assert!(expressions.len() > 20, "{}", expressions.len());
    for expression in &expressions {
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let metrics: Vec<&str> =
            words.filter(|word| word.starts_with("inferspan_") || word.starts_with("gen_ai_server_")).collect();
        assert!(!metrics.is_empty(), "{expression} asks for none of our metrics");
        for metric in metrics {
            assert!(samples.contains(metric), "{expression} asks for {metric}, which is not emitted");
        }
    }
    // Panels must not overlap and must have ids of their own, or Grafana shows one of two.
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut cells = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{} overlaps another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn prometheus_takes_every_query_of_the_dashboard_and_answers_it() {
    let (mut sinks, server, _) = scraped();
    let Some(prometheus) = Prometheus::start(server.address()) else { return };
    prometheus.wait_for_value("inferspan_preemptions_total", 1.0).unwrap();
    sinks.push(&mut outputs::all(3));
    prometheus.wait_for_value("inferspan_preemptions_total", 2.0).unwrap();
    for expression in dashboard().1 {
        let concrete = expression
            .replace("$__rate_interval", "1m")
            .replace("$__range", "1m")
            .replace("$job", "inferspan")
            .replace("$instance", ".*")
            .replace("$server", ".*")
            .replace("$model", ".*")
            .replace("$engine", ".*");
        assert!(!concrete.contains('$'), "{concrete}");
        let answer = prometheus.query(&concrete).unwrap();
        // Of GPUs, where there are some.
        assert!(concrete.contains("inferspan_gpu_") || !answer.is_empty(), "{concrete} has no answer");
    }
}
