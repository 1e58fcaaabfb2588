//! A picture on a screen.
//!
//! Enters: a picture, how a person looks at it, what is to be said. Leaves: cells of a terminal. Invariant: usable from 80 by 24, and
//! nothing is drawn where there is no room for it.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style as Ink};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};

use super::cells::Cells;
use super::detail::Shown;
use super::keys::{Looking, Page};
use super::picture::{Picture, Row};
use super::steps;
use crate::export::terminal::units::{fit, width};
use crate::export::terminal::{Inked, Style, live, table};

#[cfg(test)]
mod tests;

/// Lines above the body, and below it.
const HEAD: u16 = 3;
const FOOT: u16 = 1;

/// All that a screen shows.
#[derive(Debug)]
pub struct Scene<'a> {
    pub picture: &'a Picture,
    pub looking: &'a Looking,
    pub rows: &'a [Row],
    /// The request that was chosen.
    pub shown: &'a Shown,
    /// Who is traced, or what is being done.
    pub title: &'a str,
    /// The newest warning, and how many there were.
    pub warning: Option<(&'a str, u64)>,
    pub style: Style,
}

/// Rows that a body of a screen has: those of the table below its head.
pub fn body_rows(height: u16) -> usize {
    usize::from(height.saturating_sub(HEAD + FOOT + 1))
}

pub fn draw(frame: &mut Frame<'_>, scene: &Scene<'_>) {
    let area = frame.area();
    let style = Style { width: area.width.into(), ..scene.style };
    let scene = &Scene { style, ..*scene };
    let warns = scene.warning.is_some();
    let [head, warning, body, foot] = Layout::vertical([
        Constraint::Length(HEAD),
        Constraint::Length(u16::from(warns)),
        Constraint::Min(0),
        Constraint::Length(FOOT),
    ])
    .areas(area);
    header(frame, head, scene);
    if let Some((text, count)) = scene.warning {
        let text = if count > 1 { format!("({count} warnings) {text}") } else { text.to_owned() };
        put(frame, warning, vec![vec![(33, fit(&text, style.width, style))]], scene);
    }
    match scene.looking.page {
        Page::Requests => requests(frame, body, scene),
        Page::Request => scrolled(frame, body, &scene.shown.title, scene.shown.lines.clone(), scene),
        Page::Steps => {
            let lines = steps::lines(scene.picture, style);
            scrolled(frame, body, "the last steps of each engine", lines, scene);
        }
        Page::Help => scrolled(frame, body, "keys", help(), scene),
    }
    footer(frame, foot, scene);
}

fn header(frame: &mut Frame<'_>, area: Rect, scene: &Scene<'_>) {
    let (style, figures) = (scene.style, &scene.picture.figures);
    let frozen = if scene.looking.is_frozen { " FROZEN " } else { "" };
    let counts = format!("  {}  ", scene.picture.counts());
    let room = style.width.saturating_sub(width(&counts) + width(frozen));
    let title = vec![(1, fit(scene.title, room, style)), (0, counts), (7, frozen.to_owned())];
    let mut state = live::state(figures);
    state.extend(live::cost(figures));
    state.extend(scene.picture.missed());
    let lines =
        vec![title, table::joined(&live::load(figures), style.width, style), table::joined(&state, style.width, style)];
    put(frame, area, lines, scene);
}

fn requests(frame: &mut Frame<'_>, area: Rect, scene: &Scene<'_>) {
    let cells = Cells::of(scene.picture, scene.style);
    let mut lines = vec![vec![(7, cells.header())]];
    let height = usize::from(area.height.saturating_sub(1));
    // The chosen row stays in sight.
    let first = (scene.looking.row + 1).saturating_sub(height);
    for (nth, row) in scene.rows.iter().enumerate().skip(first).take(height) {
        let mut pieces = cells.row(scene.picture, row);
        if nth == scene.looking.row {
            pieces = vec![(7, pieces.into_iter().map(|(_, text)| text).collect())];
        }
        lines.push(pieces);
    }
    if scene.rows.is_empty() {
        let why =
            if scene.looking.filter.is_empty() { "no request was seen yet" } else { "no request matches the filter" };
        lines.push(vec![(2, why.to_owned())]);
    }
    put(frame, area, lines, scene);
}

/// A page of lines below its title.
fn scrolled(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Vec<Inked>>, scene: &Scene<'_>) {
    let style = scene.style;
    let title = fit(title, style.width, style);
    let blank = " ".repeat(style.width.saturating_sub(width(&title)));
    let from = scene.looking.scrolled.min(lines.len().saturating_sub(1));
    let mut shown = vec![vec![(7, title + &blank)]];
    shown.extend(lines.into_iter().skip(from));
    put(frame, area, shown, scene);
}

fn footer(frame: &mut Frame<'_>, area: Rect, scene: &Scene<'_>) {
    let looking = scene.looking;
    let line = if looking.is_typing {
        format!("filter: {}_   Enter keeps it, Esc takes it away", looking.filter)
    } else {
        match looking.page {
            Page::Requests => {
                let filter = if looking.filter.is_empty() {
                    String::new()
                } else {
                    format!("filter `{}` (Esc)  ", looking.filter)
                };
                let sort = looking.sort.name();
                format!("{filter}by {sort}: a t e n w  Enter one  / filter  space freeze  s steps  ? help  q quit")
            }
            Page::Request | Page::Steps => "Esc back  up and down scroll  space freeze  ? help  q quit".to_owned(),
            Page::Help => "Esc back  q quit".to_owned(),
        }
    };
    put(frame, area, vec![vec![(2, fit(&line, scene.style.width, scene.style))]], scene);
}

fn help() -> Vec<Vec<Inked>> {
    [
        ("up down j k", "choose a request; PgUp, PgDn, Home, End too"),
        ("Enter", "its waterfall, and why it took so long"),
        ("Esc", "back; takes the filter away"),
        ("a t e n w", "sort by age, TTFT, end to end, number of tokens, wait in the queue"),
        ("/", "filter: letters of id, model, path, outcome, stage or server"),
        ("space", "freeze the picture; tracing goes on"),
        ("s", "last steps of each engine: batch, tokens, waiting, KV cache"),
        ("q Ctrl-C", "detach and quit"),
        ("", ""),
        ("E2E", "so far, of a request that is open; those come first"),
        ("TPOT", "time per output token behind the first"),
        ("PHASES", "queue, prefill, decode; dots: front end, or not known yet"),
        ("STATE", "waiting: sent to the engine, which gave nothing yet; !: preempted"),
        ("~", "inferred, not observed"),
    ]
    .map(|(key, what)| vec![(1, format!("{key:>12}  ")), (0, what.to_owned())])
    .into()
}

/// Lines from the top of an area; what does not fit is not drawn.
fn put(frame: &mut Frame<'_>, area: Rect, lines: Vec<Vec<Inked>>, scene: &Scene<'_>) {
    let style = scene.style;
    let lines = lines.into_iter().take(area.height.into()).map(|pieces| line(pieces, style));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}

fn line(pieces: Vec<Inked>, style: Style) -> Line<'static> {
    Line::from(pieces.into_iter().map(|(code, text)| Span::styled(text, ink(code, style))).collect::<Vec<_>>())
}

/// The colours of [`Inked`]. What is reversed or bold stands without colours, too.
fn ink(code: u8, style: Style) -> Ink {
    let color = match code {
        31 => Color::Red,
        32 => Color::Green,
        33 => Color::Yellow,
        34 => Color::Blue,
        35 => Color::Magenta,
        36 => Color::Cyan,
        1 => return Ink::new().add_modifier(Modifier::BOLD),
        7 => return Ink::new().add_modifier(Modifier::REVERSED),
        2 if style.color => return Ink::new().add_modifier(Modifier::DIM),
        _ => return Ink::new(),
    };
    if style.color { Ink::new().fg(color) } else { Ink::new() }
}
