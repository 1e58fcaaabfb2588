//! What a person at the terminal sees: requests as they finish, and at the end a summary with the slow ones drawn.
//!
//! Enters: access records, metrics and request traces. Leaves: text: in a terminal a table that fits it above a line of rates, else a line
//! a request. Every string of the target's is sanitised; colour only on a terminal and without `NO_COLOR`; box characters only in a UTF-8
//! locale.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use super::lines::Lines;
use super::sink::{Context, Sink};
use super::stdout::{self, Stdout};
use super::{access_log, otlp};
use crate::output::{AccessRecord, Outcome};

pub mod flow;
pub mod line;
pub mod live;
pub mod quantiles;
pub mod slow;
pub mod summary;
pub mod table;
pub mod units;
pub mod waterfall;

pub use line::write_line;
pub use units::{duration, wrap};

/// Lines that wait for a pipe at most.
const QUEUE_LINES: u64 = 4096;

/// Lines for a pipe.
#[derive(Debug)]
struct Piped(Lines<AccessRecord>);

impl Sink for Piped {
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
    let is_terminal = io::stdout().is_terminal();
    if (!is_terminal && has_destination) || access_log::takes_stdout(flags.access_log.as_deref()) {
        return Ok(None);
    }
    if is_terminal {
        return Ok(Some(Box::new(live::Live::start(context)?)));
    }
    let style = Style::of(&io::stdout());
    let mut servers = Several::default();
    let render = move |record: &AccessRecord, line: &mut Vec<u8>| {
        let shows_server = servers.are(&record.server);
        write_line(record, shows_server, style, line)
    };
    // A line that the reader had no time for is no loss worth a counter: the summary and the log have the request.
    let out = Box::new(Stdout::default());
    let lines = Lines::start("terminal".into(), "lines", out, QUEUE_LINES, context.pressure, |_, _| (), render)?;
    Ok(Some(Box::new(Piped(lines))))
}

/// A text and its colour: an SGR code (`31` red, `32` green, `33` yellow, `34` blue, `36` cyan, `2` dim, `1` bold, `7` reversed), or 0.
pub type Inked = (u8, String);

/// How text may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    pub color: bool,
    pub unicode: bool,
    /// Columns.
    pub width: usize,
    /// A line can be taken back.
    pub has_cursor: bool,
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
            has_cursor: is_terminal && !is_dumb,
            color: is_terminal && !is_dumb && env("NO_COLOR").is_none(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
            width: is_terminal
                .then(|| window_width(stream))
                .flatten()
                .or_else(columns)
                .unwrap_or(DEFAULT_WIDTH)
                .clamp(20, 400),
        }
    }

    /// Pieces one after the other.
    pub fn inked(self, pieces: &[Inked]) -> String {
        pieces.iter().map(|(code, text)| self.paint(*code, text)).collect()
    }

    /// `text` in the colour of [`Inked`], or as it is.
    pub fn paint(self, code: u8, text: &str) -> String {
        if self.color && code != 0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn window_width(stream: &impl std::os::fd::AsFd) -> Option<usize> {
    use std::os::fd::AsRawFd as _;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is borrowed and so open, and TIOCGWINSZ writes one `winsize`, which `size` is.
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}

/// Whether there is more than one of something: with one, its name on every line says nothing.
#[derive(Debug, Default)]
pub struct Several {
    first: Option<String>,
    several: bool,
}

impl Several {
    /// One of this name came.
    pub fn are(&mut self, name: &str) -> bool {
        let is_another = self.first.as_deref().is_some_and(|first| first != name);
        self.several |= is_another;
        if self.first.is_none() {
            self.first = Some(name.to_owned());
        }
        self.several
    }

    pub fn is(&self) -> bool {
        self.several
    }
}

/// As in [`Inked`].
pub fn outcome_color(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Stop | Outcome::Length => 32,
        Outcome::Abort => 33,
        Outcome::Error | Outcome::Rejected | Outcome::Unknown => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::access_log::tests::record;

    pub(super) const PLAIN: Style = Style { color: false, unicode: true, width: 100, has_cursor: false };

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
        let mut servers = Several::default();
        assert!(!servers.are("vllm-42"));
        assert!(!servers.are("vllm-42"));
        assert!(servers.are("vllm-43"));
        assert!(servers.are("vllm-42"));
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
    fn a_pipe_gets_no_colour() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!Style::of(&file).color);
    }
}
