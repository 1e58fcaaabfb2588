//! Finished requests as a table that fits the terminal: columns come as there is room for them.
//!
//! Enters: access records. Leaves: lines. Invariant: no line is wider than the terminal, whatever the target calls its things; units stand
//! below each other.

use std::fmt::Write as _;

use super::units::{ascii, duration, fit, padded, right, tokens, width};
use super::{Inked, Style, outcome_color};
use crate::output::AccessRecord;

/// Least columns of what was asked for, which takes what the others leave.
const LEAST_REQUEST: usize = 12;
/// A terminal of so many columns has room for names.
const NAMES_FROM: usize = 76;
/// What gives way, in this order, where names take the room of what was asked for.
const DROPPED: [Column; 3] = [Column::Trace, Column::Queue, Column::Prompt];
/// Columns of a phase bar.
const BAR: std::ops::RangeInclusive<usize> = 12..=32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Time,
    Server,
    Outcome,
    Ttft,
    PerToken,
    E2e,
    Queue,
    Prefill,
    Decode,
    Prompt,
    Output,
    Bar,
    Trace,
    Model,
    Request,
}

/// A column: its head, its width, and the width of a terminal that has room for it.
struct Shape(Column, &'static str, usize, usize);

/// In the order in which they stand.
const SHAPES: [Shape; 15] = [
    Shape(Column::Time, "TIME", 8, 0),
    Shape(Column::Server, "SERVER", 12, NAMES_FROM),
    Shape(Column::Outcome, "OUTCOME", 12, 0),
    Shape(Column::Ttft, "TTFT", 6, 0),
    Shape(Column::PerToken, "TPOT", 6, 50),
    Shape(Column::E2e, "E2E", 6, 0),
    Shape(Column::Queue, "QUEUE", 6, NAMES_FROM),
    Shape(Column::Prefill, "PREFILL", 7, 100),
    Shape(Column::Decode, "DECODE", 6, 130),
    Shape(Column::Prompt, "IN", 5, 58),
    Shape(Column::Output, "OUT", 5, 44),
    Shape(Column::Bar, "PHASES", 0, 110),
    Shape(Column::Trace, "TRACE", 8, 92),
    Shape(Column::Model, "MODEL", 12, 140),
    Shape(Column::Request, "REQUEST", 0, NAMES_FROM),
];

/// Whose names say something: those of which there is more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Named {
    pub servers: bool,
    pub models: bool,
}

/// Which columns a terminal has room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    columns: Vec<(Column, &'static str, usize)>,
    width: usize,
}

impl Layout {
    /// For a terminal of so many columns.
    pub fn of(width: usize, several: Named) -> Self {
        let has_names = width >= NAMES_FROM;
        let is_wanted = |Shape(column, _, _, from): &&Shape| match column {
            Column::Server => several.servers && has_names,
            Column::Model => (several.models && has_names) || width >= *from,
            _ => width >= *from,
        };
        // Two names side by side are cut where there is little room.
        let short = several.servers && several.models && width < 100;
        let wide = |shape: &Shape| if short && matches!(shape.0, Column::Server | Column::Model) { 8 } else { shape.2 };
        let mut columns: Vec<_> =
            SHAPES.iter().filter(is_wanted).map(|shape| (shape.0, shape.1, wide(shape))).collect();
        let used = |columns: &[(Column, &str, usize)]| columns.iter().map(|column| column.2 + 1).sum::<usize>();
        for dropped in DROPPED {
            if has_names && used(&columns) + LEAST_REQUEST > width + 1 {
                columns.retain(|column| column.0 != dropped);
            }
        }
        let left = (width + 1).saturating_sub(used(&columns));
        let has_bar = columns.iter().any(|column| column.0 == Column::Bar);
        let bar = if has_bar { (left / 2).clamp(*BAR.start(), *BAR.end()) } else { 0 };
        for (column, _, wide) in &mut columns {
            match column {
                Column::Bar => *wide = bar,
                Column::Request => *wide = left.saturating_sub(bar),
                _ => {}
            }
        }
        Self { columns, width }
    }

    /// The line above the rows, without its end.
    pub fn header(&self, style: Style) -> String {
        let cell = |(column, head, wide): &(Column, &str, usize)| {
            if is_number(*column) { format!("{head:>wide$}") } else { format!("{head:<wide$}") }
        };
        let cells: Vec<String> = self.columns.iter().map(cell).collect();
        style.paint(2, &fit(cells.join(" ").trim_end(), self.width, style))
    }

    /// The line of `record`, without its end.
    pub fn row(&self, record: &AccessRecord, style: Style) -> String {
        let mut line = String::new();
        let mut used = 0;
        for (column, _, wide) in &self.columns {
            let gap = usize::from(used > 0);
            // A terminal narrower than the least of them.
            let room = (*wide).min(self.width.saturating_sub(used + gap));
            if room == 0 {
                break;
            }
            line.extend(std::iter::repeat_n(' ', gap));
            line.push_str(&cell(*column, record, room, style));
            used += gap + room;
        }
        line.truncate(line.trim_end().len());
        line
    }
}

fn is_number(column: Column) -> bool {
    matches!(
        column,
        Column::Ttft
            | Column::PerToken
            | Column::E2e
            | Column::Queue
            | Column::Prefill
            | Column::Decode
            | Column::Prompt
            | Column::Output
    )
}

/// What a column says of `record`, in exactly `room` columns.
fn cell(column: Column, record: &AccessRecord, room: usize, style: Style) -> String {
    let seconds = &record.seconds;
    let time = |value: Option<f64>| right(&value.map_or_else(|| "-".to_owned(), duration), room, style);
    let count = |value: Option<u64>| right(&value.map_or_else(|| "-".to_owned(), tokens), room, style);
    match column {
        Column::Time => {
            let time = record.time.to_string();
            style.paint(2, &padded(time.get(11..19).unwrap_or(&time), room, style))
        }
        Column::Server => padded(&record.server, room, style),
        Column::Outcome => style.paint(outcome_color(record.outcome), &padded(&outcome(record), room, style)),
        Column::Ttft => time(seconds.ttft),
        Column::PerToken => time(record.per_token()),
        Column::E2e => time(seconds.e2e),
        Column::Queue => time(seconds.queue),
        Column::Prefill => time(seconds.prefill),
        Column::Decode => time(seconds.decode),
        Column::Prompt => count(record.prompt_tokens),
        Column::Output => count(record.output_tokens),
        Column::Bar => style.inked(&bar(phases(record), room, style)),
        Column::Trace => {
            // As many digits as `trace` and `why` ask for at least.
            let id = record.trace_id.to_string();
            style.paint(2, &padded(id.get(..8).unwrap_or(&id), room, style))
        }
        Column::Model => padded(record.model.as_deref().unwrap_or("-"), room, style),
        Column::Request => padded(&request(record), room, style),
    }
}

/// How it ended, with the status of a response that says that it failed.
pub fn outcome(record: &AccessRecord) -> String {
    match record.status {
        Some(status) if status >= 400 => format!("{} {status}", record.outcome.name()),
        _ => record.outcome.name().to_owned(),
    }
}

/// What was asked for, and what is special about it.
pub fn request(record: &AccessRecord) -> String {
    let path = record.path.as_deref().unwrap_or("(HTTP not seen)");
    let mut text = path.strip_prefix("/v1/").unwrap_or(path).to_owned();
    if let Some(preemptions @ 1..) = record.preemptions {
        let _ = write!(text, " preempted {preemptions}x");
    }
    if let Some(cached @ 1..) = record.cached_tokens {
        let _ = write!(text, " {} cached", tokens(cached));
    }
    if !record.incomplete.is_whole() {
        let _ = write!(text, " incomplete: {}", record.incomplete);
    }
    text
}

/// The phases of a request, and with what they are drawn: in UTF-8, in ASCII, in colour.
pub const PHASES: [(&str, char, char, u8); 4] =
    [("other", '·', '.', 2), ("queue", '░', '-', 33), ("prefill", '▓', '=', 34), ("decode", '█', '#', 32)];

/// How many columns of `room` each phase takes, in the order of [`PHASES`]; a phase that took time has one, as long as there are any.
pub fn shares(seconds: [f64; 4], room: usize) -> [usize; 4] {
    let whole: f64 = seconds.iter().sum();
    let mut columns = [0; 4];
    if whole.is_nan() || whole <= 0.0 {
        return columns;
    }
    let (mut before, mut drawn) = (0.0, 0);
    for (nth, part) in seconds.into_iter().enumerate() {
        before += part;
        let end = (before / whole * room as f64).round() as usize;
        let later = seconds[nth + 1..].iter().filter(|part| **part > 0.0).count();
        let most = room.saturating_sub(drawn + later);
        columns[nth] = end.saturating_sub(drawn).max(usize::from(part > 0.0)).min(most);
        drawn += columns[nth];
    }
    columns
}

/// Seconds of each phase, in the order of [`PHASES`]; nothing where its end was not seen.
pub fn phases(record: &AccessRecord) -> [f64; 4] {
    let of = |value: Option<f64>| value.unwrap_or(0.0).max(0.0);
    let seconds = &record.seconds;
    let known = [of(seconds.queue), of(seconds.prefill), of(seconds.decode)];
    let other = (of(seconds.e2e) - known.iter().sum::<f64>()).max(0.0);
    [other, known[0], known[1], known[2]]
}

/// The phases of a request side by side, in `room` columns.
pub fn bar(phases: [f64; 4], room: usize, style: Style) -> Vec<Inked> {
    let columns = shares(phases, room);
    let of = |(_, full, plain, color): &(&str, char, char, u8), columns: usize| {
        let drawn = if style.unicode { full } else { plain };
        (*color, drawn.to_string().repeat(columns))
    };
    let mut bar: Vec<Inked> =
        PHASES.iter().zip(columns).filter(|(_, n)| *n > 0).map(|(phase, n)| of(phase, n)).collect();
    bar.push((0, " ".repeat(room.saturating_sub(columns.iter().sum()))));
    bar
}

/// A line of several parts, of which as many as fit are shown: the first are worth most.
pub fn joined(parts: &[Inked], room: usize, style: Style) -> Vec<Inked> {
    let between = if style.unicode { " · " } else { " | " };
    let mut line = Vec::new();
    let mut used = 0;
    for (color, part) in parts {
        let part = if style.unicode { part.clone() } else { ascii(part) };
        let gap = if used == 0 { 0 } else { 3 };
        if used + gap + width(&part) > room {
            break;
        }
        if gap > 0 {
            line.push((2, between.to_owned()));
        }
        used += gap + width(&part);
        line.push((*color, part));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::tests::PLAIN;
    use super::*;
    use crate::export::access_log::tests::record;
    use crate::output::{Incomplete, Missing, Outcome};

    const ONE: Named = Named { servers: false, models: false };
    const MANY: Named = Named { servers: true, models: true };

    fn shown(width: usize, several: Named) -> Vec<String> {
        let layout = Layout::of(width, several);
        let failed = AccessRecord {
            outcome: Outcome::Error,
            status: Some(503),
            output_tokens: None,
            generations: vec![],
            preemptions: Some(2),
            incomplete: Incomplete::from_iter([Missing::RecordsLost]),
            ..record()
        };
        vec![layout.header(PLAIN), layout.row(&record(), PLAIN), layout.row(&failed, PLAIN)]
    }

    #[test]
    fn columns_come_as_there_is_room() {
        assert_eq!(
            shown(60, ONE),
            [
                "TIME     OUTCOME        TTFT   TPOT    E2E    IN   OUT",
                "03:52:11 length       12.3ms 37.0ms  1.23s    12    34",
                "03:52:11 error 503    12.3ms      -  1.23s    12     -",
            ]
        );
        assert_eq!(
            shown(80, ONE),
            [
                "TIME     OUTCOME        TTFT   TPOT    E2E  QUEUE    IN   OUT REQUEST",
                "03:52:11 length       12.3ms 37.0ms  1.23s  100us    12    34 completions",
                "03:52:11 error 503    12.3ms      -  1.23s  100us    12     - completions preem…",
            ]
        );
        assert_eq!(
            shown(120, ONE),
            [
                "TIME     OUTCOME        TTFT   TPOT    E2E  QUEUE PREFILL    IN   OUT PHASES               TRACE    REQUEST",
                "03:52:11 length       12.3ms 37.0ms  1.23s  100us  10.0ms    12    34 ··░▓████████████████ 01234567 completions",
                "03:52:11 error 503    12.3ms      -  1.23s  100us  10.0ms    12     - ··░▓████████████████ 01234567 completions preempt…",
            ]
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_whatever_the_target_calls_its_things() {
        let hostile = "模型\x1b[2J\u{202e}👩‍👩‍👧❤\u{fe0f}e\u{301}".repeat(20);
        let named = AccessRecord {
            path: Some(hostile.clone()),
            model: Some(hostile.clone()),
            server: hostile,
            cached_tokens: Some(9),
            ..record()
        };
        for columns in 20..200 {
            for several in [ONE, MANY] {
                for style in [PLAIN, Style { unicode: false, ..PLAIN }] {
                    let layout = Layout::of(columns, several);
                    for line in [layout.header(style), layout.row(&named, style), layout.row(&record(), style)] {
                        assert!(width(&line) <= columns, "{columns}: {line}");
                        assert!(!line.chars().any(crate::sanitise::is_unsafe), "{line:?}");
                        assert!(style.unicode || line.is_ascii(), "{line}");
                    }
                }
            }
        }
    }

    #[test]
    fn names_stand_there_once_there_are_several() {
        for columns in [80, 100, 160] {
            let row = shown(columns, MANY)[1].clone();
            assert!(row.contains("vllm-42") && row.contains(" m "), "{columns}: {row}");
            assert!(row.contains("completions"), "{columns}: {row}");
            assert!(!shown(columns, ONE)[1].contains("vllm-42"));
        }
    }

    #[test]
    fn a_bar_is_as_wide_as_its_room_and_every_phase_that_took_time_is_in_it() {
        assert_eq!(shares([0.0, 1.0, 1.0, 2.0], 8), [0, 2, 2, 4]);
        assert_eq!(shares([0.0, 1e-9, 1.0, 1e-9], 8), [0, 1, 6, 1]);
        assert_eq!(shares([0.0; 4], 8), [0; 4]);
        assert_eq!(shares([f64::NAN, 0.0, 0.0, 0.0], 8), [0; 4]);
    }

    #[test]
    fn the_first_parts_of_a_line_stay_when_there_is_no_room_for_all() {
        let parts = [(0, "12 req/s".to_owned()), (31, "3 lost".to_owned()), (0, "KV 43%".to_owned())];
        assert_eq!(PLAIN.inked(&joined(&parts, 18, PLAIN)), "12 req/s · 3 lost");
        let ascii = Style { unicode: false, ..PLAIN };
        assert_eq!(PLAIN.inked(&joined(&parts, 80, ascii)), "12 req/s | 3 lost | KV 43%");
    }
}
