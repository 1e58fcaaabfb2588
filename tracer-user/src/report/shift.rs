//! By how much one set of numbers lies above another, and between what bounds that is sure.
//!
//! Enters: two samples. Leaves: the Hodges–Lehmann shift (the median of all differences) with its Mann–Whitney interval, and the difference of a
//! quantile with an interval from order statistics; both at [`CONFIDENCE`], free of any distribution, and by no random numbers: the same samples
//! give the same. Samples are taken as independent, which requests in one batch are not quite. Refused: too few to say.

use serde::Serialize;

use super::samples::Samples;

/// How sure the bounds are.
pub const CONFIDENCE: f64 = 0.99;
/// Of the normal distribution, for it.
const Z: f64 = 2.576;
/// Fewest on each side: below, the normal approximation of the ranks is none.
pub const FEWEST: usize = 10;
/// Most numbers of a side of which differences are made; of more, as many quantiles. The bounds are as narrow as all of them allow.
const MOST: usize = 400;

/// A difference, and its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Shift {
    pub estimate: f64,
    pub low: f64,
    pub high: f64,
}

impl Shift {
    pub fn excludes_zero(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// By how much `b` lies above `a`.
pub fn shift(a: &Samples, b: &Samples) -> Option<Shift> {
    let (n, m) = (a.count() as f64, b.count() as f64);
    if a.count().min(b.count()) < FEWEST {
        return None;
    }
    let (a, b) = (thinned(a.sorted()), thinned(b.sorted()));
    let mut differences: Vec<f64> = b.iter().flat_map(|b| a.iter().map(move |a| b - a)).collect();
    differences.sort_unstable_by(f64::total_cmp);
    // The ranks of the bounds, as a share of all differences.
    let half = Z * ((n + m + 1.0) / (12.0 * n * m)).sqrt();
    let last = (differences.len() - 1) as f64;
    let at = |share: f64| differences[(share.clamp(0.0, 1.0) * last).round() as usize];
    Some(Shift { estimate: at(0.5), low: at(0.5 - half), high: at(0.5 + half) })
}

/// All of them, or [`MOST`] quantiles in equal steps.
fn thinned(sorted: &[f64]) -> Vec<f64> {
    if sorted.len() <= MOST {
        return sorted.to_vec();
    }
    let step = sorted.len() as f64 / MOST as f64;
    (0..MOST).map(|at| sorted[((at as f64 + 0.5) * step) as usize]).collect()
}

/// By how much the quantile `q` of `b` lies above that of `a`. The bounds are the farthest that those of both allow, and so wider than need be.
pub fn of_quantile(a: &Samples, b: &Samples, q: f64) -> Option<Shift> {
    let (a_low, a_high) = bounds(a, q)?;
    let (b_low, b_high) = bounds(b, q)?;
    Some(Shift { estimate: b.quantile(q)? - a.quantile(q)?, low: b_low - a_high, high: b_high - a_low })
}

fn bounds(of: &Samples, q: f64) -> Option<(f64, f64)> {
    let n = of.count() as f64;
    let (middle, half) = (n * q, Z * (n * q * (1.0 - q)).sqrt());
    let (low, high) = ((middle - half).floor(), (middle + half).ceil());
    if low < 1.0 || high > n {
        return None;
    }
    Some((of.sorted()[low as usize - 1], of.sorted()[high as usize - 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` numbers around `center`, from 0.5 to 1.5 of it.
    fn around(center: f64, count: usize) -> Samples {
        (0..count).map(|at| center * (0.5 + (at * 7919 % count) as f64 / count as f64)).collect()
    }

    #[test]
    fn a_sample_is_not_above_itself() {
        for count in [10, 300, 5_000] {
            let a = around(1.0, count);
            let shift = shift(&a, &a).unwrap();
            assert!(!shift.excludes_zero() && shift.estimate.abs() < 1e-9, "{count}: {shift:?}");
        }
        assert!(!of_quantile(&around(1.0, 300), &around(1.0, 300), 0.95).unwrap().excludes_zero());
    }

    #[test]
    fn a_shift_is_found_within_its_bounds() {
        // b is a, moved by 0.2
        for count in [100, 5_000] {
            let (a, b) = (around(1.0, count), around(1.0, count).sorted().iter().map(|x| x + 0.2).collect());
            let shift = shift(&a, &b).unwrap();
            assert!(shift.excludes_zero() && (shift.low..=shift.high).contains(&0.2), "{count}: {shift:?}");
            assert!((shift.estimate - 0.2).abs() < 0.01, "{count}: {shift:?}");
        }
        let more = |count| of_quantile(&around(1.0, count), &around(1.4, count), 0.95);
        assert!(more(5_000).is_some_and(|shift| shift.low > 0.0 && (shift.estimate - 0.58).abs() < 0.02));
        assert_eq!(more(100), None, "of the largest five nothing is sure");
    }

    #[test]
    fn of_too_few_nothing_is_said() {
        assert_eq!(shift(&around(1.0, 9), &around(9.0, 1_000)), None);
        assert_eq!(shift(&Samples::default(), &around(9.0, 1_000)), None);
    }
}
