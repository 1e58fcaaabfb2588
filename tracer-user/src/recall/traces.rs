//! Files of traces: OTLP/JSON, an export request a line, plain or gzip, as `--traces-out` and a collector's file exporter write it.
//!
//! Enters: lines. Leaves: requests and steps, to a taker. Invariant: what is held is a line and what waits for more of its trace
//! ([`super::trees`]). Counted: all that is not used.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::otlp::{self, MAX_LINE, Unused};
use super::trees::{Tree, Trees};
use super::{About, Kind, Loss, Seeing, Taker, record, step, unopened};
use crate::exit::Failure;
use crate::input::Server;
use crate::model::keys::span;
use crate::output::{AccessRecord, EngineStep, Service, Trace};

/// Servers that are told apart by their names to be counted; more are one.
const MAX_SERVERS: usize = 1_024;

/// What the lines say.
#[derive(Debug, Default)]
pub struct Reader {
    trees: Trees,
    unused: Unused,
    /// Steps that lack what every step says.
    bad_steps: u64,
    servers: BTreeSet<String>,
    /// The server of the last tree: most have the same.
    last: Option<Arc<Server>>,
    writer: Option<String>,
}

/// Something that a file says.
#[derive(Debug, Clone, PartialEq)]
pub enum Made {
    Request(Arc<Trace>, Option<Arc<AccessRecord>>),
    Step(Arc<EngineStep>),
}

impl Reader {
    /// Takes a line.
    pub fn push(&mut self, line: &[u8]) -> Vec<Made> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Vec::new();
        }
        let spans = otlp::spans(line, &mut self.unused);
        if let Some(version) = spans.first().and_then(|read| read.writer.as_ref()).filter(|_| self.writer.is_none()) {
            self.writer = Some(version.to_string());
        }
        let trees = self.trees.push(spans);
        self.make(trees)
    }

    /// A line that was passed over for its length.
    pub fn skip(&mut self) {
        self.unused.long_lines += 1;
    }

    /// Nothing more comes.
    pub fn finish(&mut self) -> Vec<Made> {
        let trees = self.trees.finish();
        self.make(trees)
    }

    fn make(&mut self, trees: Vec<Tree>) -> Vec<Made> {
        trees.into_iter().filter_map(|tree| self.make_one(tree)).collect()
    }

    fn make_one(&mut self, mut tree: Tree) -> Option<Made> {
        tree.server = self.server(tree.server);
        let root = tree.spans.first()?;
        if root.name == span::ENGINE_STEP {
            let made = step::step(&tree).map(|step| Made::Step(Arc::new(step)));
            self.bad_steps += u64::from(made.is_none());
            return made;
        }
        let (record, merit) = (record::record(&tree).map(Arc::new), record::merit(&tree));
        let Tree { server, spans } = tree;
        Some(Made::Request(Arc::new(Trace { server, service: Service::Requests, spans, merit }), record))
    }

    /// The same server as before, where it is the same.
    fn server(&mut self, server: Arc<Server>) -> Arc<Server> {
        if let Some(last) = self.last.as_ref().filter(|last| **last == server) {
            return Arc::clone(last);
        }
        if self.servers.len() < MAX_SERVERS {
            self.servers.insert(server.instance());
        }
        self.last = Some(Arc::clone(&server));
        server
    }

    fn losses(&self) -> Vec<Loss> {
        let Unused { lines, long_lines, foreign, impossible, unknown } = self.unused;
        let Trees { rootless, twice, .. } = self.trees;
        let all = [
            ("lines", lines, "lines are no export of traces and were skipped"),
            ("long_lines", long_lines, "lines are longer than 32 MiB and were skipped"),
            ("foreign_spans", foreign, "spans are of other programs"),
            ("impossible_spans", impossible, "spans have no ids, or end before they begin"),
            ("unknown_attributes", unknown, "attributes and events are not known to this version of inferspan"),
            ("rootless_spans", rootless, "spans came without the request or step that they are of"),
            ("repeated_spans", twice, "spans came twice"),
            ("bad_steps", self.bad_steps, "engine steps lack what every step says"),
        ];
        let told = all.into_iter().filter(|(_, count, _)| *count > 0);
        told.map(|(what, count, words)| Loss { what, count, said: format!("{count} {words}") }).collect()
    }
}

/// Reads a file that is no other kind.
pub(super) fn traces<T: Taker>(
    path: &Path,
    mut file: BufReader<File>,
    to: &Rc<RefCell<Seeing<T>>>,
) -> Result<About, Failure> {
    let is_gzip = file.fill_buf().map_err(|error| unopened(path, &error))?.starts_with(&[0x1f, 0x8b]);
    let mut lines: Box<dyn BufRead> =
        if is_gzip { Box::new(BufReader::with_capacity(1 << 20, MultiGzDecoder::new(file))) } else { Box::new(file) };
    let (mut reader, mut line, mut losses) = (Reader::default(), Vec::new(), Vec::new());
    loop {
        match next_line(&mut lines, &mut line) {
            Ok(Line::End) => break,
            Ok(Line::Long) => reader.skip(),
            Ok(Line::Whole) => hand(reader.push(&line), to),
            Err(error) => {
                let said = format!("the file breaks off: {error}; what came before is used");
                losses.push(Loss { what: "damage", count: 1, said });
                break;
            }
        }
    }
    hand(reader.finish(), to);
    losses.extend(reader.losses());
    let servers = reader.servers.len() as u64;
    Ok(About { kind: Kind::Traces, writer: reader.writer, span_ns: None, servers, uncertainty_ns: None, losses })
}

fn hand<T: Taker>(made: Vec<Made>, to: &Rc<RefCell<Seeing<T>>>) {
    let mut to = to.borrow_mut();
    for made in made {
        match made {
            Made::Request(trace, record) => to.request(&trace, record.as_ref()),
            Made::Step(step) => to.step(&step),
        }
    }
}

enum Line {
    Whole,
    /// Its rest was passed over.
    Long,
    End,
}

/// Reads a line into `line`, as far as it is not too long.
fn next_line(from: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    let mut is_long = false;
    loop {
        let held = from.fill_buf()?;
        if held.is_empty() {
            let is_end = line.is_empty() && !is_long;
            return Ok(if is_end { Line::End } else { whole(is_long) });
        }
        let end = memchr::memchr(b'\n', held);
        let part = &held[..end.unwrap_or(held.len())];
        is_long |= line.len() + part.len() > MAX_LINE;
        if is_long {
            line.clear();
        } else {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        from.consume(used);
        if end.is_some() {
            return Ok(whole(is_long));
        }
    }
}

fn whole(is_long: bool) -> Line {
    if is_long { Line::Long } else { Line::Whole }
}
