//! Times and counts, as sentences have them.

/// `59 ms`, `1.24 s`, `2 min 5 s`.
pub(super) fn time(ns: u64) -> String {
    let seconds = ns as f64 / 1e9;
    match seconds {
        s if s < 0.000_999_5 => format!("{:.0} µs", s * 1e6),
        s if s < 0.009_995 => format!("{:.1} ms", s * 1e3),
        s if s < 0.999_5 => format!("{:.0} ms", s * 1e3),
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 59.95 => format!("{s:.1} s"),
        s => format!("{} min {} s", s.round() as u64 / 60, s.round() as u64 % 60),
    }
}

/// As [`time`].
pub(super) fn seconds(seconds: f64) -> String {
    time(ns(seconds))
}

/// Of seconds that an attribute says; nothing of what is no time.
pub(super) fn ns(seconds: f64) -> u64 {
    // A cast of a float saturates, and makes 0 of what is no number.
    (seconds.max(0.0) * 1e9) as u64
}

/// `12,345`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 request`, `14 requests`.
pub(super) fn count(n: u64, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {what}{plural}", number(n))
}

/// `98 %` of a share.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p > 0.0 && p < 1.0 => "less than 1 %".to_owned(),
        p => format!("{p:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_say_them() {
        let shown = [0.0, 0.000_2, 0.001_5, 0.059, 0.815, 1.24, 12.3, 125.0].map(seconds);
        assert_eq!(shown, ["0 µs", "200 µs", "1.5 ms", "59 ms", "815 ms", "1.24 s", "12.3 s", "2 min 5 s"]);
        assert_eq!([f64::NAN, -1.0, f64::INFINITY].map(ns), [0, 0, u64::MAX]);
    }

    #[test]
    fn counts_have_their_thousands_and_their_plural() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([count(1, "request"), count(14, "request")], ["1 request", "14 requests"]);
        assert_eq!([0.0, 0.004, 0.074, 1.0].map(percent), ["0 %", "less than 1 %", "7 %", "100 %"]);
    }
}
