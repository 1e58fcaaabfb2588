//! Numbers of which all are kept: exact quantiles.

/// Numbers in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl FromIterator<f64> for Samples {
    /// Those that are numbers.
    fn from_iter<T: IntoIterator<Item = f64>>(from: T) -> Self {
        let mut all: Vec<f64> = from.into_iter().filter(|x| x.is_finite()).collect();
        all.sort_unstable_by(f64::total_cmp);
        Self(all)
    }
}

impl Samples {
    pub fn sorted(&self) -> &[f64] {
        &self.0
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest that at least `q` (0 to 1) of them do not exceed; `None` where there are none.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = (q * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied()
    }

    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    pub fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_is_there() {
        let samples: Samples = (1..=100).rev().map(f64::from).chain([f64::NAN]).collect();
        assert_eq!([0.0, 0.5, 0.95, 0.99, 1.0].map(|q| samples.quantile(q)), [1.0, 50.0, 95.0, 99.0, 100.0].map(Some));
        assert_eq!(samples.max(), Some(100.0));
        assert_eq!(Samples::default().median(), None);
    }
}
