//! The requests of a run that are worth a drawing: slow for what they were, or not answered.
//!
//! Enters: requests as they are over. Leaves: at most [`DRAWN`] that differ, by why they were slow or how they ended. A long answer is not
//! slow: what is compared is the time to the first token and the time of each behind it, with the median of the model. Bounded: of each
//! model the slowest few, of each failure the longest.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::units::duration;
use crate::output::{AccessRecord, Outcome, Trace};
use crate::why::Kind;

/// Waterfalls at the end of a run.
pub const DRAWN: usize = 3;
/// Requests of a model that are kept by each of both times.
const KEPT: usize = 3;
/// Tokens that a time of each is worth something with.
const FEW_TOKENS: u64 = 4;
/// Added to both sides before they are compared, seconds: what takes some milliseconds more than others is not slow.
const SMALL: f64 = 0.02;
/// Slow is more than so many times the median.
const SLOW: f64 = 1.5;

/// A request that may be drawn.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub record: Arc<AccessRecord>,
    pub trace: Arc<Trace>,
}

/// What a candidate is slow by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    FirstToken,
    EachToken,
    /// It was not answered.
    Failed,
}

/// Keeps candidates while the run goes on.
#[derive(Debug, Default)]
pub struct Slow {
    /// Of each model, slowest first.
    first: BTreeMap<Arc<str>, Vec<(f64, Candidate)>>,
    each: BTreeMap<Arc<str>, Vec<(f64, Candidate)>>,
    failed: BTreeMap<Outcome, (f64, Candidate)>,
}

/// Medians of a model, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Medians {
    pub first: Option<f64>,
    pub each: Option<f64>,
}

/// What `why` says of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// Of the cause that cost most.
    pub kind: Option<Kind>,
    pub text: String,
}

/// A candidate by one of both times: how many times the median, what, how long, the median, of which model.
type Ranked<'a> = (f64, By, f64, Option<f64>, &'a str, &'a Candidate);

/// A request that is drawn.
#[derive(Debug)]
pub struct Drawn {
    pub title: String,
    pub candidate: Candidate,
    pub told: Told,
}

/// The time to its first token, or, where none came, at least so long.
pub fn first_token(record: &AccessRecord) -> Option<f64> {
    record.seconds.ttft.or(record.seconds.e2e)
}

/// The time of each token behind the first, where there are enough of them.
pub fn each_token(record: &AccessRecord) -> Option<f64> {
    record.output_tokens.filter(|tokens| *tokens >= FEW_TOKENS).and_then(|_| record.per_token())
}

impl Slow {
    /// `model`: the one of [`super::summary::Digest`] that it counts as.
    pub fn add(&mut self, model: &Arc<str>, record: &Arc<AccessRecord>, trace: &Arc<Trace>) {
        let candidate = || Candidate { record: Arc::clone(record), trace: Arc::clone(trace) };
        match record.outcome {
            // Answered at once, and that is all there is to say.
            Outcome::Rejected => return,
            Outcome::Stop | Outcome::Length => {}
            outcome => {
                let took = record.seconds.e2e.unwrap_or(0.0);
                if self.failed.get(&outcome).is_none_or(|(longest, _)| took > *longest) {
                    self.failed.insert(outcome, (took, candidate()));
                }
            }
        }
        for (of, time) in [(&mut self.first, first_token(record)), (&mut self.each, each_token(record))] {
            let Some(time) = time.filter(|time| time.is_finite()) else { continue };
            let slowest = of.entry(Arc::clone(model)).or_default();
            let at = slowest.partition_point(|(slower, _)| *slower >= time);
            if at < KEPT {
                slowest.insert(at, (time, candidate()));
                slowest.truncate(KEPT);
            }
        }
    }

    /// Those to draw: the slowest that differ, and one that was not answered. `explain` is asked for few.
    pub fn pick(&self, medians: impl Fn(&str) -> Medians, explain: impl Fn(&Trace) -> Told) -> Vec<Drawn> {
        let ratio = |time: f64, median: Option<f64>| median.map_or(1.0, |median| (time + SMALL) / (median + SMALL));
        let mut ranked: Vec<Ranked<'_>> = Vec::new();
        for (by, of) in [(By::FirstToken, &self.first), (By::EachToken, &self.each)] {
            for (model, slowest) in of {
                let medians = medians(model);
                let median = if by == By::FirstToken { medians.first } else { medians.each };
                let rows = slowest.iter().map(|(time, of)| (ratio(*time, median), by, *time, median, &**model, of));
                ranked.extend(rows);
            }
        }
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        let is_failed = |candidate: &Candidate| !matches!(candidate.record.outcome, Outcome::Stop | Outcome::Length);
        let room = DRAWN - usize::from(!self.failed.is_empty());
        let mut drawn: Vec<Drawn> = Vec::new();
        for (ratio, by, time, median, model, candidate) in ranked {
            let is_worth = ratio >= SLOW || drawn.is_empty();
            if drawn.len() == room || !is_worth {
                break;
            }
            let is_known = drawn.iter().any(|other| other.candidate.record.span_id == candidate.record.span_id);
            if is_known || is_failed(candidate) {
                continue;
            }
            let told = explain(&candidate.trace);
            if drawn.iter().all(|other| other.told.kind != told.kind) {
                let title = title(by, time, median, model, ratio);
                drawn.push(Drawn { title, candidate: candidate.clone(), told });
            }
        }
        let worst = self.failed.values().max_by(|a, b| a.0.total_cmp(&b.0));
        drawn.extend(worst.map(|(took, candidate)| Drawn {
            title: format!("{} after {}", super::table::outcome(&candidate.record), duration(*took)),
            candidate: candidate.clone(),
            told: explain(&candidate.trace),
        }));
        drawn
    }
}

fn title(by: By, time: f64, median: Option<f64>, model: &str, ratio: f64) -> String {
    let (what, time) = match by {
        By::EachToken => ("slowest per token", format!("{} a token", duration(time))),
        By::FirstToken | By::Failed => ("slowest to its first token", duration(time)),
    };
    let than = match median {
        Some(median) if ratio >= SLOW => format!(", {ratio:.1}x the median of {model} ({})", duration(median)),
        Some(median) => format!(", not far from the median of {model} ({})", duration(median)),
        None => String::new(),
    };
    format!("{what}: {time}{than}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::access_log::tests::record;
    use crate::output::{Merit, Service, SpanId};

    /// A request of a model with so many tokens and these times; the trace is told by its merit.
    fn request(nth: u8, outcome: Outcome, ttft: f64, each: f64, tokens: u64) -> (Arc<AccessRecord>, Arc<Trace>) {
        let mut record = AccessRecord { outcome, span_id: SpanId([nth; 8]), output_tokens: Some(tokens), ..record() };
        record.seconds.ttft = Some(ttft);
        record.seconds.e2e = Some(ttft + each * (tokens - 1) as f64);
        record.generations[0].output_tokens = tokens;
        let merit = Merit { seconds: f64::from(nth), ..Merit::default() };
        let trace = Trace { server: Arc::default(), service: Service::Requests, spans: vec![], merit };
        (Arc::new(record), Arc::new(trace))
    }

    fn medians(_: &str) -> Medians {
        Medians { first: Some(0.1), each: Some(0.01) }
    }

    /// Odd ones were queued, even ones had slow steps.
    fn explain(trace: &Trace) -> Told {
        let kind = if trace.merit.seconds as u64 % 2 == 1 { Kind::Queued } else { Kind::SlowSteps };
        Told { kind: Some(kind), text: String::new() }
    }

    fn picked(requests: &[(Arc<AccessRecord>, Arc<Trace>)]) -> Vec<(u8, String)> {
        let mut slow = Slow::default();
        for (record, trace) in requests {
            slow.add(&"m".into(), record, trace);
        }
        slow.pick(medians, explain).into_iter().map(|of| (of.candidate.record.span_id.0[0], of.title)).collect()
    }

    #[test]
    fn a_long_answer_is_not_slow() {
        // 1: 10,000 tokens at the usual pace · 3: a short answer that waited
        let long = request(1, Outcome::Length, 0.1, 0.01, 10_000);
        let waited = request(3, Outcome::Stop, 1.0, 0.01, 5);
        let shown = picked(&[long, waited]);
        assert_eq!(shown, [(3, "slowest to its first token: 1.00s, 8.5x the median of m (100ms)".to_owned())]);
    }

    #[test]
    fn those_that_are_drawn_differ_in_why_or_in_how_they_ended() {
        // 1, 3, 5 queued · 2 slow at each token · 7 aborted · 9 aborted later
        let shown = picked(&[
            request(1, Outcome::Stop, 3.0, 0.01, 5),
            request(3, Outcome::Stop, 2.0, 0.01, 5),
            request(5, Outcome::Stop, 1.0, 0.01, 5),
            request(2, Outcome::Stop, 0.1, 0.09, 50),
            request(7, Outcome::Abort, 0.1, 0.01, 5),
            request(9, Outcome::Abort, 0.2, 0.01, 5),
        ]);
        let numbers: Vec<u8> = shown.iter().map(|of| of.0).collect();
        assert_eq!(numbers, [1, 2, 9]);
        assert_eq!(shown[1].1, "slowest per token: 90.0ms a token, 3.7x the median of m (10.0ms)");
        assert_eq!(shown[2].1, "abort after 240ms");
    }

    #[test]
    fn where_nothing_stands_out_one_is_drawn_and_said_to_be_usual() {
        let shown = picked(&[request(1, Outcome::Stop, 0.11, 0.01, 5), request(2, Outcome::Stop, 0.1, 0.01, 5)]);
        assert_eq!(shown.len(), 1);
        assert!(shown[0].1.contains("not far from the median"), "{shown:?}");
        assert!(picked(&[request(1, Outcome::Rejected, 0.1, 0.1, 5)]).is_empty());
    }

    #[test]
    fn however_many_there_are_few_are_kept() {
        let mut slow = Slow::default();
        for nth in 0..10_000 {
            let (record, trace) = request(1, Outcome::Stop, f64::from(nth), 0.01, 5);
            slow.add(&"m".into(), &record, &trace);
        }
        let kept: Vec<f64> = slow.first["m"].iter().map(|of| of.0).collect();
        assert_eq!(kept, [9999.0, 9998.0, 9997.0]);
    }
}
