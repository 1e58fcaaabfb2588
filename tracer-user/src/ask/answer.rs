//! Makes answers out of a store.

use std::sync::Arc;

use super::{Answer, Ask, Found, Paper, Question, VERSION, documents, hints};
use crate::export::kept::Kept;
use crate::export::terminal::{Style, waterfall, write_line};
use crate::store::{Request, Store};
use crate::why::slow::{Slowness, slowest};
use crate::why::{self, Near, Verdict};

/// Requests that an answer tells of: more than that is no name.
const MOST: usize = 20;

/// Where a store is.
pub trait Source {
    /// Looks into it, for as short as possible.
    fn look<T>(&self, at: impl FnOnce(&Store) -> T) -> T;

    /// A request that is open and has this id: what is known of it, as a line.
    fn open(&self, _id: &str) -> Option<String> {
        None
    }
}

impl Source for Store {
    fn look<T>(&self, at: impl FnOnce(&Store) -> T) -> T {
        at(self)
    }
}

impl Source for Kept {
    fn look<T>(&self, at: impl FnOnce(&Store) -> T) -> T {
        at(&self.store())
    }

    fn open(&self, id: &str) -> Option<String> {
        hints::open(self, id)
    }
}

/// The answer of what `source` has.
pub fn answer(source: &impl Source, question: &Question) -> Answer {
    if question.v != VERSION {
        return Answer::refused(format!(
            "it speaks version {VERSION} of the questions, and was asked in {}",
            question.v
        ));
    }
    let found = match &question.ask {
        Ask::Slow { most } => slow(source, (*most).min(MOST), question.paper),
        named => by_name(source, named, question.paper),
    };
    let (hints, kept) = match question.ask.id().filter(|_| found.is_empty()) {
        Some(id) => (hints::of(source, id), source.look(|store| store.requests().count())),
        None => (Vec::new(), source.look(|store| store.requests().count())),
    };
    Answer { v: VERSION, found, hints, kept, error: None }
}

fn by_name(source: &impl Source, ask: &Ask, paper: Paper) -> Vec<Found> {
    let id = ask.id().unwrap_or_default();
    let mut requests: Vec<Request> = source.look(|store| store.find(id).into_iter().take(MOST).cloned().collect());
    if requests.iter().any(|request| is_exact(request, id)) {
        requests.retain(|request| is_exact(request, id));
    }
    let is_told = requests.len() == 1 || requests.iter().all(|request| is_exact(request, id));
    let tell = |request: &Request| {
        let mut found = name(request, id);
        if is_told && !matches!(ask, Ask::Find { .. }) {
            let verdict = verdict(source, request);
            fill(&mut found, ask, request, &verdict, paper);
        }
        found
    };
    requests.iter().map(tell).collect()
}

fn fill(found: &mut Found, ask: &Ask, request: &Request, verdict: &Verdict, paper: Paper) {
    let paragraph = plain(&why::text::paragraph(&request.trace, verdict), paper);
    (found.text, found.document) = match ask {
        Ask::Trace { .. } => (drawn(request, &paragraph, paper), documents::trace(request, verdict, &paragraph)),
        _ => (format!("{paragraph}\n"), documents::why(request, verdict, &paragraph, None)),
    };
}

/// What is near is taken out of the source in one look, and judged without it: others wait for it.
fn verdict(source: &impl Source, request: &Request) -> Verdict {
    let near = source.look(|store| Near::of(store, &request.trace));
    why::explain(&request.trace, &near.around(&request.trace))
}

fn slow(source: &impl Source, most: usize, paper: Paper) -> Vec<Found> {
    let requests: Vec<Request> = source.look(|store| store.requests().cloned().collect());
    let slow = slowest(&requests, most);
    let tell = |(at, how): &(usize, Slowness)| {
        let request = &requests[*at];
        let verdict = verdict(source, request);
        let paragraph = plain(&why::text::paragraph(&request.trace, &verdict), paper);
        let mut found = name(request, "");
        found.score = Some(how.score);
        found.text = format!("{paragraph} {}\n", how.words());
        found.document = documents::why(request, &verdict, &paragraph, Some(how));
        found
    };
    slow.iter().map(tell).collect()
}

/// Its ids, and nothing else.
fn name(request: &Request, id: &str) -> Found {
    let root = request.trace.spans.first();
    Found {
        trace_id: root.map(|root| root.trace_id.to_string()).unwrap_or_default(),
        span_id: root.map(|root| root.span_id.to_string()).unwrap_or_default(),
        request_id: request.record.as_deref().and_then(|record| record.request_id.clone()),
        is_exact: is_exact(request, id),
        score: None,
        text: String::new(),
        document: serde_json::Value::Null,
    }
}

/// One of its ids is this; a part of a trace id is not.
fn is_exact(request: &Request, id: &str) -> bool {
    hints::ids(request).iter().any(|known| known.eq_ignore_ascii_case(id))
}

/// The access line, the waterfall, and why.
fn drawn(request: &Request, paragraph: &str, paper: Paper) -> String {
    let style =
        Style { color: paper.color, unicode: paper.unicode, width: paper.width.clamp(60, 400), has_cursor: false };
    let mut line = Vec::new();
    if let Some(record) = &request.record
        && write_line(record, true, style, &mut line).is_ok()
    {
        line.push(b'\n');
    }
    let trace = waterfall::render(&Arc::clone(&request.trace), style);
    format!("{}{trace}\n{paragraph}\n", String::from_utf8_lossy(&line))
}

/// For a terminal that has ASCII alone.
fn plain(text: &str, paper: Paper) -> String {
    if paper.unicode { text.to_owned() } else { text.replace('…', "...").replace('µ', "u") }
}
