//! Series of one metric by their labels, encoded in label order, so that the same state is always the same text.
//!
//! `prometheus_client`'s own `Family` hashes, and a run's metrics file would differ from one replay to the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use std::sync::{PoisonError, RwLock};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
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
