//! What the tracer says about itself, read at a scrape: events, losses, exported spans, CPU time, memory, level, build.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;
use rustix::param::{clock_ticks_per_second, page_size};

use crate::input::{LossStage, Probe};
use crate::proc::{OWN, Proc};
use crate::sample::LeftOut;
use crate::telemetry::{LEVEL, Telemetry};

/// Reads [`Telemetry`] and `/proc/self`.
#[derive(Debug)]
pub struct Own(pub Arc<Telemetry>);

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let own = &*self.0;
        let read = |counter: &AtomicU64| counter.load(Relaxed);

        let name = "inferspan_events";
        let help = "Events that probes delivered, by probe: front_end, process, syscall or tokenizer";
        let probes = Probe::ALL.map(|probe| (probe.name(), own.delivered(probe)));
        counters(&mut encoder, name, help, "probe", &probes)?;

        let name = "inferspan_events_dropped";
        let help = "Events lost, by where";
        let stages = LossStage::ALL.map(|stage| (stage.name(), own.lost(stage)));
        counters(&mut encoder, name, help, "stage", &stages)?;

        let name = "inferspan_spans_exported";
        let help = "Spans that the OTLP back end took or the trace file holds";
        encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter(&read(&own.spans_exported), NO_EXEMPLAR)?;

        let name = "inferspan_spans_dropped";
        let help = "Spans that were not exported, by reason";
        let reasons = [
            ("export_failed", read(&own.spans_dropped_export)),
            ("queue_full", read(&own.spans_dropped_queue)),
            ("trace_limit", read(&own.spans_dropped_limit)),
        ];
        counters(&mut encoder, name, help, "reason", &reasons)?;

        let name = "inferspan_traces_left_out";
        let help =
            "Requests and engine steps that were not exported as traces because sampling left them out, by reason";
        let reasons = LeftOut::ALL.map(|why| (why.name(), own.left_out(why)));
        counters(&mut encoder, name, help, "reason", &reasons)?;

        let name = "inferspan_engine_steps_missed";
        let help = "Engine steps that exported requests link to and that were not at hand";
        encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter(&read(&own.steps_missed), NO_EXEMPLAR)?;

        let name = "inferspan_access_records_dropped";
        let help = "Access log records that were not written, by reason";
        let reasons =
            [("queue_full", read(&own.access_dropped_queue)), ("write_failed", read(&own.access_dropped_write))];
        counters(&mut encoder, name, help, "reason", &reasons)?;

        if let Some(usage) = Usage::read() {
            let help = "CPU time that the tracer used, user and system";
            encoder
                .encode_descriptor("inferspan_self_cpu", help, Some(&Unit::Seconds), MetricType::Counter)?
                .encode_counter(&usage.cpu_seconds, None::<&Exemplar<NoLabelSet, f64>>)?;
            let help = "Resident memory of the tracer";
            encoder
                .encode_descriptor("inferspan_self_memory", help, Some(&Unit::Bytes), MetricType::Gauge)?
                .encode_gauge(&usage.resident_bytes)?;
        }

        encoder
            .encode_descriptor("inferspan_level", "Level of observation in force (always 1)", None, MetricType::Gauge)?
            .encode_family(&[("level", LEVEL)])?
            .encode_gauge(&1_i64)?;
        encoder
            .encode_descriptor("inferspan_build", "Version of the tracer (always 1)", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }
}

fn counters(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    label: &'static str,
    values: &[(&'static str, u64)],
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in values {
        metric.encode_family(&[(label, *value)])?.encode_counter(count, NO_EXEMPLAR)?;
    }
    Ok(())
}

/// This process's use of the machine.
struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
}

impl Usage {
    /// `None` when `/proc` is not there: no value beats a wrong one.
    fn read() -> Option<Self> {
        let used = Proc::this().usage(OWN).ok()?;
        Some(Self {
            cpu_seconds: used.cpu_ticks as f64 / clock_ticks_per_second() as f64,
            resident_bytes: used.resident_pages * page_size() as u64,
        })
    }
}
