//! What a series is made of: its type, its exemplar, and the words that some are counted by.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::gauge::Gauge;

use crate::output::{FinishReason, Outcome, SpanId, TraceId};

/// By their number.
pub(super) const OUTCOMES: [Outcome; 6] =
    [Outcome::Stop, Outcome::Length, Outcome::Abort, Outcome::Error, Outcome::Rejected, Outcome::Unknown];
/// By their number.
pub(super) const FINISH_REASONS: [FinishReason; 5] =
    [FinishReason::Stop, FinishReason::Length, FinishReason::Abort, FinishReason::Error, FinishReason::Repetition];

/// The span that an observation was made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exemplar {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
}

impl EncodeLabelSet for Exemplar {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        ("trace_id", self.trace_id.to_string()).encode(encoder.encode_label())?;
        ("span_id", self.span_id.to_string()).encode(encoder.encode_label())
    }
}

pub(super) type Phase = HistogramWithExemplars<Exemplar>;
/// A counter of seconds.
pub(super) type Seconds = Counter<f64, AtomicU64>;
pub(super) type Ratio = Gauge<f64, AtomicU64>;
