//! How long a run lasts, as a user says it.

use std::time::{Duration, Instant};

/// `90s`, `10m`, `2h`, `500ms`, `90`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is no time; write 90s, 10m or 2h"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        unit => return Err(format!("`{unit}` is no unit of time; write 90s, 10m or 2h")),
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Err(_) if seconds > 0.0 => Err(format!("`{text}` is longer than can be counted; without it there is no end")),
        _ => Err("a duration is longer than 0".to_owned()),
    }
}

/// When a run of `duration` from `start` ends; `None` where that is later than the clock can say, which is never.
pub fn deadline(start: Instant, duration: Duration) -> Option<Instant> {
    start.checked_add(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in [("60s", 60_000), ("2", 2000), ("1.5m", 90_000), ("500ms", 500), ("1h", 3_600_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "0", "-1s", "5 parsecs", "1d", "nan", "inf", "1e300h"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("1e300").is_err_and(|why| why.contains("longer than can be counted")));
    }

    #[test]
    fn what_is_longer_than_the_clock_lasts_has_no_end() {
        let start = Instant::now();
        assert_eq!(deadline(start, parse("1e19").unwrap()), None);
        assert_eq!(deadline(start, parse("2h").unwrap()), Some(start + Duration::from_hours(2)));
    }
}
