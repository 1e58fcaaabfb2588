//! What is shown, at a moment.
//!
//! Enters: the store, what is open, figures. Leaves: a picture that outlives the lock: servers with what is open, requests that are over,
//! newest first, and the last steps of each engine; and its rows, sorted and filtered. Bounded by the store's own bounds and [`MAX_OVER`];
//! what is left out is said.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::core::view::{EngineNow, Stage};
use crate::export::meter::Figures;
use crate::export::terminal::{Inked, table};
use crate::output::{AccessRecord, EngineStep, Outcome};
use crate::store::now::{Now, OpenRequest, ServerNow};
use crate::store::{Request, Store};

/// Requests that are over and in a picture: the newest.
pub const MAX_OVER: usize = 2000;
/// Steps of an engine that are: as many as the widest terminal has columns.
pub const MAX_STEPS: usize = 400;

/// The steps of an engine, oldest first.
#[derive(Debug, Clone)]
pub struct EngineSteps {
    pub server: Arc<str>,
    pub engine: u32,
    pub steps: Vec<Arc<EngineStep>>,
}

#[derive(Debug, Clone, Default)]
pub struct Picture {
    pub figures: Figures,
    /// `None` where nobody looked of late: what is open is not known.
    pub now: Option<Arc<Now>>,
    /// Newest first.
    pub over: Vec<Request>,
    /// Requests that are over and kept, in the picture or not.
    pub over_count: usize,
    /// Requests, steps and the like that came faster than they could be kept, and are in no picture.
    pub missed: u64,
    pub steps: Vec<EngineSteps>,
}

/// A row of the table: which request, and what it is sorted by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    pub what: What,
    /// Since it came, or as long as it took, seconds.
    pub age: f64,
    pub ttft: Option<f64>,
    pub queue: Option<f64>,
    pub per_token: Option<f64>,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// Seconds of each of [`table::PHASES`].
    pub phases: [f64; 4],
}

/// Places in [`Picture::servers`] and [`ServerNow::open`], or in [`Picture::over`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Open(usize, usize),
    Over(usize),
}

/// What rows are sorted by; those that are open come before those that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Sort {
    /// Oldest first; of those that are over, newest first
    #[default]
    Age,
    /// Time to the first token, longest first
    Ttft,
    /// Time from end to end, or so far, longest first
    E2e,
    /// Tokens given, most first
    Tokens,
    /// Time in the queue, longest first
    Queue,
}

impl Sort {
    pub fn name(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Ttft => "ttft",
            Self::E2e => "e2e",
            Self::Tokens => "tokens",
            Self::Queue => "queue",
        }
    }
}

impl Picture {
    pub fn of(store: &Store, now: Option<Arc<Now>>, figures: Figures) -> Self {
        let steps = store.steps().engines().map(|(key, steps)| EngineSteps {
            server: Arc::clone(&key.server),
            engine: key.engine,
            steps: steps.iter().rev().take(MAX_STEPS).rev().map(Arc::clone).collect(),
        });
        Self {
            figures,
            now,
            over: store.requests().rev().take(MAX_OVER).cloned().collect(),
            over_count: store.requests_count(),
            missed: 0,
            steps: steps.collect(),
        }
    }

    /// What is in no picture, where there is such a thing.
    pub fn missed(&self) -> Option<Inked> {
        (self.missed > 0).then(|| (33, format!("{} missed", self.missed)))
    }

    pub fn servers(&self) -> &[ServerNow] {
        self.now.as_ref().map_or(&[], |now| &now.servers)
    }

    /// Requests that are open, in the picture or not.
    pub fn open_count(&self) -> Option<usize> {
        self.now.as_ref().map(|now| now.servers.iter().map(|server| server.open_count).sum())
    }

    /// How many are open and over, in words.
    pub fn counts(&self) -> String {
        let open = self.open_count().map_or_else(|| "?".to_owned(), |count| count.to_string());
        format!("{open} open, {} over", self.over_count)
    }

    /// The open request that a row is.
    pub fn open(&self, server: usize, at: usize) -> Option<(&ServerNow, &OpenRequest)> {
        let server = self.servers().get(server)?;
        server.open.get(at).map(|open| (server, open))
    }

    pub fn engines(&self) -> impl Iterator<Item = (&ServerNow, &EngineNow)> {
        self.servers().iter().flat_map(|server| server.engines.iter().map(move |engine| (server, engine)))
    }

    /// The rows that hold `filter` (any case) somewhere, sorted.
    pub fn rows(&self, sort: Sort, filter: &str) -> Vec<Row> {
        let filter = filter.to_lowercase();
        let mut open: Vec<Row> = Vec::new();
        for (server_at, server) in self.servers().iter().enumerate() {
            let matching = server.open.iter().enumerate().filter(|(_, request)| {
                let words = [request.id.as_deref(), request.route.as_deref(), request.model.as_deref()];
                holds(&filter, words.into_iter().flatten().chain([stage(request.stage), server.server.as_str()]))
            });
            open.extend(matching.map(|(at, request)| row_of_open(What::Open(server_at, at), request, server.now)));
        }
        let matching = self.over.iter().enumerate().filter(|(_, request)| matches(&filter, request));
        let mut over: Vec<Row> = matching.map(|(at, request)| row_of_over(What::Over(at), request)).collect();
        let key: fn(&Row) -> Option<f64> = match sort {
            Sort::Age | Sort::E2e => |row| Some(row.age),
            Sort::Ttft => |row| row.ttft,
            Sort::Tokens => |row| row.output_tokens.map(|count| count as f64),
            Sort::Queue => |row| row.queue,
        };
        open.sort_by(|a, b| descending(key(a), key(b)));
        // Else they stay in the order in which they were over.
        if sort != Sort::Age {
            over.sort_by(|a, b| descending(key(a), key(b)));
        }
        open.append(&mut over);
        open
    }
}

/// The most first; what is not known last.
fn descending(a: Option<f64>, b: Option<f64>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

fn holds<'a>(filter: &str, mut words: impl Iterator<Item = &'a str>) -> bool {
    filter.is_empty() || words.any(|word| word.to_lowercase().contains(filter))
}

fn matches(filter: &str, request: &Request) -> bool {
    if filter.is_empty() {
        return true;
    }
    let Some(record) = &request.record else {
        return request.trace.spans.first().is_some_and(|root| root.trace_id.to_string().starts_with(filter));
    };
    let trace = record.trace_id.to_string();
    let outcome = table::outcome(record);
    let words = [record.request_id.as_deref(), record.path.as_deref(), record.model.as_deref()];
    trace.starts_with(filter)
        || holds(filter, words.into_iter().flatten().chain([outcome.as_str(), record.server.as_str()]))
}

/// How far an open request has come, in a word.
pub fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::FrontEnd => "front end",
        Stage::Waiting => "waiting",
        Stage::Producing => "producing",
        Stage::Finishing => "finishing",
    }
}

fn row_of_open(what: What, request: &OpenRequest, now: u64) -> Row {
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
    let (sent, scheduled, first) = (request.sent, request.scheduled, request.first_token);
    let queue = sent.zip(scheduled).map(|(from, to)| seconds(from, to));
    let prefill = scheduled.map(|from| seconds(from, first.unwrap_or(now)));
    let decode = first.map(|from| seconds(from, now));
    let age = seconds(request.since, now);
    let known = [queue, prefill, decode].map(|time| time.unwrap_or(0.0));
    let behind = decode.filter(|_| request.output_tokens > 1);
    Row {
        what,
        age,
        ttft: first.map(|first| seconds(request.since, first)),
        queue,
        per_token: behind.map(|decode| decode / (request.output_tokens - 1) as f64),
        prompt_tokens: request.prompt_tokens,
        output_tokens: Some(request.output_tokens),
        phases: [(age - known.iter().sum::<f64>()).max(0.0), known[0], known[1], known[2]],
    }
}

/// Seconds of each of [`table::PHASES`] of a request that is open, at `now`.
pub fn phases_of(request: &OpenRequest, now: u64) -> [f64; 4] {
    row_of_open(What::Open(0, 0), request, now).phases
}

fn row_of_over(what: What, request: &Request) -> Row {
    let record: Option<&AccessRecord> = request.record.as_deref();
    let took = record.and_then(|record| record.seconds.e2e).unwrap_or(request.trace.merit.seconds);
    Row {
        what,
        age: took,
        ttft: record.and_then(|record| record.seconds.ttft),
        queue: record.and_then(|record| record.seconds.queue),
        per_token: record.and_then(AccessRecord::per_token),
        prompt_tokens: record.and_then(|record| record.prompt_tokens),
        output_tokens: record.and_then(|record| record.output_tokens),
        phases: record.map_or([took, 0.0, 0.0, 0.0], table::phases),
    }
}

/// How a request ended; `None` where its run did before.
pub fn outcome(request: &Request) -> Option<Outcome> {
    request.record.as_deref().map(|record| record.outcome).or(request.trace.merit.outcome)
}
