//! A row of the live table, as pieces of text in colours, for a screen and for `--once`.
//!
//! Enters: a row and the picture that it is of. Leaves: pieces that take exactly the width; units stand below each other.

use super::picture::{Picture, Row, What, outcome, stage};
use crate::core::view::Stage;
use crate::export::terminal::table::{self, bar};
use crate::export::terminal::units::{duration, padded, right, tokens};
use crate::export::terminal::{Inked, Style, outcome_color};

/// A phase bar takes what is left over, between so many columns.
const BAR: (usize, usize) = (10, 60);
/// Least columns of what was asked for.
const LEAST_REQUEST: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    State,
    Age,
    Ttft,
    PerToken,
    Queue,
    Prompt,
    Output,
    Bar,
    Server,
    Model,
    Trace,
    Id,
    Request,
}

/// A column, its head, its width, and the width of a screen that has room for it.
const SHAPES: [(Column, &str, usize, usize); 13] = [
    (Column::State, "STATE", 12, 0),
    (Column::Age, "E2E", 6, 0),
    (Column::Ttft, "TTFT", 6, 0),
    (Column::PerToken, "TPOT", 6, 100),
    (Column::Queue, "QUEUE", 6, 60),
    (Column::Prompt, "IN", 5, 60),
    (Column::Output, "OUT", 5, 0),
    (Column::Bar, "PHASES", 0, 70),
    (Column::Server, "SERVER", 14, 100),
    (Column::Model, "MODEL", 14, 140),
    (Column::Trace, "TRACE", 8, 100),
    (Column::Id, "ID", 22, 160),
    (Column::Request, "REQUEST", 0, 0),
];

/// Which columns a screen has room for.
#[derive(Debug)]
pub struct Cells {
    columns: Vec<(Column, &'static str, usize)>,
    style: Style,
}

impl Cells {
    pub fn of(picture: &Picture, style: Style) -> Self {
        let several = picture.servers().len() > 1;
        let has_room = |(column, _, _, from): &&(Column, &str, usize, usize)| {
            style.width >= *from && (*column != Column::Server || several)
        };
        let mut columns: Vec<_> = SHAPES.iter().filter(has_room).map(|shape| (shape.0, shape.1, shape.2)).collect();
        let used: usize = columns.iter().map(|column| column.2 + 1).sum();
        let left = (style.width + 1).saturating_sub(used);
        let has_bar = columns.iter().any(|column| column.0 == Column::Bar);
        let bar = if has_bar { left.saturating_sub(LEAST_REQUEST).clamp(BAR.0, BAR.1) } else { 0 };
        for (column, _, wide) in &mut columns {
            match column {
                Column::Bar => *wide = bar,
                Column::Request => *wide = left.saturating_sub(bar),
                _ => {}
            }
        }
        Self { columns, style }
    }

    pub fn header(&self) -> String {
        let head = |(column, head, wide): &(Column, &str, usize)| match column {
            Column::Age | Column::Ttft | Column::PerToken | Column::Queue | Column::Prompt | Column::Output => {
                format!("{head:>wide$}")
            }
            _ => format!("{head:<wide$}"),
        };
        padded(&self.columns.iter().map(head).collect::<Vec<_>>().join(" "), self.style.width, self.style)
    }

    pub fn row(&self, picture: &Picture, row: &Row) -> Vec<Inked> {
        let mut pieces = Vec::new();
        let mut used = 0;
        for (column, _, wide) in &self.columns {
            let gap = usize::from(used > 0);
            let room = (*wide).min(self.style.width.saturating_sub(used + gap));
            if room == 0 {
                break;
            }
            pieces.push((0, " ".repeat(gap)));
            match column {
                Column::Bar => pieces.extend(bar(row.phases, room, self.style)),
                column => pieces.push(self.cell(*column, picture, row, room)),
            }
            used += gap + room;
        }
        pieces
    }

    fn cell(&self, column: Column, picture: &Picture, row: &Row, room: usize) -> Inked {
        let style = self.style;
        let time = |value: Option<f64>| (0, right(&value.map_or_else(|| "-".to_owned(), duration), room, style));
        let count = |value: Option<u64>| (0, right(&value.map_or_else(|| "-".to_owned(), tokens), room, style));
        match column {
            Column::Age => time(Some(row.age)),
            Column::Ttft => time(row.ttft),
            Column::PerToken => time(row.per_token),
            Column::Queue => time(row.queue),
            Column::Prompt => count(row.prompt_tokens),
            Column::Output => count(row.output_tokens),
            _ => {
                let (color, text) = word(column, picture, row.what);
                (color, padded(&text, room, style))
            }
        }
    }
}

/// What a column of words says.
fn word(column: Column, picture: &Picture, what: What) -> Inked {
    let unknown = || "-".to_owned();
    match what {
        What::Open(server, at) => {
            let Some((server, open)) = picture.open(server, at) else { return (0, unknown()) };
            match column {
                Column::State => {
                    let color = if open.stage == Stage::Producing { 36 } else { 33 };
                    let again = if open.preemptions > 0 { "!" } else { "" };
                    (color, format!("{}{again}", stage(open.stage)))
                }
                Column::Server => (0, server.server.clone()),
                Column::Model => (0, open.model.clone().unwrap_or_else(unknown)),
                Column::Id => (2, open.id.clone().unwrap_or_else(unknown)),
                Column::Request => (0, route(open.route.as_deref(), open.preemptions)),
                _ => (2, unknown()),
            }
        }
        What::Over(at) => {
            let Some(request) = picture.over.get(at) else { return (0, unknown()) };
            let record = request.record.as_deref();
            match column {
                Column::State => {
                    let color = outcome(request).map_or(33, outcome_color);
                    let said = record.map(table::outcome);
                    (color, said.or_else(|| outcome(request).map(|of| of.name().to_owned())).unwrap_or("open".into()))
                }
                Column::Server => (0, request.trace.server.instance()),
                Column::Model => (0, record.and_then(|record| record.model.clone()).unwrap_or_else(unknown)),
                Column::Id => (2, record.and_then(|record| record.request_id.clone()).unwrap_or_else(unknown)),
                Column::Trace => {
                    let id = request.trace.spans.first().map(|root| root.trace_id.to_string());
                    (2, id.map_or_else(unknown, |id| id.chars().take(8).collect()))
                }
                _ => (0, record.map_or_else(unknown, table::request)),
            }
        }
    }
}

fn route(route: Option<&str>, preemptions: u64) -> String {
    let route = route.unwrap_or("(HTTP not seen)");
    let route = route.strip_prefix("/v1/").unwrap_or(route);
    if preemptions > 0 { format!("{route} preempted {preemptions}x") } else { route.to_owned() }
}
