//! What the tracer says about itself: counters that any thread bumps and the Prometheus exporter reads at a scrape.
//!
//! Bounded and lock-free: a fixed set of atomics, and a word that is said once. The names are those of docs/signals.md.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::attach::Level;
use crate::input::{Delivered, LossStage, Probe};
use crate::sample::{Counts, LeftOut};

/// Self-metrics of one run; shared by `Arc`.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// `inferspan_spans_exported_total`
    pub spans_exported: AtomicU64,
    /// `inferspan_spans_dropped_total{reason="queue_full"}`: the exporter's queue was full.
    pub spans_dropped_queue: AtomicU64,
    /// `inferspan_spans_dropped_total{reason="export_failed"}`: the back end refused or was not reached.
    pub spans_dropped_export: AtomicU64,
    /// `inferspan_spans_dropped_total{reason="trace_limit"}`: over the hard cap of a trace.
    pub spans_dropped_limit: AtomicU64,
    /// `inferspan_access_records_dropped_total{reason="queue_full"}`: the access log's writer did not keep up.
    pub access_dropped_queue: AtomicU64,
    /// `inferspan_access_records_dropped_total{reason="write_failed"}`: the access log could not be written.
    pub access_dropped_write: AtomicU64,
    /// `inferspan_engine_steps_missed_total`
    pub steps_missed: AtomicU64,
    delivered: [AtomicU64; Probe::ALL.len()],
    lost: [AtomicU64; LossStage::ALL.len()],
    left_out: [AtomicU64; LeftOut::ALL.len()],
    level: OnceLock<Level>,
}

impl Telemetry {
    /// Counts `count` records lost at `stage` (`inferspan_events_dropped_total{stage}`).
    pub fn add_lost(&self, stage: LossStage, count: u64) {
        self.lost[stage as usize].fetch_add(count, Relaxed);
    }

    /// Records lost at `stage` so far.
    pub fn lost(&self, stage: LossStage) -> u64 {
        self.lost[stage as usize].load(Relaxed)
    }

    /// Counts events that probes delivered (`inferspan_events_total{probe}`).
    pub fn add_delivered(&self, delivered: Delivered) {
        self.delivered[delivered.probe as usize].fetch_add(delivered.count, Relaxed);
    }

    /// Events that this kind of probe delivered so far.
    pub fn delivered(&self, probe: Probe) -> u64 {
        self.delivered[probe as usize].load(Relaxed)
    }

    /// What sampling left out so far.
    pub fn set_left_out(&self, counts: &Counts) {
        for why in LeftOut::ALL {
            self.left_out[why as usize].store(counts.left_out(why), Relaxed);
        }
        self.steps_missed.store(counts.steps_missed, Relaxed);
    }

    /// Traces left out for this reason (`inferspan_traces_left_out_total{reason}`).
    pub fn left_out(&self, why: LeftOut) -> u64 {
        self.left_out[why as usize].load(Relaxed)
    }

    /// Says how much the run observes; what is said first stands.
    pub fn set_level(&self, level: Level) {
        self.level.get_or_init(|| level);
    }

    /// How much the run observes (`inferspan_level{level}`); nothing where nobody knows: a recording of before it was kept.
    pub fn level(&self) -> Option<Level> {
        self.level.get().copied()
    }
}
