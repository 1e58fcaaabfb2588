//! Durations by their size: quantiles of millions of them in a few kilobytes.
//!
//! Enters: seconds. Leaves: quantiles that are wrong by at most [`ERROR`] of their value, between [`LEAST`] and [`MOST`]; count, sum and the largest are
//! exact.

/// Smallest and largest duration that are told from others, seconds.
const LEAST: f64 = 1e-6;
const MOST: f64 = 1e5;
/// Each bucket ends at so many times where it begins.
const GROWTH: f64 = 1.02;
/// How wrong a quantile may be, as a share of it: half a bucket.
pub const ERROR: f64 = 0.01;

#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// By the number of the bucket; empty until the first.
    counts: Vec<u64>,
    count: u64,
    sum: f64,
    max: f64,
}

fn bucket(seconds: f64) -> usize {
    // Cut to what the buckets are for, so that the number is small and none is below 0.
    ((seconds.clamp(LEAST, MOST) / LEAST).ln() / GROWTH.ln()) as usize
}

fn middle(bucket: usize) -> f64 {
    LEAST * GROWTH.powf(bucket as f64 + 0.5)
}

impl Histogram {
    pub fn add(&mut self, seconds: f64, times: u64) {
        if !(seconds.is_finite() && seconds >= 0.0) || times == 0 {
            return;
        }
        let bucket = bucket(seconds);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(times);
        self.count = self.count.saturating_add(times);
        self.sum += seconds * times as f64;
        self.max = self.max.max(seconds);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The duration that `q` (0 to 1) of them do not exceed; `None` where there are none.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = ((q * self.count as f64).ceil() as u64).max(1);
        if q >= 1.0 {
            return (self.count > 0).then_some(self.max);
        }
        let mut below = 0_u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            below = below.saturating_add(*count);
            if below >= rank {
                return Some(middle(bucket).min(self.max));
            }
        }
        None
    }

    /// The durations with how many there are of each, smallest first.
    pub fn iter(&self) -> impl Iterator<Item = (f64, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (middle(bucket).min(self.max), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_within_the_error() {
        // 1 ms, 2 ms … 1,000 ms
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|ms| histogram.add(f64::from(ms) / 1e3, 1));
        for (q, exact) in [(0.5, 0.5), (0.95, 0.95), (0.99, 0.99), (0.001, 0.001)] {
            let found = histogram.quantile(q).unwrap();
            assert!((found / exact - 1.0).abs() <= ERROR, "{q}: {found}");
        }
        assert_eq!((histogram.quantile(1.0), histogram.count()), (Some(1.0), 1000));
        assert!((histogram.sum() - 500.5).abs() < 1e-6);
    }

    #[test]
    fn any_duration_is_taken_and_none_that_is_no_duration() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for none in [f64::NAN, -1.0, f64::INFINITY] {
            histogram.add(none, 1);
        }
        assert_eq!(histogram.count(), 0);
        for seconds in [0.0, 1e300, 1e-300] {
            histogram.add(seconds, u64::MAX);
        }
        assert!(histogram.quantile(0.5).is_some() && histogram.counts.len() < 2000);
    }
}
