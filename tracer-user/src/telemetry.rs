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

    /// What was lost so far and why, a sentence a stage, as a user should read it.
    pub fn losses(&self) -> Vec<String> {
        let lost = |stage| Some((stage, self.lost(stage))).filter(|(_, count)| *count > 0);
        LossStage::ALL.into_iter().filter_map(lost).map(|(stage, count)| sentence(stage, count)).collect()
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

fn sentence(stage: LossStage, count: u64) -> String {
    let of = |one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let records = || of("record was lost", "records were lost");
    match stage {
        LossStage::EdgeRing => format!("{}: the ring of request edges was full", records()),
        LossStage::DataRing => format!("{}: the ring of payloads was full", records()),
        LossStage::LaunchRing => format!("{}: the ring of CUDA calls was full; totals are complete", records()),
        LossStage::RareRing => {
            format!("{}: the ring of rare CUDA calls was full; what graphs hold is not known", records())
        }
        LossStage::CudaTable => {
            let calls = of("CUDA call was not counted", "CUDA calls were not counted");
            format!("{calls}: the kernel's tables of CUDA threads, functions and memory were full")
        }
        LossStage::Queue => format!("{}: the queue between two threads was full", records()),
        LossStage::Decode => format!("{}: no known layout fits", of("record was left out", "records were left out")),
        LossStage::Descriptors => {
            let connections = of("connection was not followed", "connections were not followed");
            format!("{connections}: the kernel's table of sockets was full")
        }
        LossStage::Targets => {
            let processes = of("process was not followed", "processes were not followed");
            format!("{processes}: the kernel's table of traced processes was full")
        }
        LossStage::Unclassified => of(
            "event was left out: its descriptor closed before it was classified",
            "events were left out: their descriptors closed before they were classified",
        ),
        LossStage::Gap => of("place in a connection lacks bytes", "places in connections lack bytes"),
        LossStage::Cut => {
            format!("{}: over the limit of 1 MiB", of("engine message was cut", "engine messages were cut"))
        }
        LossStage::Unreadable => of("engine message could not be read", "engine messages could not be read"),
        LossStage::Desync => {
            of("connection lost the beginning of a frame", "times a connection lost the beginning of a frame")
        }
        LossStage::HttpEnd => of("response has an end that was not seen", "responses have ends that were not seen"),
        LossStage::Evicted => {
            let things = of("request or message was let go", "requests and messages were let go");
            format!("{things}: too much was open or held")
        }
        LossStage::Connections => {
            let connections = of("connection was not followed", "connections were not followed");
            format!("{connections}: too many are open")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_in_sentences_and_what_was_not_lost_is_not_told() {
        let telemetry = Telemetry::default();
        assert!(telemetry.losses().is_empty());
        telemetry.add_lost(LossStage::Unclassified, 34);
        telemetry.add_lost(LossStage::DataRing, 1);
        let told = [
            "1 record was lost: the ring of payloads was full",
            "34 events were left out: their descriptors closed before they were classified",
        ];
        assert_eq!(telemetry.losses(), told);
    }

    #[test]
    fn the_level_that_is_said_first_stands_and_none_is_none() {
        let telemetry = Telemetry::default();
        assert_eq!(telemetry.level(), None);
        telemetry.set_level(Level::Kernels);
        telemetry.set_level(Level::Requests);
        assert_eq!(telemetry.level(), Some(Level::Kernels));
    }
}
