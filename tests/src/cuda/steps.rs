//! The engine steps of a traced run, held against what the workers say that they did in each.
//!
//! Enters: the trace file of a run, the account of the server's workers. Leaves: both, step by step; and, for a message of a failure,
//! both as text, since what differs once in a thousand runs must be understood from its message alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use inferspan::source::ring::monotonic_ns;
use serde_json::Value;

use super::vllm::{Account, WorkerStep};
use crate::judge::Page;

/// Steps before and after one that differs, in a message.
const AROUND: usize = 3;

/// A span of a trace file.
#[derive(Debug, Clone)]
pub struct Span {
    pub id: String,
    pub name: String,
    pub trace: String,
    /// Unix ns.
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, Value>,
    /// Spans that it links to.
    pub links: Vec<String>,
}

impl Span {
    /// A number; 0 where there is none.
    pub fn count(&self, key: &str) -> u64 {
        let value = self.attributes.get(key).map_or(&Value::Null, |value| &value["intValue"]);
        value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
    }

    pub fn seconds(&self, key: &str) -> Option<f64> {
        self.attributes.get(key)?["doubleValue"].as_f64()
    }

    pub fn has(&self, key: &str) -> bool {
        self.attributes.contains_key(key)
    }

    pub fn is_set(&self, key: &str) -> bool {
        self.attributes.get(key).is_some_and(|value| value["boolValue"] == true)
    }

    pub fn text(&self, key: &str) -> &str {
        self.attributes.get(key).and_then(|value| value["stringValue"].as_str()).unwrap_or_default()
    }
}

/// Every span of a file of export requests, one request a line.
///
/// # Panics
/// When it is no such file.
pub fn spans(path: &Path) -> Vec<Span> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let number = |value: &Value| text(value).parse().unwrap_or(0);
    let mut spans = Vec::new();
    for line in fs::read_to_string(path).expect("traces").lines() {
        let request: Value = serde_json::from_str(line).expect("JSON");
        for scope in list(&request["resourceSpans"]).iter().flat_map(|resource| list(&resource["scopeSpans"])) {
            spans.extend(list(&scope["spans"]).iter().map(|span| Span {
                id: text(&span["spanId"]),
                name: text(&span["name"]),
                trace: text(&span["traceId"]),
                start: number(&span["startTimeUnixNano"]),
                end: number(&span["endTimeUnixNano"]),
                attributes:
                    list(&span["attributes"]).iter().map(|pair| (text(&pair["key"]), pair["value"].clone())).collect(),
                links: list(&span["links"]).iter().map(|link| text(&link["spanId"])).collect(),
            }));
        }
    }
    spans
}

/// What was called in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub launches: u64,
    pub graph_launches: u64,
    pub h2d: (u64, u64),
    pub d2h: (u64, u64),
    pub waits: u64,
}

impl Counts {
    fn of_worker(step: &WorkerStep) -> Self {
        let amount = |kind: &str| step.copies.get(kind).map_or((0, 0), |of| (of.count, of.bytes));
        Self {
            launches: step.launches.values().sum(),
            graph_launches: step.graph_launches,
            h2d: amount("h2d"),
            d2h: amount("d2h"),
            waits: step.syncs.values().sum(),
        }
    }

    fn of_span(span: &Span) -> Self {
        let count = |key: &str| span.count(&format!("inferspan.cuda.{key}"));
        let amount = |kind: &str| (count(&format!("copies.{kind}")), count(&format!("copy_bytes.{kind}")));
        Self {
            launches: count("launches"),
            graph_launches: count("graph_launches"),
            h2d: amount("h2d"),
            d2h: amount("d2h"),
            waits: count("sync_waits"),
        }
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let both = |one: (u64, u64), other: (u64, u64)| (one.0 + other.0, one.1 + other.1);
        Self {
            launches: self.launches + other.launches,
            graph_launches: self.graph_launches + other.graph_launches,
            h2d: both(self.h2d, other.h2d),
            d2h: both(self.d2h, other.d2h),
            waits: self.waits + other.waits,
        }
    }
}

/// A step as its workers say, one of each rank.
#[derive(Debug, Clone)]
pub struct Truth {
    pub ranks: Vec<WorkerStep>,
}

impl Truth {
    /// All ranks together.
    pub fn counts(&self) -> Counts {
        self.ranks.iter().map(Counts::of_worker).fold(Counts::default(), Counts::plus)
    }

    /// The mode that its span must say.
    pub fn mode(&self) -> &'static str {
        match self.ranks[0].kind.as_str() {
            "full" => "graph",
            "piecewise" => "piecewise",
            _ => "eager",
        }
    }

    /// By how much the last rank was behind the first at a collective, the most of all, ns; `None` without any.
    pub fn collective_skew_ns(&self) -> Option<u64> {
        let (first, others) = self.ranks.split_first()?;
        let apart = first.collectives.iter().enumerate().map(|(at, (.., entered))| {
            let entered = others.iter().map(|step| step.collectives[at].2).chain([*entered]);
            let (first, last) = entered.fold((u64::MAX, 0), |(first, last), at| (first.min(at), last.max(at)));
            last - first
        });
        apart.max()
    }

    /// The rank of two that came last to all collectives, where it was behind by so much, ns, at each.
    pub fn straggler(&self, by: u64) -> Option<u32> {
        let [one, other] = &self.ranks[..] else { return None };
        let behind = |late: &WorkerStep, early: &WorkerStep| {
            let mut pairs = late.collectives.iter().zip(&early.collectives);
            !late.collectives.is_empty() && pairs.all(|(late, early)| late.2 > early.2 + by)
        };
        [(one, other), (other, one)].into_iter().find(|(late, early)| behind(late, early)).map(|(late, _)| late.rank)
    }

    /// Between the first calls of its ranks, ns.
    pub fn skew_ns(&self) -> u64 {
        let firsts = || self.ranks.iter().map(|step| step.first_call_ns);
        firsts().max().unwrap_or(0) - firsts().min().unwrap_or(0)
    }
}

/// A traced run.
#[derive(Debug)]
pub struct Run {
    pub spans: Vec<Span>,
    /// The spans of engine steps, and the steps of the workers, each in their order.
    pub seen: Vec<Span>,
    pub truth: Vec<Truth>,
    /// Its metrics.
    pub page: Page,
    /// What inferspan said on stderr; its losses are in the last line.
    pub said: String,
    /// From monotonic to unix, ns.
    offset: u64,
}

impl Run {
    /// Of the steps that began after `from`, ns of `CLOCK_MONOTONIC`.
    pub fn new(traces: &Path, account: &Account, from: u64, page: Page, said: String) -> Self {
        let spans = spans(traces);
        let mut seen: Vec<Span> = spans.iter().filter(|span| span.name == "engine_step").cloned().collect();
        seen.sort_by_key(|step| step.end);
        // Every rank has every step, under the same number.
        let mut by_number: BTreeMap<u64, Vec<WorkerStep>> = BTreeMap::new();
        for step in account.steps.iter().filter(|step| step.start_ns > from) {
            by_number.entry(step.number).or_default().push(step.clone());
        }
        let truth = by_number.into_values().map(|mut ranks| {
            ranks.sort_by_key(|step| step.rank);
            Truth { ranks }
        });
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_nanos() as u64;
        Self { spans, seen, truth: truth.collect(), page, said, offset: unix - monotonic_ns() }
    }

    /// Each step with its span.
    pub fn steps(&self) -> impl Iterator<Item = (&Span, &Truth)> {
        self.seen.iter().zip(&self.truth)
    }

    /// Holds the counts of every step against the workers'. Those that say of themselves that they are estimated may differ from it,
    /// but all together may not; how many they are.
    ///
    /// # Panics
    /// When any differs, with both accounts.
    pub fn assert_counts(&self, what: &str) -> usize {
        let is_estimated = |span: &Span| span.is_set("inferspan.cuda.estimated");
        let differing: Vec<usize> = self
            .steps()
            .enumerate()
            .filter(|(_, (span, truth))| !is_estimated(span) && Counts::of_span(span) != truth.counts())
            .map(|(at, _)| at)
            .collect();
        assert!(
            differing.is_empty() && self.seen.len() == self.truth.len(),
            "{what}: {} steps seen, {} made, {} differ\n{}",
            self.seen.len(),
            self.truth.len(),
            differing.len(),
            self.evidence(&differing)
        );
        let seen = self.seen.iter().map(Counts::of_span).fold(Counts::default(), Counts::plus);
        let made = self.truth.iter().map(Truth::counts).fold(Counts::default(), Counts::plus);
        assert_eq!(seen, made, "{what}: all steps together\n{}", self.evidence(&[]));
        self.seen.iter().filter(|span| is_estimated(span)).count()
    }

    /// Both accounts of these steps and those around them (all when none is named), and what inferspan said.
    pub fn evidence(&self, of: &[usize]) -> String {
        let begin = self.truth.iter().flat_map(|truth| &truth.ranks).map(|step| step.start_ns).min().unwrap_or(0);
        let from_monotonic = |at: u64| (at as f64 - begin as f64) / 1e6;
        let from_unix = |at: u64| (at as f64 - (begin + self.offset) as f64) / 1e6;
        let mut text = String::from("times in ms since the first step\n");
        for at in 0..self.seen.len().max(self.truth.len()) {
            if !of.is_empty() && !of.iter().any(|other| other.abs_diff(at) <= AROUND) {
                continue;
            }
            let _ = writeln!(text, "{} step {at}", if of.contains(&at) { "≠" } else { " " });
            if let Some(span) = self.seen.get(at) {
                let (start, end, counts) = (from_unix(span.start), from_unix(span.end), Counts::of_span(span));
                let _ = writeln!(text, "    seen  {start:.3}..{end:.3} {counts:?} {}", marks(span));
            }
            for step in self.truth.get(at).into_iter().flat_map(|truth| &truth.ranks) {
                let times = [step.start_ns, step.first_call_ns, step.end_ns].map(from_monotonic);
                let [start, first, end] = times;
                let counts = Counts::of_worker(step);
                let (rank, kind, requests) = (step.rank, &step.kind, step.requests.len());
                let _ = writeln!(
                    text,
                    "    rank {rank} {start:.3}..{end:.3} first call {first:.3} {counts:?} {kind}, {requests} requests"
                );
            }
        }
        let _ = write!(text, "inferspan said:\n{}", self.said);
        text
    }
}

/// What a step's span says besides.
fn marks(span: &Span) -> String {
    let (mode, requests) = (span.text("inferspan.cuda.mode"), span.count("inferspan.batch.requests"));
    let estimated = if span.is_set("inferspan.cuda.estimated") { ", estimated" } else { "" };
    let skew = span.seconds("inferspan.cuda.skew_seconds").map_or(String::new(), |skew| format!(", skew {skew:.6} s"));
    format!("{mode}, {requests} requests{estimated}{skew}")
}
