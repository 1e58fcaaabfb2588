//! When a request is over, and what leaves then.
//!
//! An exchange is over when its response is (or its connection is) and its engine requests are settled; what does not settle in
//! time is let go, marked. A generation that no exchange claims is let go on its own.

use std::sync::Arc;

use super::{Core, MAX_OPEN, MAX_RECENT};
use crate::input::EventNanos;
use crate::model::exchange::{Ending, Exchange};
use crate::model::generation::Generation;
use crate::model::record::{Finished, last_sign, resolve};
use crate::model::tree::{self, Place};
use crate::output::{FinishReason, Metric, Outcome, Output};

const SECOND: EventNanos = 1_000_000_000;
/// How long the engine side of an exchange that ended may take to settle (an ABORT follows a disconnect in ms; vLLM looks for
/// disconnects between tokens).
const SETTLE: EventNanos = 5 * SECOND;
/// How long an exchange without engine requests may wait for one to show.
const CLAIM: EventNanos = SECOND / 2;
/// How long a settled generation waits to be claimed when no open exchange could be its.
const ORPHAN: EventNanos = 2 * SECOND;
/// … and when one could.
const LATE_CLAIM: EventNanos = 60 * SECOND;
/// How long an exchange may be quiet after all its engine requests were cancelled, where closes are not seen.
const QUIET: EventNanos = 5 * SECOND;
/// encode() calls older than this belong to no request.
const ENCODE_AGE: EventNanos = 60 * SECOND;

impl Core {
    /// Looks at the exchanges that something happened to.
    pub(super) fn settle_touched(&mut self, out: &mut Vec<Output>) {
        while let Some(key) = self.touched.pop() {
            self.settle(key, out);
        }
    }

    fn settle(&mut self, key: u64, out: &mut Vec<Output>) {
        let Some(exchange) = self.exchanges.get(&key) else { return };
        let Some((ended, ending)) = exchange.ending else { return };
        let waited = self.now.saturating_sub(ended);
        let settled = exchange.generations.iter().all(|g| self.generations.get(g).is_none_or(Generation::settled));
        let claimed = !exchange.generations.is_empty()
            || exchange.status.is_some_and(|s| s >= 400)
            || (ending == Ending::Disconnected && exchange.complete.is_none());
        if (settled && (claimed || waited > CLAIM)) || waited > SETTLE {
            self.finish_exchange(key, false, out);
        }
    }

    /// Fires the timers: everything that waited long enough.
    pub(super) fn sweep(&mut self, out: &mut Vec<Output>) {
        let now = self.now;
        self.release_in_flight(now, out);
        let engines: Vec<u32> = self.steps.keys().copied().collect();
        for engine in engines {
            if let Some(step) = self.steps.get_mut(&engine).and_then(|s| s.take_settled(now)) {
                self.emit_step(&step, out);
            }
        }
        self.join_left_over(QUIET);
        let exchanges: Vec<u64> = self.exchanges.keys().copied().collect();
        for key in exchanges {
            self.mark_cancelled(key, QUIET);
            self.settle(key, out);
        }
        let orphans: Vec<u64> = self
            .generations
            .iter()
            .filter(|(_, g)| g.exchange.is_none() && g.settled())
            .filter(|(_, g)| {
                let waited = now.saturating_sub(last_sign(g));
                waited > LATE_CLAIM || (waited > ORPHAN && !self.may_still_join(g))
            })
            .map(|(&key, _)| key)
            .collect();
        for key in orphans {
            self.finish_orphan(key, false, out);
        }
        for encodes in self.encodes.values_mut() {
            while encodes.front().is_some_and(|e| e.returned.saturating_add(ENCODE_AGE) < now) {
                encodes.pop_front();
            }
        }
        self.evict(out);
    }

    /// Cancelled engine requests that no exchange claimed yet are tried again: their client may have been seen leaving since, or
    /// (where closes are not seen) their answer has not come for so long that there is none.
    fn join_left_over(&mut self, quiet: EventNanos) {
        let now = self.now;
        let left: Vec<(u64, bool)> = self
            .generations
            .iter()
            .filter(|(_, g)| g.exchange.is_none())
            .filter_map(|(&key, g)| Some((key, now.saturating_sub(g.aborted()?) >= quiet)))
            .collect();
        for (key, unanswered) in left {
            self.join_cancelled(key, unanswered && !self.config.closes_visible);
        }
    }

    /// Where closes are not seen: all engine requests cancelled, then quiet, means that the client left.
    fn mark_cancelled(&mut self, key: u64, quiet: EventNanos) {
        if self.config.closes_visible {
            return;
        }
        let Some(exchange) = self.exchanges.get_mut(&key) else { return };
        if exchange.ending.is_some() || exchange.generations.is_empty() {
            return;
        }
        let aborts = exchange.generations.iter().map(|g| self.generations.get(g).and_then(Generation::aborted));
        let Some(aborted) = aborts.collect::<Option<Vec<_>>>().and_then(|at| at.into_iter().max()) else { return };
        let last = exchange.last_write.map_or(aborted, |at| at.max(aborted));
        if self.now.saturating_sub(last) >= quiet {
            exchange.ending = Some((exchange.disconnected.unwrap_or(aborted), Ending::Cancelled));
        }
    }

    fn evict(&mut self, out: &mut Vec<Output>) {
        while self.exchanges.len() > MAX_OPEN {
            let Some((&key, _)) = self.exchanges.first_key_value() else { return };
            self.oddities.evicted += 1;
            self.finish_exchange(key, true, out);
        }
        while self.generations.len() > MAX_OPEN {
            let Some((&key, generation)) = self.generations.first_key_value() else { return };
            self.oddities.evicted += 1;
            match generation.exchange {
                Some(exchange) if self.exchanges.contains_key(&exchange) => self.finish_exchange(exchange, true, out),
                _ => self.finish_orphan(key, true, out),
            }
        }
    }

    /// The stream is over: what is open is emitted, marked incomplete.
    pub fn finish(&mut self, out: &mut Vec<Output>) {
        self.release_in_flight(EventNanos::MAX, out);
        let engines: Vec<u32> = self.steps.keys().copied().collect();
        for engine in engines {
            if let Some(step) = self.steps.get_mut(&engine).and_then(|s| s.take_settled(EventNanos::MAX)) {
                self.emit_step(&step, out);
            }
        }
        self.join_left_over(0);
        let exchanges: Vec<u64> = self.exchanges.keys().copied().collect();
        for key in exchanges {
            self.mark_cancelled(key, 0);
            let unfinished = self.exchanges.get(&key).is_some_and(|e| e.ending.is_none());
            self.finish_exchange(key, unfinished, out);
        }
        let orphans: Vec<u64> = self.generations.keys().copied().collect();
        for key in orphans {
            let unfinished = self.generations.get(&key).is_some_and(|g| !g.settled());
            self.finish_orphan(key, unfinished, out);
        }
    }

    fn finish_exchange(&mut self, key: u64, cut_off: bool, out: &mut Vec<Output>) {
        let Some(exchange) = self.exchanges.remove(&key) else { return };
        let mut generations = Vec::with_capacity(exchange.generations.len());
        for generation in &exchange.generations {
            if let Some(generation) = self.remove_generation(*generation) {
                generations.push(generation);
            }
        }
        if cut_off && generations.is_empty() && exchange.complete.is_none() {
            return; // a request that was still coming in when the stream ended: nothing is known of it
        }
        if let ([generation], Some(counted)) = (generations.as_mut_slice(), exchange.completion_tokens) {
            // The front end found the stop string before this output reached it; its own count says so.
            if generation.aborted().is_some() && matches!(exchange.ending, Some((_, Ending::Complete))) {
                generation.trim(counted);
            }
        }
        if !cut_off {
            for generation in generations.iter_mut().filter(|g| !g.settled()) {
                generation.lost = true;
            }
        }
        self.emit(Some(&exchange), &generations, cut_off, out);
    }

    fn finish_orphan(&mut self, key: u64, cut_off: bool, out: &mut Vec<Output>) {
        let Some(generation) = self.remove_generation(key) else { return };
        self.emit(None, &[generation], cut_off, out);
    }

    fn remove_generation(&mut self, key: u64) -> Option<Generation> {
        let generation = self.generations.remove(&key)?;
        // A client that reuses an id may already have the next one under it.
        if self.generation_of.get(&generation.id) == Some(&key) {
            self.generation_of.remove(&generation.id);
            if self.recent.insert(Arc::clone(&generation.id)) {
                self.recent_order.push_back(Arc::clone(&generation.id));
            }
            if self.recent_order.len() > MAX_RECENT
                && let Some(old) = self.recent_order.pop_front()
            {
                self.recent.remove(&old);
            }
        }
        Some(generation)
    }

    fn emit(&mut self, exchange: Option<&Exchange>, generations: &[Generation], cut_off: bool, out: &mut Vec<Output>) {
        let process = exchange.map_or_else(|| generations.first().map_or(0, |g| g.process), |e| e.process);
        let finished = Finished {
            exchange,
            generations: generations.iter().collect(),
            tokenizer_probed: self.tokenizer_probed.contains(&process),
            cut_off,
        };
        let place = tree::place(&finished, self.run);
        for generation in generations {
            if let Some(reason) = resolve(generation, exchange) {
                out.push(Output::Metric(self.generation_metric(generation, reason, place)));
            }
        }
        if let Some(record) = finished.access(place.trace_id, place.root_id, &self.clock, &self.server) {
            if let Some(exchange) = exchange {
                out.push(Output::Metric(self.request_metric(&finished, exchange, record.outcome, place)));
            }
            out.push(Output::Access(Box::new(record)));
        }
        let (trace, dropped) =
            tree::build(&finished, place, self.run, &self.clock, &self.server, self.config.max_spans);
        self.oddities.spans_dropped += dropped;
        out.push(Output::Trace(trace));
    }

    /// vLLM's histograms take a generation when its front end finishes it: not when it was cancelled.
    fn generation_metric(&self, generation: &Generation, finish_reason: FinishReason, place: Place) -> Metric {
        let counted = finish_reason != FinishReason::Abort || generation.finish().is_some();
        let only = |seconds: Option<f64>| seconds.filter(|_| counted);
        Metric::Generation {
            labels: self.labels(generation.engine),
            finish_reason,
            trace_id: place.trace_id,
            span_id: place.root_id,
            queue: only(generation.queue_seconds()),
            prefill: only(generation.prefill_seconds()),
            decode: only(generation.decode_seconds()),
            inference: only(generation.inference_seconds()),
        }
    }

    fn request_metric(&self, finished: &Finished<'_>, exchange: &Exchange, outcome: Outcome, place: Place) -> Metric {
        let error_type = match outcome {
            Outcome::Stop | Outcome::Length => None,
            Outcome::Abort => Some(Arc::from("client_disconnected")),
            Outcome::Error | Outcome::Rejected | Outcome::Unknown => {
                let status = exchange.status.filter(|&s| s >= 400);
                Some(status.map_or_else(|| Arc::from("engine_error"), |s| Arc::from(s.to_string())))
            }
        };
        Metric::Request {
            labels: self.labels(finished.generations.first().map_or(0, |g| g.engine)),
            outcome,
            operation: exchange.operation.name,
            provider: Arc::from(self.server.engine.as_str()),
            error_type,
            trace_id: place.trace_id,
            span_id: place.root_id,
            seconds: finished.seconds(),
            time_per_output_token: finished.time_per_output_token(),
        }
    }
}
