//! A real Jaeger (`INFERSPAN_JAEGER` names the binary) on free ports, with its memory store, and its query API.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::backend::{Backend, Folder, free_ports, get_json, program, wait_for};

/// A running Jaeger; killed when dropped.
#[derive(Debug)]
pub struct Jaeger {
    /// For `--otlp`: gRPC.
    pub otlp_grpc: String,
    /// For `--otlp`: HTTP, with its path.
    pub otlp_http: String,
    /// The query API and UI.
    pub query: String,
    _process: Backend,
    _folder: Folder,
}

impl Jaeger {
    /// Starts one; `None` (loudly) when there is no binary.
    pub fn start() -> Option<Self> {
        let program = program("INFERSPAN_JAEGER", None)?;
        Some(Self::start_program(&program).expect("Jaeger starts"))
    }

    fn start_program(program: &std::path::Path) -> anyhow::Result<Self> {
        let folder = Folder::new("jaeger")?;
        let ports = free_ports(4)?;
        let [grpc, http, query, query_grpc] = ports[..] else { bail!("four ports") };
        let config = folder.path().join("config.yaml");
        std::fs::write(&config, configuration(grpc, http, query, query_grpc))?;
        let query = format!("http://127.0.0.1:{query}");
        let mut command = Command::new(program);
        command.arg("--config").arg(&config);
        let process = Backend::start(&mut command, &folder, &format!("{query}/api/services"))?;
        Ok(Self {
            otlp_grpc: format!("http://127.0.0.1:{grpc}"),
            otlp_http: format!("http://127.0.0.1:{http}/v1/traces"),
            query,
            _process: process,
            _folder: folder,
        })
    }

    /// Names of the services that sent spans, sorted.
    pub fn services(&self) -> anyhow::Result<Vec<String>> {
        let answer = get_json(&format!("{}/api/services", self.query), &[])?;
        let names = answer["data"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// Every trace that has a span of `service`, newest first, at most 1,500 (Jaeger's own limit of a search).
    pub fn traces(&self, service: &str) -> anyhow::Result<Vec<StoredTrace>> {
        let query = [
            ("service", service),
            ("limit", "1500"),
            ("lookback", "custom"),
            ("start", "1"),
            ("end", "4102444800000000"),
        ];
        let answer = get_json(&format!("{}/api/traces", self.query), &query)?;
        Ok(stored(&answer))
    }

    /// The trace with this id (32 hex digits), waited for until it has at least `spans` spans.
    pub fn trace(&self, id: &str, spans: usize) -> anyhow::Result<StoredTrace> {
        wait_for(Duration::from_secs(20), || {
            let answer = get_json(&format!("{}/api/traces/{id}", self.query), &[])?;
            let trace = stored(&answer).into_iter().next().with_context(|| format!("no trace {id}"))?;
            if trace.spans.len() < spans {
                bail!("trace {id} has {} of {spans} spans", trace.spans.len());
            }
            Ok(trace)
        })
    }
}

/// All in one, as Jaeger's own `all-in-one.yaml`, but only what a test talks to, and without a batch to wait for.
fn configuration(grpc: u16, http: u16, query: u16, query_grpc: u16) -> String {
    format!(
        "service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}
  telemetry:
    metrics: {{level: none}}
    logs: {{level: warn}}
extensions:
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: '127.0.0.1:{query}'}}
    grpc: {{endpoint: '127.0.0.1:{query_grpc}'}}
  jaeger_storage:
    backends:
      memory: {{memory: {{max_traces: 100000}}}}
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: '127.0.0.1:{grpc}'}}
      http: {{endpoint: '127.0.0.1:{http}'}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"
    )
}

/// A trace as Jaeger's UI gets it.
#[derive(Debug, Clone)]
pub struct StoredTrace {
    pub trace_id: String,
    /// In order of start, then id.
    pub spans: Vec<StoredSpan>,
}

/// A span as Jaeger's UI gets it.
#[derive(Debug, Clone)]
pub struct StoredSpan {
    pub span_id: String,
    pub name: String,
    /// `service.name` of its resource.
    pub service: String,
    /// Tags of its resource.
    pub process: Vec<(String, Value)>,
    /// Its parent (CHILD_OF).
    pub parent: Option<String>,
    /// Its links (FOLLOWS_FROM): trace and span id.
    pub links: Vec<(String, String)>,
    /// µs since 1970, Jaeger's resolution.
    pub start_us: u64,
    /// µs.
    pub duration_us: u64,
    pub tags: Vec<(String, Value)>,
    pub events: Vec<StoredEvent>,
}

/// A span's event.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    pub at_us: u64,
    pub name: String,
    pub fields: Vec<(String, Value)>,
}

impl StoredTrace {
    /// The spans with this name, in order.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a StoredSpan> {
        self.spans.iter().filter(move |span| span.name == name)
    }
}

impl StoredSpan {
    /// The value of a tag.
    pub fn tag(&self, key: &str) -> Option<&Value> {
        find(&self.tags, key)
    }

    /// The value of a tag of the resource.
    pub fn resource(&self, key: &str) -> Option<&Value> {
        find(&self.process, key)
    }
}

fn find<'a>(tags: &'a [(String, Value)], key: &str) -> Option<&'a Value> {
    tags.iter().find(|(known, _)| known == key).map(|(_, value)| value)
}

/// Reads an answer of `/api/traces` or `/api/transform`.
pub fn stored(answer: &Value) -> Vec<StoredTrace> {
    list(&answer["data"]).map(stored_trace).collect()
}

fn stored_trace(trace: &Value) -> StoredTrace {
    let mut spans: Vec<StoredSpan> = list(&trace["spans"])
        .map(|span| {
            let process = &trace["processes"][text(&span["processID"])];
            let references = |kind: &str| -> Vec<(String, String)> {
                list(&span["references"])
                    .filter(|reference| reference["refType"] == kind)
                    .map(|reference| (text(&reference["traceID"]).to_owned(), text(&reference["spanID"]).to_owned()))
                    .collect()
            };
            StoredSpan {
                span_id: text(&span["spanID"]).to_owned(),
                name: text(&span["operationName"]).to_owned(),
                service: text(&process["serviceName"]).to_owned(),
                process: tags(&process["tags"]),
                parent: references("CHILD_OF").into_iter().next().map(|(_, span_id)| span_id),
                links: references("FOLLOWS_FROM"),
                start_us: span["startTime"].as_u64().unwrap_or_default(),
                duration_us: span["duration"].as_u64().unwrap_or_default(),
                tags: tags(&span["tags"]),
                events: list(&span["logs"]).map(stored_event).collect(),
            }
        })
        .collect();
    spans.sort_by(|a, b| (a.start_us, &a.span_id).cmp(&(b.start_us, &b.span_id)));
    StoredTrace { trace_id: text(&trace["traceID"]).to_owned(), spans }
}

fn stored_event(log: &Value) -> StoredEvent {
    let mut fields = tags(&log["fields"]);
    let at = fields.iter().position(|(key, _)| key == "event");
    let name = at.map(|at| fields.remove(at).1).as_ref().map(text).unwrap_or_default().to_owned();
    StoredEvent { at_us: log["timestamp"].as_u64().unwrap_or_default(), name, fields }
}

fn tags(tags: &Value) -> Vec<(String, Value)> {
    list(tags).map(|tag| (text(&tag["key"]).to_owned(), tag["value"].clone())).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
