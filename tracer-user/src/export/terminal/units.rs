//! Numbers and words as a person reads them, in as many columns as there are.

use unicode_width::UnicodeWidthChar as _;

use super::Style;
use crate::sanitise::sanitise;

/// Three significant digits with a unit: `431us`, `12.3ms`, `1.23s`, `2m05s`.
pub fn duration(seconds: f64) -> String {
    let three = |value: f64, unit: &str| match value {
        v if v < 9.995 => format!("{v:.2}{unit}"),
        v if v < 99.95 => format!("{v:.1}{unit}"),
        v => format!("{v:.0}{unit}"),
    };
    match seconds {
        s if s.is_nan() || s < 0.0 => "?".to_owned(),
        s if s < 999.5e-6 => format!("{:.0}us", s * 1e6),
        s if s < 0.9995 => three(s * 1e3, "ms"),
        s if s < 59.95 => three(s, "s"),
        s => format!("{}m{:02}s", (s.round() as u64) / 60, (s.round() as u64) % 60),
    }
}

/// `0`, `0.42`, `12.3`, `845`, `12.3k`.
pub fn rate(value: f64) -> String {
    match value {
        v if v.is_nan() || v < 0.0 => "?".to_owned(),
        v if v < 0.005 => "0".to_owned(),
        v if v < 0.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v if v < 9999.5 => format!("{v:.0}"),
        v => format!("{:.1}k", v / 1e3),
    }
}

/// A number in five columns: `99999`, `131k`, `2.1M`.
pub fn tokens(count: u64) -> String {
    match count {
        n if n < 100_000 => n.to_string(),
        n if n < 1_000_000 => format!("{}k", n / 1000),
        n => format!("{:.1}M", n as f64 / 1e6),
    }
}

/// `812 KiB`, `31 MiB`, `1.4 GiB`.
pub fn bytes(count: u64) -> String {
    match count {
        n if n < 1 << 20 => format!("{} KiB", n >> 10),
        n if n < 1 << 30 => format!("{} MiB", n >> 20),
        n => format!("{:.1} GiB", n as f64 / f64::from(1 << 30)),
    }
}

/// A share in percent: `43%`; `<1%` is not nothing.
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p > 0.0 && p < 1.0 => "<1%".to_owned(),
        p => format!("{p:.0}%"),
    }
}

/// Columns that a terminal gives a character, at most: what may be shown as a picture counts as one.
fn columns(c: char) -> usize {
    // U+FE0F makes the character before it a picture, two columns wide on some terminals.
    if c == '\u{fe0f}' { 1 } else { c.width().unwrap_or(0) }
}

/// Columns of a text.
pub fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// A text of the target's, safe to show, in at most `room` columns; what is cut ends in `…`.
pub fn fit(text: &str, room: usize, style: Style) -> String {
    // A character takes a column, or none and then belongs to the one before it; a line of nothing but those is no name.
    let text = sanitise(text, room.saturating_mul(4).max(4));
    let text = if style.unicode { text.into_owned() } else { ascii(&text) };
    if width(&text) <= room {
        return text;
    }
    let cut = if style.unicode { '…' } else { '~' };
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let more = columns(c);
        if used + more + 1 > room {
            break;
        }
        used += more;
        out.push(c);
    }
    if room > 0 {
        out.push(cut);
    }
    out
}

/// As [`fit`], filled up with blanks to `room` columns.
pub fn padded(text: &str, room: usize, style: Style) -> String {
    let mut text = fit(text, room, style);
    let missing = room.saturating_sub(width(&text));
    text.extend(std::iter::repeat_n(' ', missing));
    text
}

/// As [`fit`], behind as many blanks as `room` leaves.
pub fn right(text: &str, room: usize, style: Style) -> String {
    let text = fit(text, room, style);
    format!("{}{text}", " ".repeat(room.saturating_sub(width(&text))))
}

/// Words in lines of at most `room` columns.
pub fn wrap(text: &str, room: usize, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current = String::new();
    for word in text.split_whitespace() {
        let word = fit(word, room, style);
        if !current.is_empty() && width(&current) + 1 + width(&word) > room {
            lines.push(std::mem::take(&mut current));
        }
        if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(&word);
    }
    lines.extend((!current.is_empty()).then_some(current));
    lines
}

/// For a terminal that knows no more.
pub fn ascii(text: &str) -> String {
    let plain = |c: char| match c {
        '…' => '~',
        '·' => ' ',
        '→' => '>',
        '×' => 'x',
        '–' | '−' => '-',
        'µ' => 'u',
        '█' => '#',
        c if c.is_ascii() => c,
        _ => '?',
    };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::PLAIN;
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        let shown = [0.0, 0.000_431, 0.000_999_9, 0.0123, 0.9999, 1.234, 12.34, 59.99, 125.0, f64::NAN].map(duration);
        assert_eq!(shown, ["0us", "431us", "1.00ms", "12.3ms", "1.00s", "1.23s", "12.3s", "1m00s", "2m05s", "?"]);
    }

    #[test]
    fn rates_tokens_bytes_and_shares_stay_short() {
        assert_eq!([0.0, 0.42, 12.34, 845.2, 12_345.0, f64::NAN].map(rate), ["0", "0.42", "12.3", "845", "12.3k", "?"]);
        assert_eq!([7, 99_999, 131_072, 2_100_000].map(tokens), ["7", "99999", "131k", "2.1M"]);
        assert_eq!([812 << 10, 31 << 20, 3 << 29].map(bytes), ["812 KiB", "31 MiB", "1.5 GiB"]);
        assert_eq!([0.0, 0.004, 0.43, 1.0].map(percent), ["0%", "<1%", "43%", "100%"]);
    }

    #[test]
    fn a_text_takes_the_columns_that_it_is_given_and_no_more() {
        // wide characters take two columns, and half of one is never shown
        let ascii = Style { unicode: false, ..PLAIN };
        for (text, room, expected) in [
            ("abc", 5, "abc"),
            ("abcdef", 4, "abc…"),
            ("模型模型", 8, "模型模型"),
            ("模型模型", 6, "模型…"),
            ("模型", 1, "…"),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
            ("\x1b[2J", 3, "\u{fffd}[…"),
            ("", 0, ""),
        ] {
            let shown = fit(text, room, PLAIN);
            assert_eq!(shown, expected);
            assert!(width(&shown) <= room);
        }
        assert_eq!((fit("模型abc", 4, ascii).as_str(), padded("a", 3, ascii).as_str()), ("??a~", "a  "));
        assert_eq!((padded("模", 4, PLAIN).as_str(), right("模", 4, PLAIN).as_str()), ("模  ", "  模"));
    }
}
