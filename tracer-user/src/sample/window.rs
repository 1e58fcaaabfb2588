//! Durations of the last minutes, to tell whether one is among the slowest.
//!
//! A logarithmic histogram (buckets 1 % wide) over a sliding window of slices; time is that of the observations. Bounded:
//! 2,550 buckets a slice, [`SLICES`] slices.

use std::collections::{BTreeMap, VecDeque};

/// One slice of the window, ns.
const SLICE_NS: u64 = 30_000_000_000;
/// Slices of the window: five minutes.
const SLICES: u64 = 10;
/// Width of a bucket.
const GROWTH: f64 = 1.01;

#[derive(Debug, Default)]
pub struct Window {
    /// Oldest first, with its number (time / [`SLICE_NS`]).
    slices: VecDeque<(u64, BTreeMap<i32, u64>)>,
    /// Sum of all slices.
    whole: BTreeMap<i32, u64>,
    count: u64,
}

impl Window {
    /// Adds what took `seconds` and ended at `end_ns`; whether it is among the slowest `share` of the window, itself included.
    ///
    /// Of equal durations the first stands out and no other.
    pub fn add(&mut self, end_ns: u64, seconds: f64, share: f64) -> bool {
        let number = end_ns / SLICE_NS;
        // What comes late belongs to the newest slice: order of ends and order of arrival differ by seconds.
        let newest = self.slices.back().map_or(number, |(newest, _)| number.max(*newest));
        while self.slices.front().is_some_and(|(oldest, _)| oldest + SLICES <= newest) {
            self.forget();
        }
        let bucket = bucket(seconds);
        let allowed = share * (self.count + 1) as f64;
        // In the order of a bucket's own durations nothing is known: it stands in the middle of them.
        let mut slower = self.whole.get(&bucket).map_or(0.0, |equal| *equal as f64 / 2.0);
        for (_, count) in self.whole.range(bucket + 1..) {
            slower += *count as f64;
            if slower >= allowed {
                break;
            }
        }
        if self.slices.back().is_none_or(|(number, _)| *number != newest) {
            self.slices.push_back((newest, BTreeMap::new()));
        }
        if let Some((_, slice)) = self.slices.back_mut() {
            *slice.entry(bucket).or_default() += 1;
        }
        *self.whole.entry(bucket).or_default() += 1;
        self.count += 1;
        slower < allowed
    }

    fn forget(&mut self) {
        let Some((_, slice)) = self.slices.pop_front() else { return };
        for (bucket, count) in slice {
            self.count -= count;
            if let Some(left) = self.whole.get_mut(&bucket) {
                *left -= count;
                if *left == 0 {
                    self.whole.remove(&bucket);
                }
            }
        }
    }
}

fn bucket(seconds: f64) -> i32 {
    (seconds.clamp(1e-6, 1e5).ln() / GROWTH.ln()).round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn about_the_share_asked_for_is_among_the_slowest() {
        let mut window = Window::default();
        // In no order at all, from 0 to 10 s.
        let took = |n: u64| (xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()) % 10_000) as f64 / 1000.0;
        let kept = (0..5000).filter(|n| window.add(SECOND, took(*n), 0.05)).count();
        assert!((225..=300).contains(&kept), "{kept}");
        assert!(window.add(SECOND, 60.0, 0.05));
        assert!(!window.add(SECOND, 0.5, 0.05));
    }

    #[test]
    fn equal_durations_do_not_all_stand_out() {
        let mut window = Window::default();
        assert_eq!((0..500).filter(|_| window.add(SECOND, 1.0, 0.01)).count(), 1);
    }

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let mut window = Window::default();
        for _ in 0..100 {
            window.add(SECOND, 9.0, 0.01);
        }
        assert!(!window.add(200 * SECOND, 2.0, 0.01));
        assert!(window.add(400 * SECOND, 3.0, 0.01));
        assert_eq!(window.count, 2, "the first slice is gone");
    }

    #[test]
    fn a_late_end_is_taken_and_grows_nothing() {
        let mut window = Window::default();
        window.add(1000 * SECOND, 1.0, 0.5);
        for n in 0..100 {
            window.add(n * SECOND, 1.0, 0.5);
        }
        assert_eq!(window.slices.len(), 1);
    }
}
