//! From the event clock and the engine's clock to wall time, and back.
//!
//! Enters: anchors (this event time was that wall time), repeated so that drift is followed, and the engine clock's offset.
//! Leaves: unix ns. The anchor in force at a point in time converts it, so a stream always converts the same way.

use std::collections::VecDeque;

use crate::input::EventNanos;

/// Anchors kept: an hour of one a second.
const MAX_ANCHORS: usize = 3600;

#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// (event ns, unix ns), in event order.
    anchors: VecDeque<(EventNanos, u64)>,
    /// Engine ns + this = event ns.
    engine_offset: i64,
    /// The offset is an estimate, so engine times may lie a little outside what they belong in.
    estimated: bool,
}

impl Clock {
    /// `event_ns` was `unix_ns`.
    pub fn anchor(&mut self, event_ns: EventNanos, unix_ns: u64) {
        if self.anchors.back().is_some_and(|&(last, _)| event_ns < last) {
            return;
        }
        if self.anchors.len() == MAX_ANCHORS {
            self.anchors.pop_front();
        }
        self.anchors.push_back((event_ns, unix_ns));
    }

    /// Sets the estimated offset from the engine's clock to the event clock.
    pub fn set_engine_offset(&mut self, offset_ns: i64) {
        self.engine_offset = offset_ns;
        self.estimated = offset_ns != 0;
    }

    /// Whether engine times are placed by an estimate.
    pub fn engine_is_estimated(&self) -> bool {
        self.estimated
    }

    fn offset_at(&self, event_ns: EventNanos) -> i128 {
        let after = self.anchors.partition_point(|&(at, _)| at <= event_ns);
        let anchor = self.anchors.get(after.saturating_sub(1));
        anchor.map_or(0, |&(event, unix)| i128::from(unix) - i128::from(event))
    }

    /// Wall time of an event time. Without an anchor the event clock is the wall clock.
    pub fn unix(&self, event_ns: EventNanos) -> u64 {
        clamp(i128::from(event_ns) + self.offset_at(event_ns))
    }

    /// Event time of a wall time, by the newest anchor.
    pub fn event_of_unix(&self, unix_ns: u64) -> EventNanos {
        clamp(i128::from(unix_ns) - self.offset_at(EventNanos::MAX))
    }

    /// Event time of an engine stamp (`time.monotonic()`, seconds).
    pub fn event_of_engine(&self, seconds: f64) -> EventNanos {
        clamp(((seconds * 1e9).round() as i128).saturating_add(i128::from(self.engine_offset)))
    }
}

fn clamp(ns: i128) -> u64 {
    u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
}

/// Bounds on the offset from an engine's clock to the event clock, for streams that have no common clock (a syscall log).
///
/// An output's stamp is older than the call that sends it: `offset ≤ sent − stamp`. A request is queued after it was sent:
/// `offset ≥ sent − queued`. The middle of the tightest bounds is the estimate; half their distance is its error.
#[derive(Debug, Clone, Copy, Default)]
pub struct OffsetBounds {
    least: Option<i64>,
    most: Option<i64>,
}

impl OffsetBounds {
    /// An engine stamp (ns) was made before the event time `at`.
    pub fn stamped_before(&mut self, stamp_ns: i64, at: EventNanos) {
        let bound = bound(stamp_ns, at);
        self.most = Some(self.most.map_or(bound, |most| most.min(bound)));
    }

    /// An engine stamp (ns) was made after the event time `at`.
    pub fn stamped_after(&mut self, stamp_ns: i64, at: EventNanos) {
        let bound = bound(stamp_ns, at);
        self.least = Some(self.least.map_or(bound, |least| least.max(bound)));
    }

    /// The estimate, ns; `None` before the first output.
    pub fn estimate(&self) -> Option<i64> {
        match (self.least, self.most) {
            (Some(least), Some(most)) if least <= most => Some(least.saturating_add_unsigned(most.abs_diff(least) / 2)),
            (_, Some(most)) => Some(most),
            (least, None) => least,
        }
    }

    /// Half the distance of the bounds, ns: how wrong the estimate may be.
    pub fn uncertainty(&self) -> Option<u64> {
        match (self.least, self.most) {
            (Some(least), Some(most)) if least <= most => Some(most.abs_diff(least) / 2),
            _ => None,
        }
    }
}

/// `at − stamp_ns`, as far as it can be said.
fn bound(stamp_ns: i64, at: EventNanos) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX).saturating_sub(stamp_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_followed_by_the_anchor_in_force() {
        let mut clock = Clock::default();
        clock.anchor(1_000, 1_000_000);
        clock.anchor(2_000, 1_001_500); // the wall clock was slewed by 500 ns
        assert_eq!(clock.unix(1_500), 1_000_500);
        assert_eq!(clock.unix(2_500), 1_002_000);
        assert_eq!(clock.unix(500), 999_500, "before the first anchor its offset holds");
        assert_eq!(clock.event_of_unix(1_002_000), 2_500);
    }

    #[test]
    fn the_offset_lies_between_what_requests_and_outputs_allow() {
        // event clock:  ADD sent 100 ------ output sent 160
        // engine clock:     queued 10 -- output stamped 50        offset in [90, 110]
        let mut bounds = OffsetBounds::default();
        bounds.stamped_after(10, 100);
        bounds.stamped_before(50, 160);
        assert_eq!(bounds.estimate(), Some(100));
        assert_eq!(bounds.uncertainty(), Some(10));
    }

    #[test]
    fn stamps_and_times_of_any_size_give_a_time_and_an_offset() {
        let mut clock = Clock::default();
        clock.anchor(u64::MAX, 0);
        for offset in [i64::MIN, 0, i64::MAX] {
            clock.set_engine_offset(offset);
            for stamp in [0.0, -1e300, 1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
                clock.unix(clock.event_of_engine(stamp));
            }
        }
        assert_eq!(clock.event_of_engine(f64::INFINITY), u64::MAX);
        assert_eq!((clock.event_of_unix(0), clock.event_of_unix(u64::MAX)), (u64::MAX, u64::MAX));
        let mut bounds = OffsetBounds::default();
        for stamp in [i64::MIN, 0, i64::MAX] {
            for at in [0, u64::MAX] {
                bounds.stamped_after(stamp, at);
                bounds.stamped_before(stamp, at);
            }
        }
        assert_eq!((bounds.estimate(), bounds.uncertainty()), (Some(i64::MIN + 1), None));
        let wide = OffsetBounds { least: Some(i64::MIN), most: Some(i64::MAX) };
        assert_eq!((wide.estimate(), wide.uncertainty()), (Some(-1), Some(u64::MAX / 2)));
    }
}
