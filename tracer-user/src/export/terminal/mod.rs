//! What a person at the terminal sees: one line a finished request, and at the end a summary with the slowest ones drawn.
//!
//! Enters: access records and request traces. Leaves: text. Every string of the target's is sanitised; colour only on a
//! terminal and without `NO_COLOR`; box characters only in a UTF-8 locale.

use std::io::{self, IsTerminal, Write as _};

use std::sync::Arc;

use super::lines::Lines;
use super::sink::{Context, Sink};
use super::stdout::{self, Stdout};
use super::{access_log, otlp};
use crate::output::{AccessRecord, Outcome};
use crate::sanitise::sanitise;

pub mod summary;
pub mod waterfall;

/// Lines that wait for the terminal at most.
const QUEUE_LINES: u64 = 4096;

#[derive(Debug)]
struct Terminal(Lines<AccessRecord>);

impl Sink for Terminal {
    fn access(&mut self, record: &Arc<AccessRecord>) {
        self.0.push(record, 1);
    }

    fn is_terminal(&self) -> bool {
        true
    }

    fn is_unread(&self) -> bool {
        stdout::is_closed()
    }

    fn finish(self: Box<Self>) -> Option<String> {
        self.0.finish()
    }
}

/// Where a person watches stdout, or where nothing else was asked for.
pub fn open(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let flags = context.flags;
    let has_destination = otlp::is_asked_for(flags)?
        || flags.traces_out.is_some()
        || flags.perfetto.is_some()
        || flags.chrome.is_some()
        || flags.metrics.is_some()
        || flags.metrics_out.is_some()
        || flags.access_log.is_some();
    let is_wanted = io::stdout().is_terminal() || !has_destination;
    if !is_wanted || access_log::takes_stdout(flags.access_log.as_deref()) {
        return Ok(None);
    }
    let style = Style::of(&io::stdout());
    let mut servers = Servers::default();
    let render = move |record: &AccessRecord, line: &mut Vec<u8>| {
        let shows_server = servers.are_several(&record.server);
        write_line(record, shows_server, style, line)
    };
    // A line that the terminal had no time for is no loss worth a counter: the summary and the log have the request.
    let out = Box::new(Stdout::default());
    let lines = Lines::start("terminal".into(), "lines", out, QUEUE_LINES, context.pressure, |_, _| (), render)?;
    Ok(Some(Box::new(Terminal(lines))))
}

/// How text may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    pub color: bool,
    pub unicode: bool,
    /// Columns.
    pub width: usize,
}

/// Columns when the output is no terminal and `COLUMNS` says nothing.
const DEFAULT_WIDTH: usize = 100;

impl Style {
    /// The style that fits `stream`.
    pub fn of(stream: &(impl IsTerminal + std::os::fd::AsFd)) -> Self {
        let is_terminal = stream.is_terminal();
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        // In POSIX order; the first that is set decides.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(env).unwrap_or_default().to_lowercase();
        let columns = || env("COLUMNS").and_then(|columns| columns.parse().ok());
        let is_dumb = env("TERM").is_some_and(|term| term == "dumb");
        Self {
            color: is_terminal && !is_dumb && env("NO_COLOR").is_none(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
            width: is_terminal
                .then(|| window_width(stream))
                .flatten()
                .or_else(columns)
                .unwrap_or(DEFAULT_WIDTH)
                .clamp(60, 400),
        }
    }

    /// `text` in an SGR colour (`31` red, `32` green, `33` yellow, `2` dim, `1` bold), or as it is.
    pub fn paint(self, code: u8, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn window_width(stream: &impl std::os::fd::AsFd) -> Option<usize> {
    use std::os::fd::AsRawFd as _;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is borrowed and so open, and TIOCGWINSZ writes one `winsize`, which `size` is.
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}

/// Whether requests of more than one server were seen: with one, its name on every line says nothing.
#[derive(Debug, Default)]
pub struct Servers {
    first: Option<String>,
    several: bool,
}

impl Servers {
    /// A request of `server` came.
    pub fn are_several(&mut self, server: &str) -> bool {
        let first = self.first.get_or_insert_with(|| server.to_owned());
        self.several |= first != server;
        self.several
    }
}

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

fn outcome_color(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Stop | Outcome::Length => 32,
        Outcome::Abort => 33,
        Outcome::Error | Outcome::Rejected | Outcome::Unknown => 31,
    }
}

fn count(value: Option<u64>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::access_log::tests::record;

    pub(super) const PLAIN: Style = Style { color: false, unicode: true, width: 100 };

    fn line(record: &AccessRecord, style: Style) -> String {
        let mut line = Vec::new();
        write_line(record, false, style, &mut line).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_request_is_one_line_with_its_times() {
        assert_eq!(
            line(&record(), PLAIN),
            "03:52:11.123 200 length   /v1/completions        m  12→34 tok  ttft 12.3ms  e2e 1.23s  queue 100us  \
             prefill 10.0ms  decode 1.10s"
        );
    }

    #[test]
    fn the_server_is_named_once_there_are_several() {
        let mut servers = Servers::default();
        assert!(!servers.are_several("vllm-42"));
        assert!(!servers.are_several("vllm-42"));
        assert!(servers.are_several("vllm-43"));
        assert!(servers.are_several("vllm-42"));
        let mut line = Vec::new();
        write_line(&record(), true, PLAIN, &mut line).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with("03:52:11.123 vllm-42              200 length "), "{line}");
    }

    #[test]
    fn what_the_target_controls_cannot_reach_the_terminal_raw() {
        let hostile = "\x1b]0;owned\x07\u{202e}\n";
        let record = AccessRecord {
            path: Some(hostile.into()),
            model: Some(hostile.into()),
            server: hostile.into(),
            ..record()
        };
        let mut line = Vec::new();
        write_line(&record, true, PLAIN, &mut line).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(!line.chars().any(crate::sanitise::is_unsafe), "{line:?}");
    }

    #[test]
    fn colour_is_only_there_when_asked_for() {
        assert!(!line(&record(), PLAIN).contains('\x1b'));
        assert!(line(&record(), Style { color: true, ..PLAIN }).contains("\x1b[32mlength  \x1b[0m"));
    }

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        let shown = [0.0, 0.000_431, 0.000_999_9, 0.0123, 0.9999, 1.234, 12.34, 59.99, 125.0, f64::NAN].map(duration);
        assert_eq!(shown, ["0us", "431us", "1.00ms", "12.3ms", "1.00s", "1.23s", "12.3s", "1m00s", "2m05s", "?"]);
    }

    #[test]
    fn a_pipe_gets_no_colour() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!Style::of(&file).color);
    }
}
