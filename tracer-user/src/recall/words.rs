//! The words of spans, as this program knows them: what a file says in other words is none of ours.
//!
//! Enters: text. Leaves: the same text, of the tables of [`crate::model::keys`], which lives for ever.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::model::keys::{attribute, event, span};
use crate::output::{FinishReason, Incomplete, Missing, Outcome};

type Table = LazyLock<HashMap<&'static str, &'static str>>;

static SPANS: Table = LazyLock::new(|| table(&span::ALL));
static EVENTS: Table = LazyLock::new(|| table(&event::ALL));
static ATTRIBUTES: Table = LazyLock::new(|| table(&attribute::ALL));

fn table(words: &[&'static str]) -> HashMap<&'static str, &'static str> {
    words.iter().map(|&word| (word, word)).collect()
}

pub(super) fn span(name: &str) -> Option<&'static str> {
    SPANS.get(name).copied()
}

pub(super) fn event(name: &str) -> Option<&'static str> {
    EVENTS.get(name).copied()
}

pub(super) fn attribute(key: &str) -> Option<&'static str> {
    ATTRIBUTES.get(key).copied()
}

pub(super) fn outcome(word: &str) -> Option<Outcome> {
    use Outcome::{Abort, Error, Length, Rejected, Stop, Unknown};
    [Stop, Length, Abort, Error, Rejected, Unknown].into_iter().find(|outcome| outcome.name() == word)
}

pub(super) fn finish_reason(word: &str) -> Option<FinishReason> {
    use FinishReason::{Abort, Error, Length, Repetition, Stop};
    [Stop, Length, Abort, Error, Repetition].into_iter().find(|reason| reason.name() == word)
}

/// The words that are known of a list with commas.
pub(super) fn incomplete(words: &str) -> Incomplete {
    let known = |word: &str| Missing::ALL.into_iter().find(|missing| missing.name() == word);
    words.split(',').filter_map(known).collect()
}
