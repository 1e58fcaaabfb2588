//! The verdict on one request.
//!
//! The caller's sampled flag decides alone when there is a caller and the policy follows it: a trace whose other half is not
//! stored is of no use, and one whose other half is stored must not have a hole, so neither ratio nor failure changes that.
//! Else: what the policy always keeps is kept, and of the rest a ratio by trace id.

use super::LeftOut;
use super::policy::{Base, Policy};
use super::window::Window;
use crate::output::{Outcome, Trace, TraceId};

#[derive(Debug)]
pub struct Sampler {
    policy: Policy,
    recent: Window,
}

impl Sampler {
    pub fn new(policy: Policy) -> Self {
        Self { policy, recent: Window::default() }
    }

    /// Whether `trace` is exported, or why not.
    pub fn decide(&mut self, trace: &Trace) -> Result<(), LeftOut> {
        let merit = trace.merit;
        let root = trace.spans.first();
        // Every request is compared with the recent ones and becomes one of them, whoever decides about it.
        let end_ns = root.map_or(0, |root| root.end_ns);
        let is_among_slowest = self.policy.slowest.is_some_and(|share| self.recent.add(end_ns, merit.seconds, share));
        if self.policy.follows_parent
            && let Some(is_sampled) = merit.parent_sampled
        {
            return if is_sampled { Ok(()) } else { Err(LeftOut::Traceparent) };
        }
        let went_well = matches!(merit.outcome, Some(Outcome::Stop | Outcome::Length));
        let is_kept = (self.policy.keeps_failed && !went_well)
            || is_among_slowest
            || self.policy.slow.is_some_and(|slow| merit.seconds > slow);
        let is_drawn = || match self.policy.base {
            Base::All => true,
            Base::None => false,
            Base::Ratio(ratio) => root.is_some_and(|root| is_drawn(root.trace_id, ratio)),
        };
        if is_kept || is_drawn() { Ok(()) } else { Err(LeftOut::Sampler) }
    }
}

/// OpenTelemetry's consistent probability sampling: the trace id's last 56 bits are the randomness, and a trace is drawn when
/// they are not below the threshold. Whoever samples the same trace at the same or a higher ratio draws it too.
fn is_drawn(trace_id: TraceId, ratio: f64) -> bool {
    const SPAN: f64 = (1_u64 << 56) as f64;
    let randomness = u128::from_be_bytes(trace_id.0) as u64 & ((1 << 56) - 1);
    randomness >= ((1.0 - ratio) * SPAN).round() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::output::{Merit, Service, Span, SpanId, SpanKind, SpanStatus};

    fn trace(id: u128, merit: Merit) -> Trace {
        let span = Span {
            trace_id: TraceId(id.to_be_bytes()),
            span_id: SpanId([1; 8]),
            parent: None,
            parent_is_remote: false,
            trace_state: None,
            name: "inference_request",
            kind: SpanKind::Server,
            start_ns: 0,
            end_ns: 1_000_000_000,
            status: SpanStatus::Unset,
            attributes: vec![],
            events: vec![],
            links: vec![],
        };
        Trace { server: Arc::default(), service: Service::Requests, spans: vec![span], merit }
    }

    fn merit(outcome: Outcome, seconds: f64, parent_sampled: Option<bool>) -> Merit {
        Merit { outcome: Some(outcome), seconds, parent_sampled }
    }

    /// Ids as a hash makes them.
    fn ids(count: u64) -> impl Iterator<Item = u128> {
        (0..count).map(|n| xxhash_rust::xxh3::xxh3_128(&n.to_le_bytes()))
    }

    fn decide(policy: &str, id: u128, merit: Merit) -> Result<(), LeftOut> {
        Sampler::new(policy.parse().unwrap()).decide(&trace(id, merit))
    }

    #[test]
    fn the_callers_flag_decides_alone() {
        for policy in ["all", "none", "0", "1", "0,slow>0s"] {
            for outcome in [Outcome::Stop, Outcome::Error] {
                assert_eq!(decide(policy, 1, merit(outcome, 9.0, Some(false))), Err(LeftOut::Traceparent), "{policy}");
                assert_eq!(decide(policy, 1, merit(outcome, 9.0, Some(true))), Ok(()), "{policy}");
            }
        }
        assert_eq!(decide("all,ignore-parent", 1, merit(Outcome::Stop, 1.0, Some(false))), Ok(()));
        assert_eq!(decide("none,ignore-parent", 1, merit(Outcome::Stop, 1.0, Some(true))), Err(LeftOut::Sampler));
    }

    #[test]
    fn a_ratio_draws_its_share_and_a_higher_one_draws_what_a_lower_one_did() {
        let fine = merit(Outcome::Stop, 1.0, None);
        let drawn = |policy: &str| ids(10_000).filter(|id| decide(policy, *id, fine).is_ok()).collect::<Vec<_>>();
        let (tenth, half) = (drawn("0.1"), drawn("0.5"));
        assert!((900..1100).contains(&tenth.len()), "{}", tenth.len());
        assert!((4800..5200).contains(&half.len()), "{}", half.len());
        assert!(tenth.iter().all(|id| half.contains(id)));
        assert_eq!(tenth, drawn("0.1"), "the same ids every time");
        assert_eq!(drawn("0").len(), 0);
        assert_eq!(drawn("1").len(), 10_000);
    }

    #[test]
    fn the_threshold_is_the_specifications() {
        let half = 1_u128 << 55;
        assert!(is_drawn(TraceId(half.to_be_bytes()), 0.5));
        assert!(!is_drawn(TraceId((half - 1).to_be_bytes()), 0.5));
        // Bits above the last 56 say nothing.
        assert!(!is_drawn(TraceId((u128::MAX << 56).to_be_bytes()), 0.5));
    }

    #[test]
    fn what_did_not_go_well_is_always_kept() {
        for outcome in [Outcome::Error, Outcome::Abort, Outcome::Rejected, Outcome::Unknown] {
            assert_eq!(decide("0", 1, merit(outcome, 0.1, None)), Ok(()), "{outcome:?}");
        }
        let open = Merit { outcome: None, ..Merit::default() };
        assert_eq!(decide("0", 1, open), Ok(()));
        assert_eq!(decide("0", 1, merit(Outcome::Length, 0.1, None)), Err(LeftOut::Sampler));
        assert_eq!(decide("none", 1, merit(Outcome::Error, 0.1, None)), Err(LeftOut::Sampler));
    }

    #[test]
    fn what_is_slow_is_kept() {
        assert_eq!(decide("0,slow>2s", 1, merit(Outcome::Stop, 2.1, None)), Ok(()));
        assert_eq!(decide("0,slow>2s", 1, merit(Outcome::Stop, 2.0, None)), Err(LeftOut::Sampler));
        let mut sampler = Sampler::new("0,slowest=1%".parse().unwrap());
        for id in 0..200 {
            let _ = sampler.decide(&trace(id, merit(Outcome::Stop, 1.0, None)));
        }
        assert_eq!(sampler.decide(&trace(1, merit(Outcome::Stop, 1.0, None))), Err(LeftOut::Sampler));
        assert_eq!(sampler.decide(&trace(1, merit(Outcome::Stop, 5.0, None))), Ok(()));
    }
}
