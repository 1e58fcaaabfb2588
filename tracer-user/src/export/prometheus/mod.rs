//! Metrics for Prometheus: updates are applied on the core's thread (a map look-up and an atomic each), and read at a scrape
//! or at the end of the run.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use self::families::Families;
use self::gpu::{GpuMetrics, Readings};
use self::own::Own;
use self::server::MetricsServer;
use super::sink::{Context, Sink};
use crate::exit::{Code, Failure};
use crate::input::gpu::Gpus;
use crate::output::Metric;
use crate::telemetry::Telemetry;

pub mod buckets;
pub mod families;
pub mod family;
pub mod gpu;
pub mod own;
mod register;
mod series;
pub mod server;
pub mod table;
pub mod text;

/// Reads the metrics as text; clones share them.
#[derive(Debug, Clone)]
pub struct Exposition(Arc<Registry>);

impl Exposition {
    /// Every metric as OpenMetrics 1.0.0 text. Fails only when a metric cannot be encoded as text, which none of ours does.
    pub fn openmetrics(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0)?;
        Ok(text)
    }
}

/// The metrics of a run.
#[derive(Debug)]
struct Metrics {
    families: Families,
    exposition: Exposition,
    server: Option<MetricsServer>,
    file: Option<PathBuf>,
    gpus: Readings,
}

impl Sink for Metrics {
    fn metric(&mut self, metric: &Metric) {
        self.families.apply(metric);
    }

    fn gpus(&mut self, now: Option<&Arc<Gpus>>) {
        self.gpus.set(now.cloned());
    }

    fn keep_serving(&mut self) -> Option<MetricsServer> {
        self.server.take()
    }

    fn finish(self: Box<Self>) -> Option<String> {
        let path = self.file.as_deref()?;
        let text = self.exposition.openmetrics().map_err(std::io::Error::other);
        let written = text.and_then(|text| write_atomically(path, &text));
        written.err().map(|error| format!("metrics file {}: {error}", path.display()))
    }
}

pub fn open(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let (address, file) = (context.flags.metrics.as_deref(), context.flags.metrics_out.as_deref());
    if address.is_none() && file.is_none() {
        return Ok(None);
    }
    let gpus = Readings::default();
    let (families, exposition) = with_gpus(Arc::clone(context.telemetry), gpus.clone());
    file.map(check_writable).transpose()?;
    let server = address.map(|address| MetricsServer::start(address, exposition.clone())).transpose()?;
    Ok(Some(Box::new(Metrics { families, exposition, server, file: file.map(Path::to_owned), gpus })))
}

/// Every metric that there is, in the order in which they are shown.
pub fn rows() -> Vec<table::Row> {
    table::rows().into_iter().chain(own::rows()).chain(gpu::rows()).collect()
}

/// A fresh set of metrics: the families to move, and the exposition to read.
pub fn metrics(telemetry: Arc<Telemetry>) -> (Families, Exposition) {
    with_gpus(telemetry, Readings::default())
}

fn with_gpus(telemetry: Arc<Telemetry>, readings: Readings) -> (Families, Exposition) {
    let mut registry = Registry::default();
    let families = Families::register(&mut registry);
    registry.register_collector(Box::new(Own(telemetry)));
    registry.register_collector(Box::new(GpuMetrics(readings)));
    (families, Exposition(Arc::new(registry)))
}

/// Refuses a file that could not be written at the end, now, when the user can still do something.
pub fn check_writable(path: &Path) -> Result<(), Failure> {
    let parent = folder(path);
    let why = match std::fs::metadata(parent) {
        Ok(data) if data.is_dir() && !path.is_dir() => return Ok(()),
        Ok(_) => "that is a folder, or its folder is none".to_owned(),
        Err(error) => format!("{}: {error}", parent.display()),
    };
    let what = format!("cannot write metrics to {}: {why}", path.display());
    Err(Failure::new(Code::Usage, what, "name a file in a folder that exists"))
}

/// Writes `text` to `path` at once: a reader sees the old file or the whole new one.
///
/// What is no regular file (`/dev/stdout`, a named pipe) is written to instead: a rename would replace the device itself.
pub fn write_atomically(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|data| !data.is_file()) {
        return std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
    }
    // A link stays a link.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let path = target.as_path();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder(path).join(format!(".{name}.{}", std::process::id()));
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
