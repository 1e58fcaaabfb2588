//! When a request is over, and what leaves then.
//!
//! An exchange is over when its response is (or its connection is) and its engine requests are settled; what does not settle in
//! time is let go, marked. A generation that no exchange claims is let go on its own.

use std::sync::Arc;

use super::{Core, MAX_OPEN};
use crate::input::{EventNanos, LossStage};
use crate::model::beams::Tally;
use crate::model::exchange::{Ending, Exchange};
use crate::model::generation::Generation;
use crate::model::record::{Finished, last_sign, resolve};
use crate::model::tree::{self, Place};
use crate::output::{FinishReason, Metric, Outcome, Output};

/// What an engine's threads called last in a step is told when they have stood still, 45 ms later, or call again; and the tracer may be
/// held up.
const CUDA_SETTLED: EventNanos = 300_000_000;
const SECOND: EventNanos = 1_000_000_000;
/// How long the engine side of an exchange that ended may take to settle (an ABORT follows a disconnect in ms; front ends
/// look for disconnects between tokens).
const SETTLE: EventNanos = 5 * SECOND;
/// How long an exchange without engine requests may wait for one to show.
const CLAIM: EventNanos = SECOND / 2;
/// How long a settled generation waits to be claimed when no open exchange could be its.
const ORPHAN: EventNanos = 2 * SECOND;
/// … and when one could.
const LATE_CLAIM: EventNanos = 60 * SECOND;
/// How long an exchange may be quiet after all its engine requests were cancelled, where closes are not seen.
const QUIET: EventNanos = 5 * SECOND;
/// Requests that are finished at once when the stream is over.
const PART: usize = 256;

impl Core {
    /// Looks at the exchanges that something happened to.
    pub(super) fn settle_touched(&mut self, out: &mut Vec<Output>) {
        while let Some(key) = self.exchanges.next_touched() {
            self.settle(key, out);
        }
    }

    fn settle(&mut self, key: u64, out: &mut Vec<Output>) {
        let Some(exchange) = self.exchanges.get(key) else { return };
        let Some((ended, ending)) = exchange.ending else { return };
        // From when it was known to be over: an end that was not seen is dated back.
        let waited =
            self.now.saturating_sub(if ending == Ending::Unseen { ended.max(exchange.noticed) } else { ended });
        let settled = exchange.generations.iter().all(|&g| self.generations.is_settled(g));
        // Its share of the steps that it was in is known once they have left.
        let steps_left =
            exchange.generations.iter().all(|&g| self.generations.get(g).is_none_or(|g| self.has_its_steps(g)));
        let claimed = !exchange.generations.is_empty()
            || !self.engine.has_messages()
            || exchange.status.is_some_and(|s| s >= 400)
            || (ending.is_clients() && exchange.complete.is_none());
        if (settled && steps_left && (claimed || waited > CLAIM)) || waited > SETTLE {
            self.finish_exchange(key, false, out);
        }
    }

    /// Whether the last step that it was in has left.
    fn has_its_steps(&self, generation: &Generation) -> bool {
        generation.last.is_none_or(|last| {
            !self.cuda.is_seen_at(last.step.engine) || last.at.saturating_add(CUDA_SETTLED) < self.now
        })
    }

    /// Fires the timers: everything that waited long enough.
    pub(super) fn sweep(&mut self, out: &mut Vec<Output>) {
        let now = self.now;
        self.release_in_flight(now, out);
        let engines: Vec<u32> = self.steps.keys().copied().collect();
        for engine in engines {
            if let Some(step) = self.steps.get_mut(&engine).and_then(|s| s.take_settled(now)) {
                self.step_is_over(step, out);
            }
        }
        while let Some(step) = self.ended_steps.pop_front_if(|step| step.end.saturating_add(CUDA_SETTLED) < now) {
            self.emit_step(&step, out);
        }
        if now >= self.next_slow_sweep {
            self.next_slow_sweep = now + SECOND;
            self.slow_sweep(out);
        }
        self.emit_tallies(out);
        for key in self.exchanges.ended() {
            self.settle(key, out);
        }
        self.evict(out);
    }

    /// What need not be looked at more often than once a second.
    fn slow_sweep(&mut self, out: &mut Vec<Output>) {
        let now = self.now;
        self.join_left_over(QUIET);
        self.mark_cancelled(QUIET);
        let overdue = self.exchanges.mark_overdue(&self.generations, now);
        self.count_loss(LossStage::HttpEnd, overdue, out);
        let orphans: Vec<u64> = {
            let join = self.join();
            let is_orphan = |key: u64, g: &Generation| {
                let waited = now.saturating_sub(last_sign(g));
                join.generations.is_settled(key)
                    && (waited > LATE_CLAIM || (waited > ORPHAN && !join.may_still_come(g)))
            };
            join.generations.unclaimed().filter(|&(key, g)| is_orphan(key, g)).map(|(key, _)| key).collect()
        };
        for key in orphans {
            self.finish_orphan(key, false, out);
        }
        self.encodes.expire(now);
    }

    fn mark_cancelled(&mut self, quiet: EventNanos) {
        if !self.config.closes_visible {
            self.exchanges.mark_cancelled(&self.generations, self.now, quiet);
        }
    }

    /// Cancelled engine requests that no exchange claimed yet are tried again: their client may have been seen leaving since, or
    /// (where closes are not seen) their answer has not come for so long that there is none.
    fn join_left_over(&mut self, quiet: EventNanos) {
        let now = self.now;
        let left: Vec<(u64, bool)> = self
            .generations
            .unclaimed()
            .filter_map(|(key, generation)| Some((key, now.saturating_sub(generation.aborted()?) >= quiet)))
            .collect();
        for (key, unanswered) in left {
            let unanswered = unanswered && !self.config.closes_visible;
            self.join().cancelled(key, unanswered);
        }
    }

    fn evict(&mut self, out: &mut Vec<Output>) {
        while self.exchanges.len() > MAX_OPEN {
            let Some((key, _)) = self.exchanges.iter().next() else { return };
            self.count_loss(LossStage::Evicted, 1, out);
            self.finish_exchange(key, true, out);
        }
        while self.generations.len() > MAX_OPEN {
            let Some((key, exchange)) = self.generations.iter().next().map(|(key, g)| (key, g.exchange)) else {
                return;
            };
            self.count_loss(LossStage::Evicted, 1, out);
            match exchange {
                Some(exchange) if self.exchanges.get(exchange).is_some() => self.finish_exchange(exchange, true, out),
                _ => self.finish_orphan(key, true, out),
            }
        }
    }

    /// The stream is over: what is open is emitted, marked incomplete.
    pub fn finish(&mut self, out: &mut Vec<Output>) {
        while self.finish_part(out) {}
    }

    /// As [`Self::finish`], a part of it; true while there is more. Thousands may be open, and their trees take their room.
    pub fn finish_part(&mut self, out: &mut Vec<Output>) -> bool {
        self.release_in_flight(EventNanos::MAX, out);
        let engines: Vec<u32> = self.steps.keys().copied().collect();
        for engine in engines {
            if let Some(step) = self.steps.get_mut(&engine).and_then(|s| s.take_settled(EventNanos::MAX)) {
                self.step_is_over(step, out);
            }
        }
        while let Some(step) = self.ended_steps.pop_front() {
            self.emit_step(&step, out);
        }
        self.join_left_over(0);
        self.mark_cancelled(0);
        let exchanges: Vec<u64> = self.exchanges.iter().map(|(key, _)| key).take(PART).collect();
        for key in exchanges {
            let unfinished = self.exchanges.get(key).is_some_and(|e| e.ending.is_none());
            self.finish_exchange(key, unfinished, out);
        }
        if self.exchanges.len() > 0 {
            return true;
        }
        let orphans: Vec<u64> = self.generations.iter().map(|(key, _)| key).take(PART).collect();
        for key in orphans {
            let unfinished = self.generations.get(key).is_some_and(|g| !g.settled());
            self.finish_orphan(key, unfinished, out);
        }
        if self.generations.len() > 0 {
            return true;
        }
        self.cuda_finish(out);
        false
    }

    fn finish_exchange(&mut self, key: u64, cut_off: bool, out: &mut Vec<Output>) {
        let Some(exchange) = self.exchanges.remove(key) else { return };
        for id in exchange.response_id.iter().cloned().chain(exchange.chosen_id()) {
            self.index.remove_exchange(&id, key);
        }
        let mut generations = Vec::with_capacity(exchange.generations.len());
        for generation in &exchange.generations {
            if let Some(generation) = self.generations.remove(*generation, &mut self.index) {
                generations.push(generation);
            }
        }
        if cut_off && generations.is_empty() && exchange.complete.is_none() {
            return; // a request that was still coming in when the stream ended: nothing is known of it
        }
        if let ([generation], Some(counted)) = (generations.as_mut_slice(), exchange.usage.completion_tokens) {
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
        let Some(generation) = self.generations.remove(key, &mut self.index) else { return };
        self.emit(None, &[generation], cut_off, out);
    }

    fn emit(&mut self, exchange: Option<&Exchange>, generations: &[Generation], cut_off: bool, out: &mut Vec<Output>) {
        let process = exchange.map_or_else(|| generations.first().map_or(0, |g| g.process), |e| e.process);
        let finished = Finished {
            exchange,
            generations: generations.iter().collect(),
            tokenizer_probed: self.about.is_tokenizer_probed(process),
            cut_off,
            http_only: !self.engine.has_messages(),
        };
        let place = tree::place(&finished, self.about.run);
        for key in exchange.iter().flat_map(|exchange| &exchange.generations) {
            self.batches.left(*key, (place.trace_id, place.root_id), self.now);
        }
        for generation in generations {
            let own = Tally::of(generation, resolve(generation, exchange));
            let beams = generation.beams.iter().flat_map(|beams| beams.tallies.iter().copied());
            for tally in std::iter::once(own).chain(beams) {
                self.generation_metrics(tally, generation.finish().is_some(), place, out);
            }
        }
        if finished.http_only {
            self.http_metrics(&finished, place, out);
        }
        if let Some(record) = finished.access(place.trace_id, place.root_id, &self.about.clock, &self.about.server) {
            if let Some(exchange) = exchange {
                out.push(Output::Metric(self.request_metric(&finished, exchange, record.outcome, place)));
                if finished.usage_differs() {
                    let engine = generations.first().map_or(0, |g| g.engine);
                    out.push(Output::Metric(Metric::UsageDiffers { labels: self.about.labels(engine) }));
                }
            }
            out.push(Output::Access(Box::new(record)));
        }
        let (trace, dropped) =
            tree::build(&finished, place, self.about.run, &self.about.clock, &self.about.server, self.config.max_spans);
        self.spans_dropped += dropped;
        out.push(Output::Trace(trace));
    }

    /// What the response says stands for an engine's own counts.
    fn http_metrics(&self, finished: &Finished<'_>, place: Place, out: &mut Vec<Output>) {
        let labels = self.about.labels(0);
        if let Some(tokens) = finished.prompt_tokens() {
            let cached = finished.cached_tokens().unwrap_or(0);
            out.push(Output::Metric(Metric::Prompt { labels: labels.clone(), tokens, cached }));
        }
        if let Some(tokens) = finished.output_tokens() {
            out.push(Output::Metric(Metric::Tokens { labels, tokens, inter_token: None }));
        }
        for reason in finished.finish_reasons() {
            self.generation_metrics(Tally { reason: Some(reason), ..Tally::default() }, true, place, out);
        }
    }

    /// A long beam search's metrics leave before it is over, so that what is held stays small.
    fn emit_tallies(&mut self, out: &mut Vec<Output>) {
        for (lead, tallies) in self.generations.take_tallies() {
            let Some(generation) = self.generations.get(lead) else { continue };
            let by_engine = generation.finish().is_some();
            let exchange = generation.exchange.and_then(|key| self.exchanges.get(key));
            let generations = vec![generation];
            let place = tree::place(
                &Finished { exchange, generations, tokenizer_probed: false, cut_off: false, http_only: false },
                self.about.run,
            );
            for tally in tallies {
                self.generation_metrics(tally, by_engine, place, out);
            }
        }
    }

    /// The engine's own histograms take a generation when its front end finishes it: not when it was cancelled. Its time to first token it
    /// takes when that comes, whatever happens then.
    fn generation_metrics(&self, tally: Tally, by_engine: bool, place: Place, out: &mut Vec<Output>) {
        let labels = self.about.labels(tally.engine);
        if let Some(ttft_engine) = tally.ttft {
            let (trace_id, span_id) = (place.trace_id, place.root_id);
            out.push(Output::Metric(Metric::FirstToken { labels: labels.clone(), ttft_engine, trace_id, span_id }));
        }
        let Some(finish_reason) = tally.reason else { return };
        let counted = finish_reason != FinishReason::Abort || by_engine;
        let only = |seconds: Option<f64>| seconds.filter(|_| counted);
        out.push(Output::Metric(Metric::Generation {
            labels,
            finish_reason,
            trace_id: place.trace_id,
            span_id: place.root_id,
            queue: only(tally.queue),
            prefill: only(tally.prefill),
            decode: only(tally.decode),
            inference: only(tally.inference),
        }));
    }

    fn request_metric(&self, finished: &Finished<'_>, exchange: &Exchange, outcome: Outcome, place: Place) -> Metric {
        let failed = !matches!(outcome, Outcome::Stop | Outcome::Length);
        let error_type = failed.then(|| finished.error_type());
        Metric::Request {
            labels: self.about.labels(finished.generations.first().map_or(0, |g| g.engine)),
            outcome,
            operation: exchange.operation.name,
            provider: Arc::from(self.about.server.engine.as_str()),
            error_type,
            trace_id: place.trace_id,
            span_id: place.root_id,
            seconds: finished.seconds(),
            time_per_output_token: finished.time_per_output_token(),
        }
    }
}
