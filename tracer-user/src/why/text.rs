//! A verdict in a paragraph, as people read it.

use std::fmt::Write as _;

use super::words::{percent, seconds, time};
use super::{Cause, Kind, Verdict};
use crate::output::{Outcome, Trace};

/// Characters of a trace id that tell it from others.
const SHORT_ID: usize = 8;

/// `why 5781aeaa…: 815 ms, of which ~59 ms (7 %): prompts of other requests …`; without a line end. What is inferred has `~` before it.
pub fn paragraph(trace: &Trace, verdict: &Verdict) -> String {
    let Some(root) = trace.spans.first() else { return String::new() };
    let id: String = root.trace_id.to_string().chars().take(SHORT_ID).collect();
    let whole = time(root.end_ns.saturating_sub(root.start_ns));
    let mut out = format!("why {id}…: {whole}{}{}", ending(trace.merit.outcome), causes(&verdict.causes));
    if !verdict.unseen.is_empty() {
        let _ = write!(out, " Not seen: {}.", verdict.unseen.join("; "));
    }
    out
}

fn ending(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Stop | Outcome::Length) | None => "",
        Some(Outcome::Abort) => ", then the client left",
        Some(Outcome::Error) => ", then it failed",
        Some(Outcome::Rejected) => ", then it was rejected",
        Some(Outcome::Unknown) => ", how it ended is not known",
    }
}

fn causes(causes: &[Cause]) -> String {
    match causes {
        [] => "; nothing stands out.".to_owned(),
        [cause] if cause.kind == Kind::ManyTokens => {
            format!("; nothing went wrong: {}{} went into {}.", mark(cause), seconds(cause.seconds), cause.evidence)
        }
        causes => {
            let of_each: Vec<String> = causes.iter().map(of_one).collect();
            format!(", of which {}.", of_each.join("; "))
        }
    }
}

fn of_one(cause: &Cause) -> String {
    format!("{}{} ({}): {}", mark(cause), seconds(cause.seconds), percent(cause.share), cause.evidence)
}

fn mark(cause: &Cause) -> &'static str {
    if cause.inferred { "~" } else { "" }
}

/// A word or two for a column: the first cause; empty where there is none.
pub fn headline(verdict: &Verdict) -> String {
    verdict.causes.first().map(|cause| format!("{}{}", mark(cause), words(cause.kind))).unwrap_or_default()
}

/// What a cause is called.
pub fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Queued => "queued",
        Kind::Grammar => "grammar",
        Kind::Preempted => "preempted",
        Kind::LongPrefill => "long prefill",
        Kind::PrefillOfOthers => "prefill of others",
        Kind::SlowTokenizer => "slow tokenizer",
        Kind::Pipelined => "pipelined",
        Kind::SlowRequest => "slow request",
        Kind::SlowClient => "slow client",
        Kind::FrontEndLate => "front end late",
        Kind::SlowSteps => "slow steps",
        Kind::EngineError => "engine error",
        Kind::LaunchBound => "launch-bound",
        Kind::SyncBound => "sync-bound",
        Kind::EagerFallback => "eager fallback",
        Kind::Straggler => "straggler",
        Kind::ManyTokens => "many tokens",
    }
}
