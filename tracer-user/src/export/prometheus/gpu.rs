//! What the driver says about the machine's GPUs, read at a scrape from the newest answer. Without NVML, none of it is there; a
//! replay has what its recording kept.

use std::borrow::Cow;
use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;

use super::table::{Kind, Row};
use crate::input::gpu::{Gpu, Gpus, Throttle};

const LABELS: [&str; 3] = ["gpu", "uuid", "name"];

/// The newest answer of the driver; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readings(Arc<Mutex<Option<Arc<Gpus>>>>);

impl Readings {
    pub fn set(&self, now: Option<Arc<Gpus>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn newest(&self) -> Option<Arc<Gpus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads the newest answer.
#[derive(Debug)]
pub struct GpuMetrics(pub Readings);

struct Metric {
    /// Without unit and suffix.
    name: &'static str,
    unit: Option<&'static str>,
    help: &'static str,
    value: Value,
}

type Words = Vec<(Cow<'static, str>, u64)>;

enum Value {
    Gauge(fn(&Gpu) -> Option<f64>),
    /// One series a word, with the label that holds the word.
    Gauges(&'static str, fn(&Gpu) -> Words),
    Counts(&'static str, fn(&Gpu) -> Words),
}

static TABLE: [Metric; 10] = [
    Metric {
        name: "inferspan_gpu_memory_used",
        unit: Some("bytes"),
        help: "Memory in use on the GPU, by all processes",
        value: Value::Gauge(|gpu| gpu.memory_used_bytes.map(|bytes| bytes as f64)),
    },
    Metric {
        name: "inferspan_gpu_memory_total",
        unit: Some("bytes"),
        help: "Memory of the GPU",
        value: Value::Gauge(|gpu| gpu.memory_total_bytes.map(|bytes| bytes as f64)),
    },
    Metric {
        name: "inferspan_gpu_utilization",
        unit: Some("ratio"),
        help: "Part of the driver's last sample period with a kernel on the GPU",
        value: Value::Gauge(|gpu| gpu.busy_percent.map(|percent| f64::from(percent) / 100.0)),
    },
    Metric {
        name: "inferspan_gpu_sm_clock",
        unit: Some("hertz"),
        help: "Clock of the GPU's multiprocessors",
        value: Value::Gauge(|gpu| gpu.sm_clock_mhz.map(|mhz| f64::from(mhz) * 1e6)),
    },
    Metric {
        name: "inferspan_gpu_memory_clock",
        unit: Some("hertz"),
        help: "Clock of the GPU's memory",
        value: Value::Gauge(|gpu| gpu.memory_clock_mhz.map(|mhz| f64::from(mhz) * 1e6)),
    },
    Metric {
        name: "inferspan_gpu_power",
        unit: Some("watts"),
        help: "Power that the GPU draws",
        value: Value::Gauge(|gpu| gpu.power_milliwatts.map(|milliwatts| f64::from(milliwatts) / 1e3)),
    },
    Metric {
        name: "inferspan_gpu_temperature",
        unit: Some("celsius"),
        help: "Temperature of the GPU",
        value: Value::Gauge(|gpu| gpu.temperature_celsius.map(f64::from)),
    },
    Metric {
        name: "inferspan_gpu_ecc_errors",
        unit: None,
        help: "Memory errors since the driver was loaded, by kind",
        value: Value::Counts("kind", |gpu| {
            let kinds = [("corrected", gpu.ecc_corrected), ("uncorrected", gpu.ecc_uncorrected)];
            kinds.into_iter().filter_map(|(kind, count)| Some((kind.into(), count?))).collect()
        }),
    },
    Metric {
        name: "inferspan_gpu_xid_errors",
        unit: None,
        help: "Critical errors (Xid) since the attach, by NVIDIA's number",
        value: Value::Counts("xid", |gpu| {
            gpu.xids.iter().flatten().map(|(number, count)| (number.to_string().into(), *count)).collect()
        }),
    },
    Metric {
        name: "inferspan_gpu_throttled",
        unit: None,
        help: "Whether this holds the GPU's clocks down (1) or not (0)",
        value: Value::Gauges("reason", |gpu| {
            let Some(now) = &gpu.throttled else { return Vec::new() };
            Throttle::ALL.map(|reason| (reason.name().into(), u64::from(now.contains(&reason)))).into()
        }),
    },
];

/// The rows of the table, as a user sees them on a machine with GPUs.
pub fn rows() -> Vec<Row> {
    let row = |metric: &Metric| {
        let (suffix, kind, label) = match metric.value {
            Value::Gauge(_) => ("", Kind::Gauge, None),
            Value::Gauges(label, _) => ("", Kind::Gauge, Some(label)),
            Value::Counts(label, _) => ("_total", Kind::Counter, Some(label)),
        };
        let unit = metric.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
        let labels = LABELS.into_iter().chain(label).collect();
        Row { name: format!("{}{unit}{suffix}", metric.name), kind, labels, help: metric.help }
    };
    TABLE.iter().map(row).collect()
}

impl Collector for GpuMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let Some(gpus) = self.0.newest() else { return Ok(()) };
        TABLE.iter().try_for_each(|metric| metric.encode(&gpus.all, &mut encoder))
    }
}

impl Metric {
    /// A metric that no GPU has is left out, and so is a GPU that does not have it.
    fn encode(&self, gpus: &[Gpu], encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let has = |gpu: &&Gpu| match &self.value {
            Value::Gauge(read) => read(gpu).is_some(),
            Value::Gauges(_, read) | Value::Counts(_, read) => !read(gpu).is_empty(),
        };
        let gpus: Vec<&Gpu> = gpus.iter().filter(has).collect();
        if gpus.is_empty() {
            return Ok(());
        }
        let unit = self.unit.map(|unit| Unit::Other(unit.to_owned()));
        let kind = if matches!(self.value, Value::Counts(..)) { MetricType::Counter } else { MetricType::Gauge };
        let mut metric = encoder.encode_descriptor(self.name, self.help, unit.as_ref(), kind)?;
        for gpu in gpus {
            let index = gpu.index.to_string();
            let known = |text: &Option<String>| text.clone().unwrap_or_default();
            let labels: Vec<(&str, String)> =
                LABELS.into_iter().zip([index, known(&gpu.uuid), known(&gpu.name)]).collect();
            let with = |label, word: &str| [labels.clone(), vec![(label, word.to_owned())]].concat();
            match &self.value {
                Value::Gauge(read) => metric.encode_family(&labels)?.encode_gauge(&read(gpu).unwrap_or_default())?,
                Value::Gauges(label, read) => read(gpu)
                    .into_iter()
                    .try_for_each(|(word, value)| metric.encode_family(&with(label, &word))?.encode_gauge(&value))?,
                Value::Counts(label, read) => read(gpu).into_iter().try_for_each(|(word, count)| {
                    metric
                        .encode_family(&with(label, &word))?
                        .encode_counter(&count, None::<&Exemplar<NoLabelSet, u64>>)
                })?,
            }
        }
        Ok(())
    }
}
