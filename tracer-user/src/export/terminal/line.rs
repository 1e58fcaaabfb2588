//! A finished request as one line for a pipe: every time that is known, with its name, however long that makes it.

use std::io::{self, Write as _};

use super::{Style, duration, outcome_color};
use crate::output::AccessRecord;
use crate::sanitise::sanitise;

/// Appends the line of `record` (without the line end).
pub fn write_line(record: &AccessRecord, shows_server: bool, style: Style, line: &mut Vec<u8>) -> io::Result<()> {
    // `2026-11-24T03:52:11.123456789Z`: the time of the day, to the millisecond.
    let time = record.time.to_string();
    let time = time.get(11..23).unwrap_or(&time);
    write!(line, "{} ", style.paint(2, time))?;
    if shows_server {
        write!(line, "{:<20} ", sanitise(&record.server, 40))?;
    }
    match record.status {
        Some(status) => write!(line, "{status} ")?,
        None => write!(line, "--- ")?,
    }
    let outcome = format!("{:<8}", record.outcome.name());
    write!(line, "{} ", style.paint(outcome_color(record.outcome), &outcome))?;
    let path = record.path.as_deref().map_or("(HTTP not seen)".into(), |path| sanitise(path, 40));
    write!(line, "{path:<22}")?;
    if let Some(model) = &record.model {
        write!(line, " {}", sanitise(model, 40))?;
    }
    let arrow = if style.unicode { "→" } else { "->" };
    write!(line, "  {}{arrow}{} tok", count(record.prompt_tokens), count(record.output_tokens))?;
    if let Some(cached @ 1..) = record.cached_tokens {
        write!(line, " ({cached} cached)")?;
    }
    let seconds = &record.seconds;
    for (name, value) in [
        ("ttft", seconds.ttft),
        ("e2e", seconds.e2e),
        ("queue", seconds.queue),
        ("prefill", seconds.prefill),
        ("decode", seconds.decode),
    ] {
        if let Some(value) = value {
            write!(line, "  {name} {}", duration(value))?;
        }
    }
    if let Some(preemptions @ 1..) = record.preemptions {
        write!(line, "  preempted {preemptions}x")?;
    }
    if !record.incomplete.is_whole() {
        write!(line, "  {}", style.paint(33, &format!("incomplete: {}", record.incomplete)))?;
    }
    Ok(())
}

fn count(value: Option<u64>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}
