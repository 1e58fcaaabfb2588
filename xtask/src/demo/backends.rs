//! Jaeger and Prometheus for the demo, on free ports, with nothing left on disk but their logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::http;
use super::process::{Interrupt, Process, wait_for};
use crate::{setup, shell};

/// Both start within a second or two; an image takes longer on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);

/// What they may take to stop; they keep nothing that is worth more. Jaeger waits half a minute for idle connections.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Jaeger {
    pub process: Process,
    /// Where OTLP over gRPC goes.
    pub otlp: String,
    /// The query API, and the UI where there is one.
    pub url: String,
    pub has_ui: bool,
    /// The engine and the container's name, when it runs in one.
    container: Option<(&'static str, String)>,
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        // Killing the client of a container engine would leave the container behind.
        if let Some((engine, name)) = &self.container {
            let _ = shell::output(Command::new(engine).args(["kill", name]));
        }
    }
}

impl Jaeger {
    pub fn start(folder: &Path, interrupt: &Interrupt) -> Result<Self> {
        let [otlp, query, query_grpc] = http::free_ports()?;
        let config = folder.join("jaeger.json");
        // JSON is YAML.
        let settings = json!({
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 100_000}}}},
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": format!("127.0.0.1:{query}")},
                    "grpc": {"endpoint": format!("127.0.0.1:{query_grpc}")},
                },
            },
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": format!("127.0.0.1:{otlp}")}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        });
        write(&config, &settings.to_string())?;
        let image = setup::jaeger::image();
        let container = image.map(|(engine, _)| (engine, format!("inferspan-demo-jaeger-{}", std::process::id())));
        let mut command = if let (Some((engine, image)), Some((_, name))) = (image, &container) {
            let mut command = Command::new(engine);
            command.args(["run", "--rm", "--network", "host", "--name", name, "--volume"]);
            command.arg(format!("{}:/etc/jaeger/config.yaml:ro", config.display()));
            command.args([image, "--config", "/etc/jaeger/config.yaml"]);
            command
        } else {
            let mut command = Command::new(setup::jaeger::ensure()?);
            command.arg("--config").arg(&config);
            command
        };
        let process = Process::start("jaeger", &mut command, folder)?.with_patience(PATIENCE);
        let url = format!("http://127.0.0.1:{query}");
        let services = format!("{url}/api/services");
        let mut jaeger =
            Self { process, otlp: format!("http://127.0.0.1:{otlp}"), url, has_ui: image.is_some(), container };
        let answers = || Ok(http::answers(&services).then_some(()));
        wait_for("Jaeger", START_LIMIT, interrupt, &mut [&mut jaeger.process], answers)?;
        Ok(jaeger)
    }

    /// Every service that sent spans, by name.
    pub fn traces_by_service(&self) -> Result<Vec<Service>> {
        let answer = http::json(&format!("{}/api/services", self.url), &[])?;
        let mut found = Vec::new();
        for service in answer["data"].as_array().map_or(&[][..], Vec::as_slice) {
            let Some(service) = service.as_str() else { continue };
            let parameters = [("service", service), ("limit", "100000"), ("lookback", "1h")];
            let answer = http::json(&format!("{}/api/traces", self.url), &parameters)?;
            let Some(traces) = answer["data"].as_array() else {
                bail!("Jaeger's query API gave no traces of {service}: {answer}");
            };
            let spans = traces.iter().map(|trace| trace["spans"].as_array().map_or(0, Vec::len)).sum();
            let trace_ids = traces.iter().filter_map(|trace| Some(trace["traceID"].as_str()?.to_owned())).collect();
            found.push(Service { name: service.to_owned(), trace_ids, spans });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

/// What Jaeger has of one service.
pub struct Service {
    pub name: String,
    pub trace_ids: Vec<String>,
    pub spans: usize,
}

pub struct Prometheus {
    pub process: Process,
    pub url: String,
}

impl Prometheus {
    /// Starts a Prometheus with the scrape configuration of `deploy/prometheus` and `target` (`host:port`) as its target.
    pub fn start(target: &str, folder: &Path, interrupt: &Interrupt) -> Result<Self> {
        let [port] = http::free_ports()?;
        let home = folder.join("prometheus");
        let targets = home.join("targets");
        fs::create_dir_all(&targets).with_context(|| format!("cannot make {}", targets.display()))?;
        let config = shell::root().join("deploy/prometheus/prometheus.yml");
        let copy = home.join("prometheus.yml");
        fs::copy(&config, &copy).with_context(|| format!("cannot copy {} to {}", config.display(), copy.display()))?;
        write(&targets.join("inferspan.json"), &json!([{"targets": [target], "labels": {}}]).to_string())?;
        let mut command = Command::new(setup::prometheus::ensure()?.server);
        command
            .arg(format!("--config.file={}", copy.display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(["--enable-feature=exemplar-storage", "--log.level=warn"]);
        let mut process = Process::start("prometheus", &mut command, folder)?.with_patience(PATIENCE);
        let url = format!("http://127.0.0.1:{port}");
        let ready = format!("{url}/-/ready");
        wait_for(
            "Prometheus",
            START_LIMIT,
            interrupt,
            &mut [&mut process],
            || Ok(http::answers(&ready).then_some(())),
        )?;
        Ok(Self { process, url })
    }

    /// The instant value of `expression`, with the labels of each series; NaN is left out.
    pub fn query(&self, expression: &str) -> Result<Vec<(String, f64)>> {
        let answer = http::json(&format!("{}/api/v1/query", self.url), &[("query", expression)])?;
        let Some(series) = answer["data"]["result"].as_array() else {
            bail!("Prometheus did not answer `{expression}`: {answer}");
        };
        let mut values = Vec::new();
        for one in series {
            let value = one["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
            if let Some(value) = value.filter(|value| !value.is_nan()) {
                values.push((labels(&one["metric"]), value));
            }
        }
        Ok(values)
    }
}

fn labels(metric: &Value) -> String {
    let Some(labels) = metric.as_object() else { return String::new() };
    let pairs: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    pairs.join(", ")
}

fn write(path: &PathBuf, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
