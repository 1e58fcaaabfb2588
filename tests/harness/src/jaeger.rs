//! A real Jaeger on free ports, with its memory store, and its query API.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::folder::Folder;
use crate::http;
use crate::installed::program;
use crate::process::Process;
use crate::wait::{Interrupt, retry, wait_for};

/// It starts within a second or two; an image takes longer on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);

/// A running Jaeger; stopped when dropped.
#[derive(Debug)]
pub struct Jaeger {
    pub process: Process,
    /// For `--otlp`: gRPC.
    pub otlp_grpc: String,
    /// For `--otlp`: HTTP, with its path.
    pub otlp_http: String,
    /// The query API, and the UI where there is one.
    pub query: String,
    _folder: Option<Folder>,
}

impl Jaeger {
    /// Starts that of `INFERSPAN_JAEGER`; `None` (loudly) when there is no binary.
    pub fn start() -> Option<Self> {
        let program = program("INFERSPAN_JAEGER", None)?;
        let folder = Folder::scratch("jaeger").expect("a folder for Jaeger");
        let command = |config: &Path| {
            let mut command = Command::new(program);
            command.arg("--config").arg(config);
            command
        };
        // What it keeps is gone with its memory, and it waits half a minute for idle connections.
        let jaeger = Self::start_with(folder.path(), Duration::ZERO, &Interrupt::never(), command);
        Some(Self { _folder: Some(folder), ..jaeger.expect("Jaeger starts") })
    }

    /// Starts what `command` makes of the path of its configuration. It may take `patience` to stop.
    pub fn start_with(
        folder: &Path,
        patience: Duration,
        interrupt: &Interrupt,
        command: impl FnOnce(&Path) -> Command,
    ) -> Result<Self> {
        let ports = http::free_ports()?;
        let [grpc, otlp_http, query, _] = ports;
        let config = folder.join("jaeger.json");
        std::fs::write(&config, configuration(ports).to_string())
            .with_context(|| format!("cannot write {}", config.display()))?;
        let process = Process::start("jaeger", &mut command(&config), folder)?.with_patience(patience);
        let mut jaeger = Self {
            process,
            otlp_grpc: format!("http://127.0.0.1:{grpc}"),
            otlp_http: format!("http://127.0.0.1:{otlp_http}/v1/traces"),
            query: format!("http://127.0.0.1:{query}"),
            _folder: None,
        };
        let services = format!("{}/api/services", jaeger.query);
        let answers = || Ok(http::answers(&services).then_some(()));
        wait_for("Jaeger", START_LIMIT, interrupt, &mut [&mut jaeger.process], answers)?;
        Ok(jaeger)
    }

    /// Names of the services that sent spans, sorted.
    pub fn services(&self) -> Result<Vec<String>> {
        let answer = http::json(&format!("{}/api/services", self.query), &[])?;
        let names = answer["data"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// Every trace that has a span of `service`, newest first, at most 1,500 (Jaeger's own limit of a search).
    pub fn traces(&self, service: &str) -> Result<Vec<StoredTrace>> {
        let query = [
            ("service", service),
            ("limit", "1500"),
            ("lookback", "custom"),
            ("start", "1"),
            ("end", "4102444800000000"),
        ];
        let answer = http::json(&format!("{}/api/traces", self.query), &query)?;
        Ok(stored(&answer))
    }

    /// The trace with this id (32 hex digits), waited for until it has at least `spans` spans.
    pub fn trace(&self, id: &str, spans: usize) -> Result<StoredTrace> {
        retry(Duration::from_secs(20), || {
            let answer = http::json(&format!("{}/api/traces/{id}", self.query), &[])?;
            let trace = stored(&answer).into_iter().next().with_context(|| format!("no trace {id}"))?;
            if trace.spans.len() < spans {
                bail!("trace {id} has {} of {spans} spans", trace.spans.len());
            }
            Ok(trace)
        })
    }
}

/// All in one, as Jaeger's own `all-in-one.yaml`, but only what is talked to, and without a batch to wait for. JSON is YAML.
fn configuration([grpc, http, query, query_grpc]: [u16; 4]) -> Value {
    let at = |port: u16| json!({"endpoint": format!("127.0.0.1:{port}")});
    json!({
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 100_000}}}},
            "jaeger_query": {"storage": {"traces": "memory"}, "http": at(query), "grpc": at(query_grpc)},
        },
        "receivers": {"otlp": {"protocols": {"grpc": at(grpc), "http": at(http)}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    })
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
