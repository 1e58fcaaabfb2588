//! Which requests were slow for what they were.
//!
//! Enters: requests that are over. Leaves: the slowest, by the time that they took over the median: to the first token, or for as many tokens
//! as came behind it. A long answer is not slow, whatever little it is over the median for each token ([`NOTABLE`]); and one that was never
//! given had waited at least so long. Requests are compared with those of the same server and model.

use std::collections::BTreeMap;

use crate::model::keys::{attribute, event};
use crate::output::Outcome;
use crate::store::Request;

use super::case::{int, text, took};
use super::judge::middle;

/// Added to both sides before they are compared, ns: what takes some milliseconds more than others is not slow.
const SMALL: u64 = 20_000_000;
/// What took fewer times as long as the median comes behind all that took more.
const NOTABLE: f64 = 1.5;

/// How slow a request was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slowness {
    /// By which they are ranked: seconds over the median, where that is notable.
    pub score: f64,
    /// Times the median, as [`SMALL`] allows; `None` where that is not known.
    pub first_token: Option<f64>,
    pub per_token: Option<f64>,
}

impl Slowness {
    /// `It took 12.4 times as long as usual to its first token.`
    pub fn words(&self) -> String {
        let to_first = self.first_token.is_some_and(|first| first >= self.per_token.unwrap_or(0.0));
        let what = if to_first { "to its first token" } else { "from its first token on, for its tokens" };
        let times = self.first_token.unwrap_or(0.0).max(self.per_token.unwrap_or(0.0));
        format!("It took {times:.1} times as long as the median {what}.")
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// To the first token, ns; or, where none came, all of it.
    first: u64,
    /// From there to the last byte, ns, and the tokens that came in it.
    rest: Option<(u64, u64)>,
}

/// The indices of the `most` slowest of `requests`, the slowest first.
pub fn slowest(requests: &[Request], most: usize) -> Vec<(usize, Slowness)> {
    let mut groups: BTreeMap<(String, Option<String>), Vec<(usize, Times)>> = BTreeMap::new();
    for (index, request) in requests.iter().enumerate() {
        let Some(times) = Times::of(request) else { continue };
        let model = request.trace.spans.first().and_then(|root| text(root, attribute::REQUEST_MODEL));
        let key = (request.trace.server.instance(), model.map(str::to_owned));
        groups.entry(key).or_default().push((index, times));
    }
    let mut all: Vec<(usize, Slowness)> = groups.values().flat_map(|group| compare(group)).collect();
    all.sort_by(|a, b| b.1.score.total_cmp(&a.1.score).then(b.0.cmp(&a.0)));
    all.truncate(most);
    all
}

impl Times {
    fn of(request: &Request) -> Option<Self> {
        let root = request.trace.spans.first()?;
        // It was answered at once, and that is all there is to say.
        if request.trace.merit.outcome == Some(Outcome::Rejected) {
            return None;
        }
        let first = root.events.iter().find(|of| of.name == event::FIRST_TOKEN).map(|of| of.at_ns);
        let Some(at) = first.filter(|at| (root.start_ns..=root.end_ns).contains(at)) else {
            return Some(Self { first: took(root), rest: None });
        };
        let tokens = int(root, attribute::OUTPUT_TOKENS).filter(|tokens| *tokens > 0);
        Some(Self { first: at - root.start_ns, rest: tokens.map(|tokens| (root.end_ns - at, tokens)) })
    }
}

fn compare(group: &[(usize, Times)]) -> impl Iterator<Item = (usize, Slowness)> {
    let usual = |of: fn(&Times) -> Option<u64>| middle(group.iter().filter_map(|(_, times)| of(times)).collect());
    let first = usual(|times| Some(times.first));
    let each = usual(|times| times.rest.map(|(took, tokens)| took / tokens));
    let times_as_long = |took: u64, usual: u64| took.saturating_add(SMALL) as f64 / usual.saturating_add(SMALL) as f64;
    group.iter().map(move |(index, times)| {
        let first_token = first.map(|usual| times_as_long(times.first, usual));
        let per_token = each.zip(times.rest);
        let per_token = per_token.map(|(usual, (took, tokens))| times_as_long(took, usual.saturating_mul(tokens)));
        let over = |took: u64, usual: u64| took.saturating_sub(usual) as f64 / 1e9;
        let weigh = |times: Option<f64>, over: f64| match times {
            Some(times) if times >= NOTABLE => over,
            // Below any that is notable, which are over by some of [`SMALL`] at least.
            Some(times) => times / 1e6,
            None => 0.0,
        };
        let first_over = weigh(first_token, over(times.first, first.unwrap_or(0)));
        let rest = each.zip(times.rest).map(|(usual, (took, tokens))| over(took, usual.saturating_mul(tokens)));
        let score = first_over.max(weigh(per_token, rest.unwrap_or(0.0)));
        (*index, Slowness { score, first_token, per_token })
    })
}
