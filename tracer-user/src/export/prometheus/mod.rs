//! Metrics for Prometheus: updates are applied on the core's thread (a map look-up and an atomic each), and read at a scrape
//! or at the end of the run.

use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use self::families::Families;
use self::gpu::{GpuMetrics, Readings};
use self::own::Own;
use self::page_file::PageFile;
use self::server::MetricsServer;
use super::sink::{Context, Sink};
use crate::input::gpu::Gpus;
use crate::output::Metric;
use crate::telemetry::Telemetry;

pub mod buckets;
pub mod families;
pub mod family;
pub mod gpu;
pub mod own;
mod page_file;
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
    file: Option<PageFile>,
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
        self.file?.write(self.exposition.openmetrics())
    }
}

pub fn open(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let (address, file) = (context.flags.metrics.as_deref(), context.flags.metrics_out.as_deref());
    if address.is_none() && file.is_none() {
        return Ok(None);
    }
    let gpus = Readings::default();
    let (families, exposition) = with_gpus(Arc::clone(context.telemetry), gpus.clone());
    let file = file.map(PageFile::find).transpose()?;
    let server = address.map(|address| MetricsServer::start(address, exposition.clone())).transpose()?;
    Ok(Some(Box::new(Metrics { families, exposition, server, file, gpus })))
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
