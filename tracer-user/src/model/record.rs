//! What a finished request amounts to: outcome, counts, seconds, and what is missing; and its access-log line.

use std::sync::Arc;

use super::exchange::{Ending, Exchange, Usage};
use super::generation::Generation;
use crate::clock::Clock;
use crate::input::{EventNanos, Server};
use crate::output::{
    AccessRecord, FinishReason, GenerationRecord, GenerationSeconds, Incomplete, Missing, Outcome, SpanId, TraceId,
    UnixNanos,
};

/// A finished request: its HTTP side, if seen, and its engine requests in order.
#[derive(Debug)]
pub struct Finished<'a> {
    pub exchange: Option<&'a Exchange>,
    pub generations: Vec<&'a Generation>,
    /// The tokenizer of its process is probed, so no encode call means none.
    pub tokenizer_probed: bool,
    /// The stream ended before the request did.
    pub cut_off: bool,
    /// The engine shows its HTTP side alone: what that says stands for the rest, and is inferred.
    pub http_only: bool,
}

/// How a generation ended, with its HTTP side known.
pub fn resolve(generation: &Generation, exchange: Option<&Exchange>) -> Option<FinishReason> {
    if let Some(reason) = generation.finish() {
        return Some(reason);
    }
    generation.aborted()?;
    let complete = exchange.is_some_and(|e| {
        matches!(e.ending, Some((_, Ending::Complete))) && e.status.is_some_and(|s| s < 400) && !e.error
    });
    // The front end cancels a generation whose stop string it found, and then ends the response as usual.
    Some(if complete { FinishReason::Stop } else { FinishReason::Abort })
}

/// The end of the response was not seen.
fn outcome_of_unseen(exchange: &Exchange) -> Outcome {
    match exchange.status {
        Some(500..) => Outcome::Error,
        Some(400..) => Outcome::Rejected,
        _ if exchange.ending.is_none() && exchange.disconnected.is_some() => Outcome::Abort,
        _ => Outcome::Unknown,
    }
}

impl Finished<'_> {
    /// `None` while it is not over. Of what was cut off, unknown, but where its client was seen leaving or its status says it.
    pub fn outcome(&self) -> Option<Outcome> {
        let reasons: Vec<_> = self.generations.iter().filter_map(|g| resolve(g, self.exchange)).collect();
        let has = |reason| reasons.contains(&reason);
        if let Some(exchange) = self.exchange {
            let Some((_, ending)) = exchange.ending else {
                return self.cut_off.then(|| outcome_of_unseen(exchange));
            };
            match ending {
                Ending::Complete => match exchange.status {
                    Some(500..) => return Some(Outcome::Error),
                    Some(400..) => return Some(Outcome::Rejected),
                    _ if exchange.error => return Some(Outcome::Error),
                    _ => {}
                },
                // The client left; whether the engine had finished by then changes nothing for it.
                Ending::Disconnected | Ending::Cancelled => return Some(Outcome::Abort),
                Ending::ServerClosed | Ending::ServerExited => return Some(Outcome::Error),
                Ending::Unseen => return Some(outcome_of_unseen(exchange)),
            }
            // Each engine request of a beam search ends after its one token; only the response says how the whole ended.
            if self.generations.iter().any(|g| g.beams.is_some())
                && !has(FinishReason::Error)
                && !has(FinishReason::Abort)
            {
                return Some(if exchange.by_length { Outcome::Length } else { Outcome::Stop });
            }
            if reasons.is_empty() {
                return Some(if exchange.by_length { Outcome::Length } else { Outcome::Stop });
            }
        } else if reasons.len() < self.generations.len() {
            return self.cut_off.then_some(Outcome::Unknown);
        }
        Some(if has(FinishReason::Error) {
            Outcome::Error
        } else if has(FinishReason::Abort) {
            Outcome::Abort
        } else if has(FinishReason::Length) {
            Outcome::Length
        } else {
            Outcome::Stop
        })
    }

    /// What kind of failure it was: a status, or a low-cardinality word.
    pub fn error_type(&self) -> Arc<str> {
        let status = self.exchange.and_then(|e| e.status).filter(|&s| s >= 400);
        if let Some(status) = status {
            return Arc::from(status.to_string());
        }
        let left = self.exchange.is_some_and(|e| e.disconnected.is_some());
        Arc::from(match self.exchange.and_then(|e| e.ending) {
            Some((_, Ending::ServerClosed)) => "server_closed",
            Some((_, Ending::ServerExited)) => "server_exited",
            Some((_, Ending::Disconnected | Ending::Cancelled)) => "client_disconnected",
            None if left => "client_disconnected",
            Some((_, Ending::Unseen)) | None => "unknown",
            Some((_, Ending::Complete)) => "engine_error",
        })
    }

    /// The generation that took longest in the engine.
    pub fn longest(&self) -> Option<&Generation> {
        let span = |g: &Generation| {
            let from = g.queued.or(g.scheduled).or(g.first.map(|t| t.at));
            g.last.zip(from).map_or(0, |(last, from)| last.at.saturating_sub(from))
        };
        // Among equals the first one.
        self.generations.iter().rev().max_by_key(|g| span(g)).copied()
    }

    /// When the engine gave the last token of all its engine requests, as far as that is known.
    pub fn last_token(&self) -> Option<EventNanos> {
        let last = |g: &&Generation| {
            let own = g.last.or(g.first).map(|tokens| tokens.at);
            own.max(g.beams.as_ref().and_then(|beams| beams.from.map(|_| beams.to)))
        };
        self.generations.iter().filter_map(last).max()
    }

    fn sum(&self, count: impl Fn(&Generation) -> Option<u64>) -> Option<u64> {
        let counts: Vec<u64> = self.generations.iter().filter_map(|g| count(g)).collect();
        (!counts.is_empty()).then(|| counts.into_iter().fold(0, u64::saturating_add))
    }

    /// Sum over the prompts: the samples of one prompt share it, as in the API's `usage`.
    fn sum_prompts(&self, count: impl Fn(&Generation) -> Option<u64>) -> Option<u64> {
        let mut seen = std::collections::BTreeSet::new();
        let mut sum = None;
        for generation in &self.generations {
            if let Some(n) = count(generation)
                && seen.insert(generation.identity.external.as_str())
            {
                sum = Some(sum.unwrap_or(0_u64).saturating_add(n));
            }
        }
        sum
    }

    /// What the response says of its tokens, where nothing else does.
    pub(super) fn usage(&self) -> Usage {
        self.exchange.filter(|_| self.http_only).map(|exchange| exchange.usage).unwrap_or_default()
    }

    pub fn prompt_tokens(&self) -> Option<u64> {
        self.sum_prompts(|g| g.prompt_tokens).or(self.usage().prompt_tokens)
    }

    pub fn cached_tokens(&self) -> Option<u64> {
        self.sum_prompts(|g| g.cached_tokens).or(self.usage().cached_tokens)
    }

    pub fn output_tokens(&self) -> Option<u64> {
        let of_beams = |g: &Generation| g.beams.as_ref().map_or(0, |beams| beams.output_tokens);
        let counted = self.sum(|g| Some(g.output_tokens.saturating_add(of_beams(g))));
        counted.or(self.usage().completion_tokens)
    }

    pub fn preemptions(&self) -> Option<u64> {
        let of_beams = |g: &Generation| g.beams.as_ref().map_or(0, |beams| beams.preemptions);
        self.sum(|g| Some(g.preemptions.saturating_add(of_beams(g))))
    }

    /// Whether the response's own count of tokens contradicts ours. Only where both are the same thing: one response whose
    /// engine requests were all seen to their end, of an endpoint that counts as the engine does, and no beam search, which
    /// counts its best beams only.
    pub fn usage_differs(&self) -> bool {
        let Some(exchange) = self.exchange.filter(|e| matches!(e.ending, Some((_, Ending::Complete)))) else {
            return false;
        };
        let counts_alike = exchange.operation.id_prefix.is_some_and(|prefix| matches!(prefix, "cmpl-" | "chatcmpl-"));
        let seen = !self.generations.is_empty()
            && self.generations.iter().all(|g| g.finish().is_some() && g.added.is_some() && g.beams.is_none());
        if !counts_alike || !seen || exchange.error {
            return false;
        }
        let differs = |said: Option<u64>, counted: Option<u64>| said.is_some_and(|n| counted.is_some_and(|m| n != m));
        differs(exchange.usage.completion_tokens, self.output_tokens())
            || differs(exchange.usage.prompt_tokens, self.prompt_tokens())
    }

    /// Why the tree is not whole.
    pub fn incomplete(&self) -> Incomplete {
        let outcome = self.outcome();
        let rejected = outcome == Some(Outcome::Rejected);
        let left_early = self.generations.is_empty() && outcome == Some(Outcome::Abort);
        let has_engine_side = !self.generations.is_empty() || self.http_only;
        let engine_side_due = !rejected && !left_early && outcome != Some(Outcome::Error);
        let tokenizes = self.exchange.is_some_and(|e| !e.fields.prompt_is_tokens) && !self.generations.is_empty();
        let any = |is: fn(&Generation) -> bool| self.generations.iter().any(|g| is(g));
        let events_unseen = |g: &Generation| g.first.is_some() && (g.queued.is_none() || g.scheduled.is_none());
        let end_unseen = |e: &Exchange| matches!(e.ending, Some((_, Ending::Unseen)));
        let found = [
            (Missing::HttpSideUnseen, self.exchange.is_none()),
            (Missing::AttachedLate, any(|g| g.added.is_none())),
            (Missing::EngineSideUnseen, !has_engine_side && engine_side_due),
            (Missing::CancelledBeforeFirstOutput, any(|g| g.first.is_none() && g.settled())),
            (Missing::EngineEventsUnseen, any(events_unseen)),
            (Missing::TokenizingUnseen, tokenizes && self.tokenizing().is_none()),
            (Missing::RecordsLost, self.exchange.is_some_and(|e| e.lost) || any(|g| g.lost)),
            (Missing::ResponseEndUnseen, self.exchange.is_some_and(end_unseen)),
            (Missing::UsageDiffers, self.usage_differs()),
            (Missing::Unfinished, self.cut_off),
        ];
        found.into_iter().filter(|(_, is)| *is).map(|(missing, _)| missing).collect()
    }

    /// The model that answered, or that was asked for.
    pub fn model(&self) -> Option<&str> {
        let exchange = self.exchange?;
        exchange.fields.model.as_deref().or(exchange.response_model.as_deref())
    }

    /// The id as the client sees it.
    pub fn request_id(&self) -> Option<&str> {
        let exchange = self.exchange;
        exchange
            .and_then(|e| e.response_id.as_deref())
            .or_else(|| self.generations.first().map(|g| g.identity.client.as_str()))
            .or_else(|| exchange.and_then(|e| e.head.request_id.as_deref()))
    }

    /// Whether the response is streamed: as it was, or as it was asked for.
    pub fn stream(&self) -> Option<bool> {
        let exchange = self.exchange?;
        let answered = exchange.stream.filter(|_| exchange.status.is_some_and(|s| s < 400));
        // A body of which every byte was seen and that does not ask for a stream asks for none.
        answered
            .or(exchange.fields.stream)
            .or_else(|| (exchange.complete.is_some() && exchange.fields.whole).then_some(false))
    }

    /// The access-log line; `None` while the request is not over, nor cut off.
    pub fn access(&self, trace_id: TraceId, span_id: SpanId, clock: &Clock, server: &Server) -> Option<AccessRecord> {
        let outcome = self.outcome()?;
        let last = self.generations.iter().map(|g| last_sign(g)).max();
        let ended = match self.exchange {
            Some(Exchange { ending: Some((at, _)), .. }) => *at,
            Some(exchange) => exchange.last_write.max(last).unwrap_or(exchange.started),
            None => last?,
        };
        Some(AccessRecord {
            v: 1,
            time: UnixNanos(clock.unix(ended)),
            trace_id,
            span_id,
            request_id: self.request_id().map(str::to_owned),
            method: self.exchange.map(|e| e.head.method.clone()),
            path: self.exchange.map(|e| e.head.path.clone()),
            status: self.exchange.and_then(|e| e.status),
            model: self.model().map(str::to_owned),
            stream: self.stream(),
            outcome,
            finish_reasons: self.finish_reasons(),
            prompt_tokens: self.prompt_tokens(),
            cached_tokens: self.cached_tokens(),
            output_tokens: self.output_tokens(),
            preemptions: self.preemptions(),
            incomplete: self.incomplete(),
            server: server.instance(),
            seconds: self.seconds(),
            generations: self
                .generations
                .iter()
                .flat_map(|g| {
                    let beams = g.beams.iter().flat_map(|beams| beams.records.iter().cloned());
                    std::iter::once(generation_record(g, self.exchange)).chain(beams)
                })
                .collect(),
        })
    }

    /// One for each engine request; of a beam search, the search's own.
    pub fn finish_reasons(&self) -> Vec<FinishReason> {
        let of_search = match self.outcome() {
            Some(Outcome::Stop) => Some(FinishReason::Stop),
            Some(Outcome::Length) => Some(FinishReason::Length),
            _ => None,
        };
        let reason = |g: &&Generation| {
            resolve(g, self.exchange).map(|reason| of_search.filter(|_| g.beams.is_some()).unwrap_or(reason))
        };
        if self.http_only {
            return of_search.into_iter().collect();
        }
        self.generations.iter().filter_map(reason).collect()
    }
}

/// An engine request's part of the access-log line.
pub fn generation_record(generation: &Generation, exchange: Option<&Exchange>) -> GenerationRecord {
    GenerationRecord {
        engine_request_id: generation.id.to_string(),
        finish_reason: resolve(generation, exchange),
        prompt_tokens: generation.prompt_tokens,
        cached_tokens: generation.cached_tokens,
        output_tokens: generation.output_tokens,
        preemptions: generation.preemptions,
        seconds: GenerationSeconds {
            queue: generation.queue_seconds(),
            prefill: generation.prefill_seconds(),
            decode: generation.decode_seconds(),
        },
    }
}

/// The last time anything was heard of it.
pub fn last_sign(generation: &Generation) -> EventNanos {
    let last = generation.last.map_or(generation.seen, |t| t.received.max(t.at));
    let last = generation.beams.as_ref().map_or(last, |beams| beams.to.max(last));
    generation.aborted().map_or(last, |at| at.max(last))
}

/// A word list as shared strings.
pub fn words(reasons: &[FinishReason]) -> Vec<Arc<str>> {
    reasons.iter().map(|r| Arc::from(r.name())).collect()
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
