//! Numbers and times as Go reads and shows them: what Jaeger's answers and refusals are made of.
//!
//! Enters: text of a query. Leaves: numbers and ns. Refused: what Go refuses, in its words.

use crate::output::UnixNanos;

/// Units of a duration, ns.
const UNITS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10)];
const HOUR: f64 = 3.6e12;

/// `strconv.ParseInt(text, 10, 64)`.
pub(super) fn integer(text: &str) -> Result<i64, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    text.parse().map_err(|error: std::num::ParseIntError| {
        let why =
            if matches!(error.kind(), NegOverflow | PosOverflow) { "value out of range" } else { "invalid syntax" };
        format!("strconv.ParseInt: parsing {text:?}: {why}")
    })
}

/// `strconv.ParseBool(text)`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// `time.ParseDuration(text)`, ns: `1.5s`, `300ms`, `1h2m`.
pub(super) fn duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..letters];
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let known = UNITS.into_iter().chain([("h", HOUR)]).find(|(name, _)| *name == unit);
        let (_, ns) = known.ok_or_else(|| format!("time: unknown unit {unit:?} in duration {text:?}"))?;
        sum += number * ns;
        rest = &rest[letters..];
    }
    if sum > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok((sign * sum) as i64)
}

/// As Go's `%v` shows a duration: `1.5s`, `20.1µs`, `1h2m0.5s`.
pub(super) fn shown(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let ns = ns.unsigned_abs();
    let part = |unit: u64, name: &str| {
        let width = unit.ilog10() as usize;
        let fraction = format!("{:0width$}", ns % unit);
        let fraction = if width == 0 { "" } else { fraction.trim_end_matches('0') };
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{sign}{}{point}{fraction}{name}", ns / unit)
    };
    match ns {
        0 => "0s".to_owned(),
        1..1_000 => part(1, "ns"),
        1_000..1_000_000 => part(1_000, "µs"),
        1_000_000..1_000_000_000 => part(1_000_000, "ms"),
        _ => {
            let (minutes, below) = (ns / 60_000_000_000, ns % 60_000_000_000);
            let seconds = shown_seconds(below);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

fn shown_seconds(ns: u64) -> String {
    let fraction = format!("{:09}", ns % 1_000_000_000);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{}{point}{fraction}s", ns / 1_000_000_000)
}

/// As Go's `%v` shows a time, in UTC.
pub(super) fn time(at: UnixNanos) -> String {
    // `2026-11-24T02:05:02.000001000Z`
    let text = at.to_string();
    let text = text.trim_end_matches('Z').replacen('T', " ", 1);
    format!("{} +0000 UTC", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A float as Go's JSON has it, and so Jaeger's search.
pub(super) fn float(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) { format!("{value:e}") } else { format!("{value}") }
}

/// Text in quotes, as Go's JSON has it: what HTML could take for its own is escaped.
pub(super) fn quoted(text: &str) -> String {
    let plain = serde_json::to_string(text).unwrap_or_default();
    let escaped = plain.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    escaped.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, ns) in [
            ("0", 0),
            ("1ns", 1),
            ("1.5us", 1_500),
            ("2µs", 2_000),
            ("300ms", 300_000_000),
            ("1m0.5s", 60_500_000_000),
            ("-1h", -3_600_000_000_000),
            (".5s", 500_000_000),
        ] {
            assert_eq!(duration(text), Ok(ns), "{text}");
        }
        assert_eq!(duration("5"), Err("time: missing unit in duration \"5\"".to_owned()));
        assert_eq!(duration("5y"), Err("time: unknown unit \"y\" in duration \"5y\"".to_owned()));
        for text in ["", "-", "s", ".s", "é", "1e9s", "1.2.3s", "99999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_shown_as_go_shows_them() {
        for (ns, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (-3_300_000_000, "-3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (480_000_000_001, "8m0.000000001s"),
        ] {
            assert_eq!(shown(ns), text);
        }
    }

    #[test]
    fn numbers_and_texts_are_those_of_go() {
        assert_eq!(time(UnixNanos(1_795_485_902_000_001_000)), "2026-11-24 02:05:02.000001 +0000 UTC");
        assert_eq!(time(UnixNanos(1_795_485_900_000_000_000)), "2026-11-24 02:05:00 +0000 UTC");
        assert_eq!([0.1, 100.0, 1e-7, 1e21, 0.0].map(float), ["0.1", "100", "1e-7", "1e21", "0"]);
        assert_eq!(quoted("a<b>&\"\u{2028}"), r#""a\u003cb\u003e\u0026\"\u2028""#);
        assert_eq!(integer("12"), Ok(12));
        assert!(integer("99999999999999999999").unwrap_err().contains("out of range"));
        assert_eq!((boolean("T"), boolean("yes").is_err()), (Ok(true), true));
    }
}
