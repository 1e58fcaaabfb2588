//! What the tracer says about itself, read at a scrape: events, losses, exported spans, CPU time, memory, level, build.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;

use super::table::{Kind, Row};
use crate::attach::Level;
use crate::export::usage::Usage;
use crate::input::{LossStage, Probe};
use crate::sample::LeftOut;
use crate::telemetry::Telemetry;

/// Reads [`Telemetry`] and `/proc/self`.
#[derive(Debug)]
pub struct Own(pub Arc<Telemetry>);

/// One metric: its name without unit and suffix, its help, and where its value comes from.
struct Metric {
    name: &'static str,
    help: &'static str,
    value: Value,
}

enum Value {
    Count(fn(&Telemetry) -> u64),
    /// A counter of one series a word, with the label that holds the word.
    Counts(&'static str, fn(&Telemetry) -> Vec<(&'static str, u64)>),
    CpuSeconds,
    MemoryBytes,
    /// Always 1, with this label; left out where nobody knows its word.
    Fact(&'static str, fn(&Telemetry) -> Option<&'static str>),
    /// As an info metric.
    Info(&'static str, &'static str),
}

/// Every metric of the tracer's own, in the order in which they are shown.
static TABLE: [Metric; 11] = [
    Metric {
        name: "inferspan_events",
        help: "Events that probes delivered, by kind of probe",
        value: Value::Counts("probe", |own| Probe::ALL.map(|probe| (probe.name(), own.delivered(probe))).into()),
    },
    Metric {
        name: "inferspan_events_dropped",
        help: "Events lost, by where",
        value: Value::Counts("stage", |own| LossStage::ALL.map(|stage| (stage.name(), own.lost(stage))).into()),
    },
    Metric {
        name: "inferspan_spans_exported",
        help: "Spans that the OTLP back end took or the trace file holds",
        value: Value::Count(|own| own.spans_exported.load(Relaxed)),
    },
    Metric {
        name: "inferspan_spans_dropped",
        help: "Spans that were not exported, by reason",
        value: Value::Counts("reason", |own| {
            vec![
                ("export_failed", own.spans_dropped_export.load(Relaxed)),
                ("queue_full", own.spans_dropped_queue.load(Relaxed)),
                ("trace_limit", own.spans_dropped_limit.load(Relaxed)),
            ]
        }),
    },
    Metric {
        name: "inferspan_traces_left_out",
        help: "Requests and steps not exported as traces because of sampling, by reason",
        value: Value::Counts("reason", |own| LeftOut::ALL.map(|why| (why.name(), own.left_out(why))).into()),
    },
    Metric {
        name: "inferspan_engine_steps_missed",
        help: "Engine steps that exported requests link to and that were not at hand",
        value: Value::Count(|own| own.steps_missed.load(Relaxed)),
    },
    Metric {
        name: "inferspan_access_records_dropped",
        help: "Access log records that were not written, by reason",
        value: Value::Counts("reason", |own| {
            vec![
                ("queue_full", own.access_dropped_queue.load(Relaxed)),
                ("write_failed", own.access_dropped_write.load(Relaxed)),
            ]
        }),
    },
    Metric {
        name: "inferspan_self_cpu",
        help: "CPU time that the tracer used, user and system",
        value: Value::CpuSeconds,
    },
    Metric { name: "inferspan_self_memory", help: "Resident memory of the tracer", value: Value::MemoryBytes },
    Metric {
        name: "inferspan_level",
        help: "Level of observation in force (always 1)",
        value: Value::Fact("level", |own| own.level().map(Level::name)),
    },
    Metric {
        name: "inferspan_build",
        help: "Version of the tracer (always 1)",
        value: Value::Info("version", env!("CARGO_PKG_VERSION")),
    },
];

/// The rows of the table, as a user sees them.
pub fn rows() -> Vec<Row> {
    let row = |metric: &Metric| {
        let (suffix, kind, label) = match metric.value {
            Value::Count(_) => ("_total", Kind::Counter, None),
            Value::Counts(label, _) => ("_total", Kind::Counter, Some(label)),
            Value::CpuSeconds => ("_seconds_total", Kind::Counter, None),
            Value::MemoryBytes => ("_bytes", Kind::Gauge, None),
            Value::Fact(label, _) => ("", Kind::Gauge, Some(label)),
            Value::Info(label, _) => ("_info", Kind::Gauge, Some(label)),
        };
        Row { name: format!("{}{suffix}", metric.name), kind, labels: label.into_iter().collect(), help: metric.help }
    };
    TABLE.iter().map(row).collect()
}

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let used = Usage::read();
        TABLE.iter().try_for_each(|metric| metric.encode(&self.0, used.as_ref(), &mut encoder))
    }
}

impl Metric {
    /// What has no value is left out.
    fn encode(&self, own: &Telemetry, used: Option<&Usage>, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let (unit, kind) = match self.value {
            Value::Count(_) | Value::Counts(..) => (None, MetricType::Counter),
            Value::CpuSeconds => (Some(Unit::Seconds), MetricType::Counter),
            Value::MemoryBytes => (Some(Unit::Bytes), MetricType::Gauge),
            Value::Fact(..) => (None, MetricType::Gauge),
            Value::Info(..) => (None, MetricType::Info),
        };
        let is_known = match self.value {
            Value::CpuSeconds | Value::MemoryBytes => used.is_some(),
            Value::Fact(_, read) => read(own).is_some(),
            _ => true,
        };
        if !is_known {
            return Ok(());
        }
        let mut metric = encoder.encode_descriptor(self.name, self.help, unit.as_ref(), kind)?;
        match &self.value {
            Value::Count(read) => metric.encode_counter(&read(own), NO_EXEMPLAR),
            Value::Counts(label, read) => read(own).into_iter().try_for_each(|(word, count)| {
                metric.encode_family(&[(*label, word)])?.encode_counter(&count, NO_EXEMPLAR)
            }),
            Value::CpuSeconds => {
                let seconds = used.map(|used| used.cpu_seconds).unwrap_or_default();
                metric.encode_counter(&seconds, None::<&Exemplar<NoLabelSet, f64>>)
            }
            Value::MemoryBytes => metric.encode_gauge(&used.map(|used| used.resident_bytes).unwrap_or_default()),
            Value::Fact(label, read) => {
                metric.encode_family(&[(*label, read(own).unwrap_or_default())])?.encode_gauge(&1_i64)
            }
            Value::Info(label, value) => metric.encode_info(&[(*label, *value)]),
        }
    }
}
