//! How long the parts of a finished request took.
//!
//! Enters: a [`Finished`] request. Leaves: times on the event clock, and seconds. What was not seen, or goes backwards, is left out.

use super::exchange::{Ending, Exchange};
use super::generation::{Generation, seconds};
use super::lags::Lagged;
use super::record::Finished;
use crate::input::EventNanos;
use crate::output::{Outcome, RequestSeconds};

/// When tokenising began and ended, and whether a probe saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokenizing {
    pub from: EventNanos,
    pub to: EventNanos,
    pub observed: bool,
}

impl Finished<'_> {
    /// Tokenising: observed by the probes, or inferred from the front end's own stamp (arrival → sent to the engine).
    pub fn tokenizing(&self) -> Option<Tokenizing> {
        if self.exchange.is_some_and(|e| e.fields.prompt_is_tokens) {
            return None;
        }
        let encodes: Vec<_> = self.generations.iter().filter_map(|g| g.encode).collect();
        let from = encodes.iter().map(|e| e.0).min();
        let to = encodes.iter().map(|e| e.1).max();
        if let (Some(from), Some(to)) = (from, to) {
            return Some(Tokenizing { from, to, observed: true });
        }
        if self.tokenizer_probed {
            return None;
        }
        let stamped = self.generations.iter().filter(|g| g.arrival_before_tokenizing);
        let (arrival, sent) = stamped.filter_map(|g| g.arrival.zip(g.added)).min()?;
        (arrival <= sent).then_some(Tokenizing { from: arrival, to: sent, observed: false })
    }

    /// Request complete → tokenising starts (or, where nothing is tokenised, → sent to the engine).
    pub fn parsing(&self) -> Option<Tokenizing> {
        let from = self.exchange?.ready()?;
        let (to, observed) = match self.tokenizing() {
            Some(tokenizing) => (tokenizing.from, tokenizing.observed),
            None if self.exchange?.fields.prompt_is_tokens => {
                (self.generations.iter().filter_map(|g| g.added).min()?, true)
            }
            None => return None,
        };
        (from <= to).then_some(Tokenizing { from, to, observed })
    }

    /// Last output received → last content written.
    pub fn detokenizing(&self) -> Option<(EventNanos, EventNanos)> {
        let exchange = self.exchange?;
        if !matches!(exchange.ending, Some((_, Ending::Complete))) {
            return None;
        }
        let received = self.generations.iter().filter_map(|g| g.last).map(|t| t.received).max()?;
        let written = exchange.last_content?;
        (received <= written).then_some((received, written))
    }

    /// First request byte read → first token's arrival in the front end, seconds; by its HTTP side alone → first words of a stream
    /// written.
    pub fn ttft(&self) -> Option<f64> {
        if self.http_only {
            return seconds(self.exchange?.started, self.exchange?.first_text?);
        }
        let first = self.generations.iter().filter_map(|g| g.first).map(|t| t.received).min()?;
        seconds(self.exchange?.started, first)
    }

    /// The front end's arrival stamp → it takes up the first token, seconds; of the generation whose first token came first.
    pub fn ttft_engine(&self) -> Option<f64> {
        self.generations
            .iter()
            .filter(|g| g.first.is_some())
            .min_by_key(|g| g.first.map(|t| t.received))?
            .ttft_seconds()
    }

    /// How far the front end was behind its engines: with the first output of all, the last, and the most of all.
    pub fn lagged(&self) -> Lagged {
        let of = |g: &&&Generation| g.lagged.is_some();
        let first = self.generations.iter().filter(of).min_by_key(|g| g.first.map(|t| t.at));
        let last = self.generations.iter().filter(of).max_by_key(|g| g.last.map(|t| t.at));
        Lagged {
            first: first.and_then(|g| g.lagged.as_ref()?.first),
            most: self.generations.iter().filter_map(|g| g.lagged.as_ref()?.most).max(),
            last: last.and_then(|g| g.lagged.as_ref()?.last),
        }
    }

    pub fn seconds(&self) -> RequestSeconds {
        let span = |t: Tokenizing| seconds(t.from, t.to);
        let longest = self.longest();
        RequestSeconds {
            parse: self.parsing().and_then(span),
            tokenize: self.tokenizing().and_then(span),
            queue: longest.and_then(Generation::queue_seconds),
            prefill: longest.and_then(Generation::prefill_seconds),
            decode: longest.and_then(Generation::decode_seconds),
            detokenize: self.detokenizing().and_then(|(from, to)| seconds(from, to)),
            ttft: self.ttft(),
            ttft_engine: self.ttft_engine(),
            e2e: self.exchange.and_then(Exchange::e2e_seconds),
        }
    }

    /// (e2e − ttft) / (output tokens − 1), seconds; only where the request succeeded.
    pub fn time_per_output_token(&self) -> Option<f64> {
        if !matches!(self.outcome(), Some(Outcome::Stop | Outcome::Length)) {
            return None;
        }
        let counted = self.generations.iter().map(|g| g.output_tokens).max();
        let tokens = counted.or(self.usage().completion_tokens).filter(|&n| n > 1)?;
        let seconds = self.seconds();
        Some((seconds.e2e? - seconds.ttft?) / (tokens - 1) as f64)
    }
}
