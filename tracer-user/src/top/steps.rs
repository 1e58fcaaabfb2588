//! The last steps of each engine as strips: a column a step, the newest at the right.

use super::picture::{EngineSteps, Picture};
use crate::export::terminal::units::{duration, fit, padded, percent};
use crate::export::terminal::{Inked, Style};
use crate::output::EngineStep;

/// Columns of what stands before a strip, and of what stands behind it.
const NAME: usize = 9;
const LAST: usize = 8;

/// What a strip shows of a step; nothing where it is not known.
type Value = fn(&EngineStep) -> Option<f64>;
/// How its newest value is written.
type Shown = fn(f64) -> String;

const STRIPS: [(&str, u8, Value, Shown); 6] = [
    ("took", 36, |step| Some(step.end_ns.saturating_sub(step.start_ns) as f64 / 1e9), duration),
    ("batch", 32, |step| Some(step.requests as f64), whole),
    ("prefill", 34, |step| Some(step.prefill_tokens as f64), whole),
    ("decode", 32, |step| Some(step.decode_tokens as f64), whole),
    ("waiting", 33, |step| step.stats.map(|stats| stats.waiting as f64), whole),
    ("KV cache", 35, |step| step.stats.map(|stats| stats.kv_cache_usage), percent),
];

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

/// Lines of all engines, each at most `style.width` wide.
pub fn lines(picture: &Picture, style: Style) -> Vec<Vec<Inked>> {
    let columns = style.width.saturating_sub(NAME + LAST + 2).max(8);
    let mut lines: Vec<Vec<Inked>> = Vec::new();
    if picture.steps.is_empty() {
        lines.push(vec![(2, "no engine step was seen yet: steps are what an engine's messages tell".to_owned())]);
    }
    for engine in &picture.steps {
        lines.extend(of_engine(engine, columns, style));
        lines.push(Vec::new());
    }
    lines
}

fn of_engine(engine: &EngineSteps, columns: usize, style: Style) -> Vec<Vec<Inked>> {
    let steps = &engine.steps[engine.steps.len().saturating_sub(columns)..];
    let (first, last) = (steps.first(), steps.last());
    let span = first.zip(last).map_or(0, |(first, last)| last.end_ns.saturating_sub(first.start_ns)) as f64 / 1e9;
    let title = format!("{}  engine {}  {} steps in {}", engine.server, engine.engine, steps.len(), duration(span));
    let mut lines = vec![vec![(1, fit(&title, style.width, style))]];
    for (name, color, value, shown) in STRIPS {
        let values: Vec<Option<f64>> = steps.iter().map(|step| value(step)).collect();
        // No statistics: no strip of nothing.
        if values.iter().all(Option::is_none) {
            continue;
        }
        let most = if name == "KV cache" { 1.0 } else { values.iter().flatten().copied().fold(0.0, f64::max) };
        let newest = values.iter().rev().flatten().next().copied().map_or_else(String::new, shown);
        lines.push(vec![
            (2, padded(name, NAME, style)),
            (0, " ".repeat(1 + columns.saturating_sub(values.len()))),
            (color, values.iter().map(|value| level(*value, most, style)).collect()),
            (0, fit(&format!(" {newest}"), LAST + 1, style)),
        ]);
    }
    lines
}

/// A value as one character, by its share of the most.
fn level(value: Option<f64>, most: f64, style: Style) -> char {
    let levels: [char; 9] = if style.unicode {
        [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
    } else {
        [' ', '_', '.', ':', '-', '=', '+', '*', '#']
    };
    match value {
        None => '?',
        Some(value) if value <= 0.0 || most <= 0.0 => ' ',
        Some(value) => levels[((value / most * 8.0).ceil() as usize).clamp(1, 8)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_the_share_of_the_most_and_what_is_not_known_is_no_zero() {
        let style = Style { color: false, unicode: true, width: 80, has_cursor: true };
        let strip: String =
            [Some(0.0), Some(0.1), Some(4.0), Some(8.0), None].map(|of| level(of, 8.0, style)).iter().collect();
        assert_eq!(strip, " ▁▄█?");
        let ascii = Style { unicode: false, ..style };
        assert_eq!(level(Some(8.0), 8.0, ascii), '#');
    }
}
