//! Jaeger and Prometheus for the demo, on free ports, with nothing left on disk but their logs; what they got is read back.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use inferspan_harness::process::Process;
use inferspan_harness::prometheus::Prometheus;
use inferspan_harness::wait::{Interrupt, wait_for};
use inferspan_harness::{http, jaeger};
use serde_json::json;

use super::report;
use crate::{setup, shell};

/// From the last request to what it left being in Prometheus and Jaeger.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(20);
/// What they may take to stop; they keep nothing that is worth more. Jaeger waits half a minute for idle connections.
const PATIENCE: Duration = Duration::from_secs(1);

/// Both, and where Prometheus finds the metrics.
pub(super) struct Backends {
    pub jaeger: Jaeger,
    pub prometheus: Prometheus,
    /// `host:port` of the metrics.
    metrics: String,
}

impl Backends {
    pub(super) fn start(folder: &Path, interrupt: &Interrupt) -> Result<Self> {
        let [port] = http::free_ports()?;
        let metrics = format!("127.0.0.1:{port}");
        let jaeger = shell::step("starting Jaeger", || Jaeger::start(folder, interrupt))?;
        let prometheus = shell::step("starting Prometheus", || start_prometheus(&metrics, folder, interrupt))?;
        Ok(Self { jaeger, prometheus, metrics })
    }

    /// What `attach` is told.
    pub(super) fn attach_arguments(&self) -> [&str; 4] {
        ["--metrics", &self.metrics, "--otlp", &self.jaeger.server.otlp_grpc]
    }

    pub(super) fn processes(&mut self) -> Vec<&mut Process> {
        vec![&mut self.jaeger.server.process, &mut self.prometheus.process]
    }

    /// The metrics of the run, as Prometheus has them.
    pub(super) fn metrics(&self, attach: &mut Process, interrupt: &Interrupt) -> Result<String> {
        wait_for("the metrics in Prometheus", ARRIVAL_LIMIT, interrupt, &mut [attach], || {
            Ok((report::requests_total(&self.prometheus)? > 0.0).then_some(()))
        })?;
        // Two more scrapes, so that the last requests are in.
        interrupt.sleep(Duration::from_millis(2200));
        interrupt.check()?;
        Ok(format!("── metrics, from Prometheus ──\n{}", report::metrics(&self.prometheus)?))
    }

    /// The traces of the run, as Jaeger has them; fails when one is missing that the access log names.
    pub(super) fn traces(&self, access_log: &Path, interrupt: &Interrupt) -> Result<String> {
        let (ids, _) = report::access_log(access_log)?;
        let mut last = None;
        let waited = wait_for("the traces in Jaeger", ARRIVAL_LIMIT, interrupt, &mut [], || {
            match report::traces(&self.jaeger, &ids) {
                Ok(traces) => Ok(Some(traces)),
                Err(error) => {
                    last = Some(error);
                    Ok(None)
                }
            }
        });
        match (waited, last) {
            (Ok(traces), _) => Ok(format!("── traces, from Jaeger ──\n{traces}")),
            (Err(_), Some(error)) if !interrupt.came() => Err(error),
            (Err(error), _) => Err(error),
        }
    }
}

pub(super) struct Jaeger {
    /// What it runs in; first, so that it goes first.
    _container: Option<Container>,
    pub server: jaeger::Jaeger,
    pub has_ui: bool,
}

/// A container engine, and the name of what runs in it.
struct Container(&'static str, String);

impl Drop for Container {
    fn drop(&mut self) {
        // Killing the client of a container engine would leave the container behind.
        let _ = shell::output(Command::new(self.0).args(["kill", &self.1]));
    }
}

impl Jaeger {
    pub(super) fn start(folder: &Path, interrupt: &Interrupt) -> Result<Self> {
        let (container, server) = if let Some((engine, image)) = setup::jaeger::image() {
            let container = Container(engine, format!("inferspan-demo-jaeger-{}", std::process::id()));
            let command = |config: &Path| {
                let mut command = Command::new(engine);
                command.args(["run", "--rm", "--network", "host", "--name", &container.1, "--volume"]);
                command.arg(format!("{}:/etc/jaeger/config.yaml:ro", config.display()));
                command.args([image, "--config", "/etc/jaeger/config.yaml"]);
                command
            };
            let server = jaeger::Jaeger::start_with(folder, PATIENCE, interrupt, command)?;
            (Some(container), server)
        } else {
            let program = setup::jaeger::ensure()?;
            let command = |config: &Path| {
                let mut command = Command::new(program);
                command.arg("--config").arg(config);
                command
            };
            (None, jaeger::Jaeger::start_with(folder, PATIENCE, interrupt, command)?)
        };
        Ok(Self { has_ui: container.is_some(), _container: container, server })
    }

    /// Every service that sent spans, by name.
    pub(super) fn traces_by_service(&self) -> Result<Vec<Service>> {
        let url = &self.server.query;
        let mut found = Vec::new();
        for service in self.server.services()? {
            let parameters = [("service", service.as_str()), ("limit", "100000"), ("lookback", "1h")];
            let answer = http::json(&format!("{url}/api/traces"), &parameters)?;
            let Some(traces) = answer["data"].as_array() else {
                bail!("Jaeger's query API gave no traces of {service}: {answer}");
            };
            let spans = traces.iter().map(|trace| trace["spans"].as_array().map_or(0, Vec::len)).sum();
            let trace_ids = traces.iter().filter_map(|trace| Some(trace["traceID"].as_str()?.to_owned())).collect();
            found.push(Service { name: service, trace_ids, spans });
        }
        Ok(found)
    }
}

/// What Jaeger has of one service.
pub(super) struct Service {
    pub name: String,
    pub trace_ids: Vec<String>,
    pub spans: usize,
}

/// Starts a Prometheus with the scrape configuration of `deploy/prometheus` and `target` (`host:port`) as its target.
fn start_prometheus(target: &str, folder: &Path, interrupt: &Interrupt) -> Result<Prometheus> {
    let home = folder.join("prometheus");
    let targets = home.join("targets");
    fs::create_dir_all(&targets).with_context(|| format!("cannot make {}", targets.display()))?;
    let config = shell::root().join("deploy/prometheus/prometheus.yml");
    let copy = home.join("prometheus.yml");
    fs::copy(&config, &copy).with_context(|| format!("cannot copy {} to {}", config.display(), copy.display()))?;
    let list = targets.join("inferspan.json");
    fs::write(&list, json!([{"targets": [target], "labels": {}}]).to_string())
        .with_context(|| format!("cannot write {}", list.display()))?;
    Prometheus::start_with(&setup::prometheus::ensure()?.server, &copy, folder, PATIENCE, interrupt)
}
