//! What a file of requests and steps amounts to, and how two of them differ.
//!
//! Enters: requests and steps, as [`crate::recall`] reads them. Leaves: a [`Report`], as text, as a page, or as JSON; a [`compare::Diff`]. Invariant: the same
//! file gives the same report; what is held grows with the number of requests, by some 300 bytes each, up to [`rows::MAX_ROWS`], and not with
//! their tokens. What is not known of a request is left out of what is said, and counted. Pure.

use serde::Serialize;

use crate::recall::{About, Loss};
use crate::sanitise::sanitise;

pub mod compare;
pub mod compare_text;
pub mod digest;
pub mod histogram;
pub mod html;
pub mod phases;
pub mod rows;
pub mod samples;
pub mod shift;
pub mod slowest;
pub mod steps;
pub mod summary;
pub mod svg;
pub mod text;
pub mod words;

/// The form of the JSON.
pub const SCHEMA: &str = "inferspan.report/1";
/// Characters of a name that a target chose.
const NAME: usize = 60;

/// What a file amounts to. Times are seconds, points of time RFC 3339.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub file: FileSaid,
    pub requests: summary::Requests,
    pub latency: Vec<summary::Latency>,
    pub phases: phases::Phases,
    pub slowest: Vec<slowest::Slow>,
    pub steps: Option<steps::StepsSaid>,
    pub incomplete: Vec<summary::Counted>,
    pub losses: Vec<LossSaid>,
}

/// What the file is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileSaid {
    pub path: String,
    pub kind: &'static str,
    /// Version of who wrote it; null where it does not say.
    pub writer: Option<String>,
    pub servers: u64,
    pub from: Option<String>,
    pub to: Option<String>,
    pub seconds: Option<f64>,
    /// How well the engine's clock is known; null where it is exact.
    pub clock_uncertainty_seconds: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LossSaid {
    pub what: &'static str,
    pub count: u64,
    pub said: String,
}

impl FileSaid {
    pub fn of(path: &str, about: &About) -> Self {
        let at = |ns: u64| crate::output::UnixNanos(ns).to_string();
        Self {
            path: name(path),
            kind: about.kind.name(),
            writer: about.writer.as_deref().map(name),
            servers: about.servers,
            from: about.span_ns.map(|(from, _)| at(from)),
            to: about.span_ns.map(|(_, to)| at(to)),
            seconds: about.span_ns.map(|(from, to)| to.saturating_sub(from) as f64 / 1e9),
            clock_uncertainty_seconds: about.uncertainty_ns.map(|ns| ns as f64 / 1e9),
        }
    }
}

impl LossSaid {
    pub fn of(loss: &Loss) -> Self {
        Self { what: loss.what, count: loss.count, said: sanitise(&loss.said, 400).into_owned() }
    }
}

/// A name that somebody else chose, safe to show.
fn name(text: &str) -> String {
    sanitise(text, NAME).into_owned()
}
