//! The table that grows in a terminal, and the line of rates below it.
//!
//! Enters: access records through a bounded queue, metrics, the clock. Leaves: lines, and once a second the line in place, by the console.
//! A terminal that is stopped fills the queue and nothing else: what is not shown is in the access log and the summary.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::flow::{Flow, Shown};
use super::table::{Layout, Named, joined};
use super::units::{bytes, duration, percent, rate};
use super::{Inked, Several, Style};
use crate::console;
use crate::export::Pressure;
use crate::export::meter::{Figures, Meter, Reader};
use crate::export::queue::{self, Popped, Writer};
use crate::export::sink::{Context, Sink};
use crate::output::{AccessRecord, Metric};

/// Requests that wait for the terminal at most.
const QUEUE: u64 = 4096;
/// How often the line of rates is drawn.
const EVERY: Duration = Duration::from_secs(1);
/// Rows between two heads of the table.
const HEAD_EVERY: usize = 40;
/// How long the end of a run waits for a terminal that takes no more.
const FLUSH: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Live {
    writer: Writer<Arc<AccessRecord>>,
    pressure: Pressure,
    meter: Meter,
    /// How the thread ended.
    done: Receiver<io::Result<()>>,
}

impl Live {
    pub fn start(context: &Context<'_>) -> io::Result<Self> {
        let (writer, queue) = queue::bounded::<Arc<AccessRecord>>(QUEUE);
        let meter = Meter::default();
        let reader = Reader::new(meter.clone(), Arc::clone(context.telemetry), Instant::now());
        let (finished, done) = mpsc::channel();
        let pressure = context.pressure;
        std::thread::Builder::new().name("inferspan-table".into()).spawn(move || {
            // The receiver is gone when the run did not wait that long.
            let _ = finished.send(Table::new(reader, pressure == Pressure::Wait).run(&queue));
        })?;
        Ok(Self { writer, pressure, meter, done })
    }
}

impl Sink for Live {
    fn access(&mut self, record: &Arc<AccessRecord>) {
        self.meter.record(record, Instant::now());
        // A row that the terminal had no time for is no loss worth a counter: the summary and the log have the request.
        let _ = self.writer.push(Arc::clone(record), 1, self.pressure);
    }

    fn metric(&mut self, metric: &Metric) {
        self.meter.metric(metric, Instant::now);
    }

    fn is_terminal(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>) -> Option<String> {
        drop(self.writer);
        match self.done.recv_timeout(FLUSH) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("terminal: {error}")),
            Err(_) => Some("terminal: takes no more; what was still queued is lost".to_owned()),
        }
    }
}

/// The thread's own.
struct Table {
    reader: Reader,
    flow: Flow,
    names: Names,
    /// Which columns the last rows had, and how many they were.
    layout: Option<Layout>,
    rows: usize,
    /// A file has no rates, and no seconds that a person waits for: all of it comes at once.
    is_replay: bool,
}

impl Table {
    fn new(reader: Reader, is_replay: bool) -> Self {
        Self { reader, flow: Flow::default(), names: Names::default(), layout: None, rows: 0, is_replay }
    }

    fn run(&mut self, queue: &queue::Reader<Arc<AccessRecord>>) -> io::Result<()> {
        let mut next = Instant::now() + EVERY;
        let mut placed = None;
        loop {
            let (mut shown, mut is_over) = (Vec::new(), false);
            match queue.pop_until(next) {
                Popped::Item(record) => shown.extend(self.take(&record)),
                Popped::Late => {}
                Popped::Closed => is_over = true,
            }
            // What is there already goes into the same write.
            while let Some(record) = queue.try_pop() {
                shown.extend(self.take(&record));
            }
            let style = Style::of(&io::stdout());
            let now = Instant::now();
            let is_due = now >= next || is_over;
            if is_due {
                next = now + EVERY;
                shown.extend(self.flow.tick());
                let is_wanted = !self.is_replay && !is_over && style.has_cursor;
                placed = is_wanted.then(|| status(&self.reader.read(now), style));
                shown.extend(is_over.then(|| self.flow.end()).flatten());
            }
            if is_due || !shown.is_empty() {
                console::print(self.lines(&shown, style).as_bytes(), placed.as_deref())?;
            }
            if is_over {
                return Ok(());
            }
        }
    }

    fn take(&mut self, record: &Arc<AccessRecord>) -> Option<Shown> {
        if self.is_replay { Some(Shown::Request(Arc::clone(record))) } else { self.flow.request(record) }
    }

    /// The rows of what is shown, with heads.
    fn lines(&mut self, shown: &[Shown], style: Style) -> String {
        let mut lines = String::new();
        for one in shown {
            match one {
                Shown::Request(record) => {
                    let layout = Layout::of(style.width, self.names.seen(record));
                    if self.layout.as_ref() != Some(&layout) || self.rows == HEAD_EVERY {
                        lines.push_str(&layout.header(style));
                        lines.push('\n');
                        self.rows = 0;
                    }
                    lines.push_str(&layout.row(record, style));
                    lines.push('\n');
                    self.rows += 1;
                    self.layout = Some(layout);
                }
                Shown::More(count) => {
                    let dots = if style.unicode { "…" } else { "..." };
                    lines.push_str(&style.paint(2, &format!("{dots} {count} more")));
                    lines.push('\n');
                }
            }
        }
        lines
    }
}

/// What has more than one name.
#[derive(Debug, Default)]
struct Names {
    servers: Several,
    models: Several,
}

impl Names {
    fn seen(&mut self, record: &AccessRecord) -> Named {
        if let Some(model) = &record.model {
            self.models.are(model);
        }
        Named { servers: self.servers.are(&record.server), models: self.models.is() }
    }
}

/// The line of rates: as much of it as fits.
pub fn status(figures: &Figures, style: Style) -> String {
    let parts: Vec<Inked> = load(figures).into_iter().chain(state(figures)).chain(cost(figures)).collect();
    // The last column stays free: some terminals go on to the next line with it.
    style.inked(&joined(&parts, style.width.saturating_sub(1), style))
}

/// What is asked and answered.
pub fn load(figures: &Figures) -> Vec<Inked> {
    let mut parts = vec![(1, format!("{} req/s", rate(figures.requests_rate.unwrap_or(0.0))))];
    if figures.lost > 0 {
        parts.push((31, format!("{} lost", figures.lost)));
    }
    if let Some(failed) = figures.failed_rate.filter(|rate| *rate > 0.0) {
        parts.push((31, format!("{} failed/s", rate(failed))));
    }
    parts.push((0, format!("{} tok/s", rate(figures.tokens_rate.unwrap_or(0.0)))));
    if let (Some(p50), Some(p95)) = (figures.ttft_p50, figures.ttft_p95) {
        parts.push((0, format!("TTFT {} p95 {}", duration(p50), duration(p95))));
    }
    parts
}

/// What the engines say.
pub fn state(figures: &Figures) -> Vec<Inked> {
    let mut parts = Vec::new();
    if let (Some(running), Some(waiting)) = (figures.running, figures.waiting) {
        parts.push((0, format!("{running} running {waiting} waiting")));
    }
    parts.extend(figures.kv_cache_usage.map(|usage| (0, format!("KV {}", percent(usage)))));
    parts
}

/// What the tracer costs.
pub fn cost(figures: &Figures) -> Vec<Inked> {
    let mut parts = Vec::new();
    parts.extend(figures.cpu.map(|cpu| (2, format!("cpu {:.1}%", cpu * 100.0))));
    parts.extend(figures.memory_bytes.map(|memory| (2, bytes(memory))));
    if figures.lost == 0 {
        parts.push((2, "0 lost".to_owned()));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::tests::PLAIN;
    use super::super::units::width;
    use super::*;

    fn figures() -> Figures {
        Figures {
            requests_rate: Some(40.0),
            failed_rate: Some(0.0),
            tokens_rate: Some(845.0),
            ttft_p50: Some(0.0351),
            ttft_p95: Some(0.12),
            running: Some(8),
            waiting: Some(2),
            kv_cache_usage: Some(0.43),
            cpu: Some(0.012),
            memory_bytes: Some(31 << 20),
            ..Figures::default()
        }
    }

    #[test]
    fn the_line_of_rates_fits_and_what_is_lost_comes_first() {
        let at = |width| status(&figures(), Style { width, ..PLAIN });
        assert_eq!(at(60), "40.0 req/s · 845 tok/s · TTFT 35.1ms p95 120ms");
        assert_eq!(at(80), "40.0 req/s · 845 tok/s · TTFT 35.1ms p95 120ms · 8 running 2 waiting · KV 43%");
        assert_eq!(
            at(120),
            "40.0 req/s · 845 tok/s · TTFT 35.1ms p95 120ms · 8 running 2 waiting · KV 43% · cpu 1.2% · 31 MiB · 0 lost"
        );
        let lost = status(&Figures { lost: 3, ..figures() }, Style { width: 40, unicode: false, ..PLAIN });
        assert_eq!(lost, "40.0 req/s | 3 lost | 845 tok/s");
        for columns in 0..200 {
            assert!(width(&status(&figures(), Style { width: columns, ..PLAIN })) <= columns);
        }
    }
}
