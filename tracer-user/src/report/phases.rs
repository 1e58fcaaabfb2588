//! Where the time of requests went.
//!
//! Enters: rows. Leaves: the share that each phase has of the time of all requests whose whole time is known, and of the slowest hundredth of
//! them. What no phase accounts for is `other`: between the phases, or of what was not seen.

use serde::Serialize;

use super::rows::{Row, TimeOf};
use super::words::count;

/// The phases, in the order in which they come.
pub const PHASES: [(&str, TimeOf); 6] = [
    ("parse", |times| times.parse),
    ("tokenize", |times| times.tokenize),
    ("queue", |times| times.queue),
    ("prefill", |times| times.prefill),
    ("decode", |times| times.decode),
    ("detokenize", |times| times.detokenize),
];
/// What no phase accounts for.
pub const OTHER: &str = "other";
/// One of so many is among the slowest.
const SLOWEST_OF: usize = 100;

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Phases {
    /// Requests whose whole time is known, and their time.
    pub requests: u64,
    pub seconds: f64,
    /// The slowest hundredth of them, at least one.
    pub slowest_requests: u64,
    pub slowest_seconds: f64,
    pub phases: Vec<Phase>,
}

impl Phases {
    /// How many are among the slowest, as a person reads it.
    pub fn slowest_said(&self) -> String {
        match self.slowest_requests {
            1 => "the slowest one".to_owned(),
            n => format!("the slowest {}", count(n)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub seconds: f64,
    /// 0 to 1 of the time of all.
    pub share: f64,
    /// 0 to 1 of the time of the slowest.
    pub slowest_share: f64,
}

pub fn phases(rows: &[Row]) -> Phases {
    let mut known: Vec<(f64, &Row)> = rows.iter().filter_map(|row| Some((row.times.e2e?, row))).collect();
    known.sort_by(|a, b| b.0.total_cmp(&a.0));
    let slowest = &known[..known.len().div_ceil(SLOWEST_OF)];
    let (all, most) = (sums(&known), sums(slowest));
    let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
    let names = PHASES.iter().map(|(name, _)| *name).chain([OTHER]);
    let phases = names.enumerate().map(|(at, name)| Phase {
        name,
        seconds: all.parts[at],
        share: share(all.parts[at], all.whole),
        slowest_share: share(most.parts[at], most.whole),
    });
    Phases {
        requests: known.len() as u64,
        seconds: all.whole,
        slowest_requests: slowest.len() as u64,
        slowest_seconds: most.whole,
        phases: phases.collect(),
    }
}

struct Sums {
    whole: f64,
    parts: [f64; PHASES.len() + 1],
}

fn sums(rows: &[(f64, &Row)]) -> Sums {
    let mut out = Sums { whole: 0.0, parts: [0.0; PHASES.len() + 1] };
    for (whole, row) in rows {
        let mut rest = *whole;
        for (at, (_, of)) in PHASES.iter().enumerate() {
            // What the engine did after the client had left is none of the request's time.
            let part = of(&row.times).unwrap_or(0.0).min(rest);
            out.parts[at] += part;
            rest -= part;
        }
        out.parts[PHASES.len()] += rest;
        out.whole += whole;
    }
    out
}
