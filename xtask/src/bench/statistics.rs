//! Medians and spreads of a few measurements.

/// The value below which this share of `values` is, between neighbours where it falls there; 0 of none.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1)) as f64 * share;
    let (low, high) = (sorted.get(at.floor() as usize), sorted.get(at.ceil() as usize));
    match (low, high) {
        (Some(low), Some(high)) => low + (high - low) * at.fract(),
        _ => 0.0,
    }
}

pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        let found = [0.0, 0.25, 0.5, 1.0].map(|share| quantile(&values, share));
        assert!(found.iter().zip([1.0, 1.75, 2.5, 4.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        assert!(median(&[]).abs() < 1e-12 && (median(&[7.0]) - 7.0).abs() < 1e-12);
    }
}
