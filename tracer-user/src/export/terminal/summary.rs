//! The closing summary: requests by outcome, quantiles of TTFT and end-to-end time, the slowest requests.
//!
//! Bounded: quantiles come from a logarithmic histogram (0.2 % wide buckets), and [`SLOWEST`] traces are kept.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::{Style, duration, waterfall};
use crate::output::{AccessRecord, Outcome, Service, Trace};

/// Traces that are drawn at the end.
const SLOWEST: usize = 3;

/// Collects while the run goes on.
#[derive(Debug, Default)]
pub struct Digest {
    outcomes: BTreeMap<Outcome, u64>,
    incomplete: u64,
    ttft: Quantiles,
    e2e: Quantiles,
    /// Slowest first.
    slowest: Vec<(u64, Arc<Trace>)>,
}

impl Digest {
    pub fn record(&mut self, record: &AccessRecord) {
        *self.outcomes.entry(record.outcome).or_default() += 1;
        self.incomplete += u64::from(!record.incomplete.is_whole());
        self.ttft.add(record.seconds.ttft);
        self.e2e.add(record.seconds.e2e);
    }

    pub fn trace(&mut self, trace: &Arc<Trace>) {
        let Some(root) = trace.spans.first().filter(|_| trace.service == Service::Requests) else { return };
        let took = root.end_ns.saturating_sub(root.start_ns);
        let at = self.slowest.partition_point(|(slower, _)| *slower >= took);
        if at < SLOWEST {
            self.slowest.insert(at, (took, Arc::clone(trace)));
            self.slowest.truncate(SLOWEST);
        }
    }

    /// Requests recorded.
    pub fn requests(&self) -> u64 {
        self.outcomes.values().sum()
    }

    /// The whole summary, with a line end; empty when there was nothing.
    pub fn render(&self, style: Style) -> String {
        let requests = self.requests();
        if requests == 0 && self.slowest.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        let title = if requests == 1 { "1 request".to_owned() } else { format!("{requests} requests") };
        let outcomes: Vec<_> =
            self.outcomes.iter().map(|(outcome, count)| format!("{count} {}", outcome.name())).collect();
        let _ = write!(out, "\n{}: {}", style.paint(1, &title), outcomes.join(", "));
        if self.incomplete > 0 {
            let _ = write!(out, " ({} incomplete)", self.incomplete);
        }
        out.push('\n');
        for (name, quantiles) in [("ttft", &self.ttft), ("e2e", &self.e2e)] {
            if let (Some(p50), Some(p99)) = (quantiles.at(0.5), quantiles.at(0.99)) {
                let _ = writeln!(out, "  {name:<5} p50 {:<8} p99 {:<8}", duration(p50), duration(p99));
            }
        }
        for (nth, (_, trace)) in self.slowest.iter().enumerate() {
            let title = ["slowest request", "second slowest", "third slowest"].get(nth).unwrap_or(&"slow request");
            let _ = writeln!(out, "\n{}", style.paint(1, title));
            out.push_str(&waterfall::render(trace, style));
        }
        out
    }
}

/// Width of a bucket: its upper bound is this much more than its lower.
const GROWTH: f64 = 1.002;

/// A histogram with logarithmic buckets from 1 µs to about 28 h: an error of at most 0.1 %, at most 12,700 buckets.
#[derive(Debug, Default)]
pub struct Quantiles {
    buckets: BTreeMap<i32, u64>,
    count: u64,
}

impl Quantiles {
    pub fn add(&mut self, seconds: Option<f64>) {
        let Some(seconds) = seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0) else { return };
        let bucket = (seconds.clamp(1e-6, 1e5).ln() / GROWTH.ln()).round() as i32;
        *self.buckets.entry(bucket).or_default() += 1;
        self.count += 1;
    }

    /// The smallest value that `share` of all are not above; `None` when there are none.
    pub fn at(&self, share: f64) -> Option<f64> {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        self.buckets.iter().find_map(|(bucket, count)| {
            seen += count;
            (seen >= rank).then(|| GROWTH.powi(*bucket))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::PLAIN;
    use super::*;
    use crate::export::access_log::tests::record;
    use crate::output::{Incomplete, Missing};

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let mut quantiles = Quantiles::default();
        assert_eq!(quantiles.at(0.5), None);
        for n in 1..=1000 {
            quantiles.add(Some(f64::from(n) / 1000.0));
        }
        quantiles.add(None);
        quantiles.add(Some(f64::NAN));
        for (share, expected) in [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0)] {
            let got = quantiles.at(share).unwrap();
            assert!((got / expected - 1.0).abs() <= 0.001, "{share}: {got}");
        }
    }

    #[test]
    fn the_summary_counts_by_outcome() {
        let mut digest = Digest::default();
        digest.record(&record());
        digest.record(&AccessRecord {
            outcome: Outcome::Stop,
            incomplete: Incomplete::from_iter([Missing::AttachedLate]),
            ..record()
        });
        digest.record(&AccessRecord { outcome: Outcome::Stop, ..record() });
        let text = digest.render(PLAIN);
        assert!(text.contains("3 requests: 2 stop, 1 length (1 incomplete)"), "{text}");
        assert!(text.contains("ttft  p50 12.3ms"), "{text}");
    }

    #[test]
    fn nothing_seen_is_nothing_said() {
        assert_eq!(Digest::default().render(PLAIN), "");
    }
}
