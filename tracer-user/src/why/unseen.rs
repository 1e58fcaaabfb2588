//! What could not be seen, and so could not be blamed.

use super::case::{Case, text};
use super::judge::Judge;
use super::limits;
use crate::model::keys::attribute;
use crate::output::{Missing, Outcome};

/// Sentences without a full stop.
pub(super) fn of(case: &Case<'_>, judge: &Judge<'_>) -> Vec<String> {
    let words = text(case.root, attribute::INCOMPLETE).unwrap_or_default();
    let mut out: Vec<String> = Missing::ALL
        .into_iter()
        .filter(|missing| words.split(',').any(|word| word == missing.name()))
        .map(|missing| sentence(missing).to_owned())
        .collect();
    if case.outcome == Some(Outcome::Unknown) {
        out.push("how it ended".to_owned());
    }
    if case.generations > 1 {
        out.push(format!("the other {} of its engine requests: the longest was judged", case.generations - 1));
    }
    let Some((from, to)) = case.in_engine().filter(|_| case.engine.is_some()) else { return out };
    let steps = judge.steps_within(from, to);
    if steps.is_empty() {
        out.push("the engine's steps meanwhile: they are not kept".to_owned());
        return out;
    }
    if judge.withheld() >= judge.floor(limits::LEAST_ON_A_BUSY_HOST, limits::LEAST_SHARE_OF_STEPS) {
        out.push("whose prompt was computed in its slow steps, if one was: it has not ended".to_owned());
    }
    if steps.iter().all(|step| step.stats.is_none()) {
        out.push("how full the engine was: its scheduler keeps no statistics".to_owned());
    }
    if steps.iter().all(|step| step.cuda.is_none()) {
        out.push("what its steps did with CUDA".to_owned());
    }
    out
}

/// As docs/signals.md has it.
fn sentence(missing: Missing) -> &'static str {
    match missing {
        Missing::HttpSideUnseen => "its HTTP side",
        Missing::AttachedLate => "its beginning: it began before the attach, or its start was lost",
        Missing::EngineSideUnseen => "its engine side",
        Missing::CancelledBeforeFirstOutput => "what the engine did with it: it was cancelled before its first token",
        Missing::EngineEventsUnseen => "when it was queued and scheduled: the engine said no times of it",
        Missing::TokenizingUnseen => "when its prompt was tokenized",
        Missing::RecordsLost => "records that are, or may be, of this request: they were lost or cut",
        Missing::ResponseEndUnseen => "the end of its response",
        Missing::UsageDiffers => "some of its tokens: the response's own usage contradicts what was counted",
        Missing::Unfinished => "its end: the trace ended before it did",
    }
}
