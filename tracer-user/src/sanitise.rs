//! Makes a string that the target controls safe to show.
//!
//! Enters: anything that came over a socket or out of `/proc` (model names, paths, request ids, titles). Leaves: one line without control characters,
//! escape sequences, bidirectional overrides or invisible formatting, and no longer than asked. A terminal, a log line and a
//! label all go through here; JSON escapes ([`json`]) and keeps the text. OTLP's files and timelines are for programs alone.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What stands where a character was taken out.
const REPLACEMENT: char = '\u{fffd}';

/// `text` with every character that can move the cursor, reorder or hide text replaced by U+FFFD, cut to `max` characters
/// (the last one is then `…`). Borrows when nothing has to change.
pub fn sanitise(text: &str, max: usize) -> Cow<'_, str> {
    let plain = |c: char| (' '..='~').contains(&c);
    if text.len() <= max && text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    for (taken, c) in text.chars().enumerate() {
        if taken + 1 >= max && text.chars().nth(max).is_some() {
            out.push('…');
            break;
        }
        out.push(if is_unsafe(c) { REPLACEMENT } else { c });
    }
    Cow::Owned(out)
}

/// A message of several lines, each made safe to show.
pub fn lines(text: &str) -> String {
    text.lines().map(|line| sanitise(line, line.len())).collect::<Vec<_>>().join("\n")
}

/// JSON without what could fool a terminal: `\uXXXX`, which reads back as the same text. JSON escapes control characters by itself, but not
/// those above U+007F.
pub fn json(text: &str) -> Cow<'_, str> {
    let is_left = |c: char| is_unsafe(c) && c != '\n';
    if !text.chars().any(is_left) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    // Such a character can only stand inside a string: JSON's own syntax is ASCII.
    for c in text.chars() {
        if is_left(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Longest name or title kept of a target's string, in characters.
const PRINTABLE_MAX: usize = 200;

/// A name out of `/proc` or a file of the target's, made safe to show.
pub fn printable(bytes: &[u8]) -> String {
    // Four bytes a character at most, so that a huge string is not decoded whole.
    let start = &bytes[..bytes.len().min((PRINTABLE_MAX + 1) * 4)];
    sanitise(&String::from_utf8_lossy(start), PRINTABLE_MAX).into_owned()
}

/// Characters that change how the rest of a line is shown: C0 and C1 controls (escape sequences start with one), line and
/// paragraph separators, bidi controls (Trojan Source, CVE-2021-42574), zero-width and other invisible format characters, tags.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_borrowed_unchanged() {
        assert!(matches!(sanitise("Qwen/Qwen3-8B", 128), Cow::Borrowed("Qwen/Qwen3-8B")));
        assert_eq!(sanitise("模型-é", 128), "模型-é");
    }

    #[test]
    fn escape_sequences_and_controls_are_replaced() {
        assert_eq!(sanitise("a\x1b[2Jb", 128), "a\u{fffd}[2Jb");
        assert_eq!(sanitise("a\r\nb\tc\0", 128), "a\u{fffd}\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(sanitise("csi\u{9b}31m", 128), "csi\u{fffd}31m");
        assert_eq!(sanitise("\x7f", 128), "\u{fffd}");
    }

    #[test]
    fn bidi_and_invisible_characters_are_replaced() {
        for c in ['\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}', '\u{2028}', '\u{e0041}', '\u{061c}'] {
            assert_eq!(sanitise(&format!("a{c}b"), 128), "a\u{fffd}b", "{:x}", c as u32);
        }
    }

    #[test]
    fn json_reads_back_the_same_and_lines_stay_lines() {
        let text = "{\n  \"a\": \"x\u{9b}2J\u{202e}\u{e0041}\u{1b}é\"\n}";
        let escaped = json(text);
        assert_eq!(escaped, "{\n  \"a\": \"x\\u009b2J\\u202e\\udb40\\udc41\\u001bé\"\n}");
        assert!(matches!(json("{\n}"), Cow::Borrowed(_)));
        assert_eq!(lines("a\x1b[2J\n  fix: b\u{202e}"), "a\u{fffd}[2J\n  fix: b\u{fffd}");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(sanitise("abcdef", 4), "abc…");
        assert_eq!(sanitise("abcd", 4), "abcd");
        assert_eq!(sanitise("éééééé", 4), "ééé…");
        assert_eq!(sanitise("éééé", 4), "éééé");
    }
}
