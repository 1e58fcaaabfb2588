//! Numbers as people read them.

/// `1,234,567`
pub use crate::why::words::number as count;

/// Three significant digits with a unit: `431 µs`, `12.3 ms`, `1.23 s`, `2m05s`.
pub fn seconds(seconds: f64) -> String {
    let three = |value: f64, unit: &str| match value {
        v if v < 9.995 => format!("{v:.2} {unit}"),
        v if v < 99.95 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    };
    match seconds.abs() {
        _ if seconds.is_nan() => "–".to_owned(),
        _ if seconds < 0.0 => format!("−{}", self::seconds(-seconds)),
        s if s < 999.5e-6 => format!("{:.0} µs", s * 1e6),
        s if s < 0.9995 => three(s * 1e3, "ms"),
        s if s < 59.95 => three(s, "s"),
        s => minutes(s.round()),
    }
}

fn minutes(seconds: f64) -> String {
    // A cast of a float stops at the ends of the type.
    let whole = seconds as u64;
    match whole / 3600 {
        0 => format!("{}m{:02}s", whole / 60, whole % 60),
        hours => format!("{hours}h{:02}m", whole / 60 % 60),
    }
}

/// A time that may not be known.
pub fn maybe(of: Option<f64>) -> String {
    of.map_or_else(|| "–".to_owned(), seconds)
}

/// Of a share, 0 to 1: `12 %`, `0.3 %`.
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p.is_nan() => "–".to_owned(),
        p if p.abs() < 9.95 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}

/// A number of one digit behind the point, or none where it is large.
pub fn number(x: f64) -> String {
    if x.abs() < 99.95 { format!("{x:.1}") } else { count(x.round() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_their_unit() {
        let shown = [0.0, 0.000_431, 0.0123, 1.234, 125.0, 7384.0, -0.5, f64::NAN].map(seconds);
        assert_eq!(shown, ["0 µs", "431 µs", "12.3 ms", "1.23 s", "2m05s", "2h03m", "−500 ms", "–"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.003, 0.12, 1.0].map(percent), ["0.3 %", "12 %", "100 %"]);
    }
}
