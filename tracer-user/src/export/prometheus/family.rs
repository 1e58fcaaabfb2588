//! Series of one metric by their labels, encoded in label order, so that the same state is always the same text.
//!
//! `prometheus_client`'s own `Family` hashes, and a run's metrics file would differ from one replay to the next.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// One series' labels, in the order they are shown.
pub type LabelPairs = Vec<(&'static str, String)>;

/// A metric's series; clones share them.
#[derive(Debug)]
pub struct Family<M> {
    series: Arc<RwLock<BTreeMap<LabelPairs, M>>>,
    new: fn() -> M,
}

impl<M> Clone for Family<M> {
    fn clone(&self) -> Self {
        Self { series: Arc::clone(&self.series), new: self.new }
    }
}

impl<M: Clone> Family<M> {
    /// A family whose series start as `new` makes them.
    pub fn new(new: fn() -> M) -> Self {
        Self { series: Arc::default(), new }
    }

    /// The series with these labels, made when it is not there yet. The caller bounds how many there are.
    pub fn series(&self, labels: LabelPairs) -> M {
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        series.entry(labels).or_insert_with(self.new).clone()
    }
}

/// A metric that may have to take over what another one of its family counted.
pub trait Join {
    /// Adds `other`'s to its own; `false` when that cannot be done.
    fn join(&self, other: &Self) -> bool;
}

impl Join for Counter<f64, AtomicU64> {
    fn join(&self, other: &Self) -> bool {
        self.inc_by(other.get());
        true
    }
}

impl Join for Counter {
    fn join(&self, other: &Self) -> bool {
        self.inc_by(other.get());
        true
    }
}

impl<N, A> Join for Gauge<N, A> {
    /// The one with the name is the one that moved last.
    fn join(&self, _: &Self) -> bool {
        true
    }
}

impl Join for Histogram {
    /// The library gives no buckets out.
    fn join(&self, _: &Self) -> bool {
        false
    }
}

impl<S> Join for HistogramWithExemplars<S> {
    fn join(&self, _: &Self) -> bool {
        false
    }
}

impl<M: Join> Family<M> {
    /// Gives every series for which `renamed` has new labels these; one that meets another there is joined with it, or stays
    /// where it is when that cannot be done: nothing counted is lost.
    pub fn rename(&self, renamed: impl Fn(&LabelPairs) -> Option<LabelPairs>) {
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let moves: Vec<_> = series.keys().filter_map(|from| Some((from.clone(), renamed(from)?))).collect();
        for (from, to) in moves {
            let Some(metric) = series.remove(&from) else { continue };
            match series.get(&to) {
                None => {
                    series.insert(to, metric);
                }
                Some(there) if there.join(&metric) => {}
                Some(_) => {
                    series.insert(from, metric);
                }
            }
        }
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Family<M> {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        for (labels, metric) in series.iter() {
            metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}
