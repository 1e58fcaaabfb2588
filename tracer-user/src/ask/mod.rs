//! What is asked of a run, or of a file of one: a request by its id, why it took so long, which were slow.
//!
//! Enters: a [`Question`]. Leaves: an [`Answer`], of a store. A run that goes on is asked over a unix socket ([`socket`]): a line of JSON,
//! answered by a document. Invariant: a question changes nothing, an answer is made off the core's thread, and the store is locked no longer
//! than it takes to copy what the answer is made of.

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod answer;
pub mod client;
mod documents;
mod hints;
pub mod serve;
pub mod socket;

pub use answer::{Source, answer};

/// Version of what goes over the socket.
pub const VERSION: u32 = 1;

/// A question, as it goes over the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub v: u32,
    #[serde(flatten)]
    pub ask: Ask,
    /// How the answer's text is to be drawn.
    pub paper: Paper,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Which requests an id means: a trace id or its beginning, the id that the client sees, an engine's.
    Find { id: String },
    /// Its spans.
    Trace { id: String },
    /// Why it took as long as it did.
    Why { id: String },
    /// The same of those that were the slowest for what they were.
    Slow { most: usize },
}

impl Ask {
    /// What it asks for by name.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Find { id } | Self::Trace { id } | Self::Why { id } => Some(id),
            Self::Slow { .. } => None,
        }
    }
}

/// The reader's terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paper {
    pub color: bool,
    pub unicode: bool,
    /// Columns.
    pub width: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub v: u32,
    /// Those that were asked for by name: newest first; the slowest: in that order.
    pub found: Vec<Found>,
    /// Where nothing was: what may have been meant, each a line.
    pub hints: Vec<String>,
    /// Requests that are kept.
    pub kept: usize,
    /// Why there is no answer.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    pub trace_id: String,
    pub span_id: String,
    /// As the client sees it.
    pub request_id: Option<String>,
    /// The question named all of one of its ids.
    pub is_exact: bool,
    /// How many times as long as usual it took, of a slow one.
    pub score: Option<f64>,
    /// For people; of several that the beginning of an id may mean it is left out, as the document is.
    pub text: String,
    /// For programs.
    pub document: Value,
}

impl Answer {
    /// There is none.
    pub fn refused(why: impl Into<String>) -> Self {
        Self { v: VERSION, found: Vec::new(), hints: Vec::new(), kept: 0, error: Some(why.into()) }
    }

    /// Of several runs, one. The slowest of all come first; of what was asked by name all is kept.
    pub fn merge(answers: Vec<Self>, ask: &Ask) -> Self {
        let mut all = Self { v: VERSION, found: Vec::new(), hints: Vec::new(), kept: 0, error: None };
        for answer in answers {
            all.found.extend(answer.found);
            all.hints.extend(answer.hints);
            all.kept += answer.kept;
        }
        if let Ask::Slow { most } = ask {
            let score = |found: &Found| found.score.unwrap_or(0.0);
            all.found.sort_by(|a, b| score(b).total_cmp(&score(a)));
            all.found.truncate(*most);
        }
        all
    }
}

#[cfg(test)]
mod tests;
