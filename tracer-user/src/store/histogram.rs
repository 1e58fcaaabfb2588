//! How times are spread, in little room: buckets that grow by a twelfth of an octave each.
//!
//! Enters: seconds. Leaves: quantiles, right to [`ERROR`], and counts a bucket. Refused: what is no time (negative, not finite).

/// Buckets an octave.
const FINE: usize = 12;
/// Upper edge of the first bucket, s: nothing that is measured here is quicker.
const LEAST: f64 = 1e-5;
/// 27 octaves above [`LEAST`]: 1,342 s. What took longer is in the last.
const BUCKETS: usize = 27 * FINE + 1;
/// Buckets an octave that are shown.
const SHOWN: usize = 3;

/// Relative error of a quantile at most: half a bucket.
pub const ERROR: f64 = 0.03;

/// Counts a bucket; nothing is held until something was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Option<Box<[u32; BUCKETS]>>,
}

impl Histogram {
    pub fn add(&mut self, seconds: f64) {
        if let Some(bucket) = bucket(seconds) {
            let count = &mut self.held()[bucket];
            *count = count.saturating_add(1);
        }
    }

    /// Adds what another holds.
    pub fn merge(&mut self, other: &Self) {
        let Some(counts) = &other.counts else { return };
        for (own, more) in self.held().iter_mut().zip(counts.iter()) {
            *own = own.saturating_add(*more);
        }
    }

    fn held(&mut self) -> &mut [u32; BUCKETS] {
        self.counts.get_or_insert_with(|| Box::new([0; BUCKETS]))
    }

    fn iter(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().flat_map(|counts| counts.iter()).map(|count| u64::from(*count))
    }

    pub fn count(&self) -> u64 {
        self.iter().sum()
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_none()
    }

    /// The time, s, that `share` (0 to 1) of them took at most; `None` where there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        // The nearest rank.
        let rank = ((share.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut below = 0;
        let bucket = self.iter().position(|its| {
            below += its;
            below >= rank
        })?;
        // The middle of its bucket, as ratios go.
        Some(LEAST * ((bucket as f64 - 0.5) / FINE as f64).exp2())
    }

    /// Upper edge, s, and count of each bucket from the first that holds something to the last, [`SHOWN`] an octave.
    pub fn shown(&self) -> Vec<(f64, u64)> {
        const WIDTH: usize = FINE / SHOWN;
        let mut shown: Vec<(f64, u64)> = Vec::new();
        for (bucket, count) in self.iter().enumerate() {
            let coarse = bucket.div_ceil(WIDTH);
            if coarse == shown.len() {
                shown.push((LEAST * (coarse as f64 / SHOWN as f64).exp2(), 0));
            }
            shown[coarse].1 += count;
        }
        let last = shown.iter().rposition(|(_, count)| *count > 0).map_or(0, |last| last + 1);
        shown.truncate(last);
        let first = shown.iter().position(|(_, count)| *count > 0).unwrap_or(0);
        shown.split_off(first)
    }
}

/// Where a time belongs; `None` where it is none.
fn bucket(seconds: f64) -> Option<usize> {
    if !seconds.is_finite() || seconds < 0.0 {
        return None;
    }
    let above = (seconds / LEAST).log2() * FINE as f64;
    Some(if above > 0.0 { (above.ceil() as usize).min(BUCKETS - 1) } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times: impl IntoIterator<Item = f64>) -> Histogram {
        let mut histogram = Histogram::default();
        times.into_iter().for_each(|seconds| histogram.add(seconds));
        histogram
    }

    #[test]
    fn quantiles_are_right_within_the_error_that_is_told() {
        // 1,000 times from 0.1 ms to 100 s, each 1.4 % longer than the one before
        let times: Vec<f64> = (0..1_000).map(|n| 1e-4 * 1e6_f64.powf(f64::from(n) / 1_000.0)).collect();
        let histogram = of(times.iter().copied());
        for share in [0.001, 0.25, 0.5, 0.95, 0.99, 1.0] {
            let exact = times[((share * 1_000.0_f64).ceil() as usize).max(1) - 1];
            let told = histogram.quantile(share).unwrap();
            assert!((told / exact - 1.0).abs() <= ERROR, "p{share}: {told} for {exact}");
        }
    }

    #[test]
    fn nothing_has_no_quantile_and_what_is_no_time_is_not_counted() {
        let mut histogram = of([f64::NAN, -1.0, f64::INFINITY]);
        assert_eq!((histogram.count(), histogram.quantile(0.5), histogram.shown().len()), (0, None, 0));
        histogram.merge(&of([0.0, 1e9]));
        assert_eq!(histogram.count(), 2, "the shortest and the longest are");
    }

    #[test]
    fn each_is_shown_once_at_or_below_its_edge() {
        let times = [1e-6, 1e-5, 0.5, 0.51, 1.0, 1_000.0];
        let shown = of(times).shown();
        assert_eq!(shown.iter().map(|(_, count)| count).sum::<u64>(), times.len() as u64);
        for (place, (edge, count)) in shown.iter().enumerate() {
            let from = if place == 0 { -1.0 } else { shown[place - 1].0 };
            let within = times.iter().filter(|time| **time > from * (1.0 + 1e-12) && **time <= edge * (1.0 + 1e-12));
            assert_eq!(within.count() as u64, *count, "up to {edge}");
        }
    }
}
