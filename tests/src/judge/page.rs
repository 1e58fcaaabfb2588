//! Reads a `/metrics` page, plain text or OpenMetrics, into numbers.

use std::collections::BTreeMap;

/// Series of a page, by name and labels as written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page(BTreeMap<(String, String), f64>);

impl Page {
    /// Lines that are no sample are skipped.
    pub fn parse(text: &str) -> Self {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            // An exemplar follows the value after " # ".
            let sample = line.split(" # ").next().unwrap_or(line);
            let (key, rest) = match sample.find('}') {
                Some(end) => sample.split_at(end + 1),
                None => sample.split_at(sample.find(' ').unwrap_or(sample.len())),
            };
            let (name, labels) = key.split_once('{').unwrap_or((key, ""));
            if let Some(value) = rest.split_whitespace().next().and_then(|value| value.parse().ok()) {
                series.insert((name.to_owned(), labels.trim_end_matches('}').to_owned()), value);
            }
        }
        Self(series)
    }

    /// Sum of the series called `name` whose labels hold `label` (`key="value"`; empty: all of them).
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        self.0.iter().filter(|((n, labels), _)| n == name && labels.contains(label)).map(|(_, value)| value).sum()
    }

    /// Whether any series is called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.0.keys().any(|(known, _)| known == name)
    }

    /// What grew since `earlier`, series by series.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().map(|(key, value)| (key.clone(), value - earlier.0.get(key).unwrap_or(&0.0))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_exemplars_and_comments_are_told_apart() {
        let page = Page::parse(
            "# HELP a b\na_total{x=\"1\",y=\"2\"} 3.5\na_total{x=\"2\"} 1\nb 2e3\n\
             h_bucket{le=\"+Inf\"} 7 # {trace_id=\"ab\"} 0.1 1.0\n# EOF\n",
        );
        assert!((page.sum("a_total", "") - 4.5).abs() < 1e-9);
        assert!((page.sum("a_total", "x=\"1\"") - 3.5).abs() < 1e-9);
        assert!((page.sum("b", "") - 2000.0).abs() < 1e-9);
        assert!((page.sum("h_bucket", "") - 7.0).abs() < 1e-9);
        assert!(!page.has("c"));
    }
}
