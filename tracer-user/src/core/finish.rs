//! When a request is over.
//!
//! An exchange is over when its response is (or its connection is) and its engine requests are settled; what does not settle in
//! time is let go, marked. A generation that no exchange claims is let go on its own. What leaves then, [`leave`] says.
//!
//! Enters: exchanges that something happened to, and time. Leaves: requests that are over. Invariant: every request leaves once.

use super::Config;
use super::leave::{self, leave};
use super::scene::Scene;
use super::steps::Work;
use crate::input::{EventNanos, LossStage};
use crate::model::exchange::Ending;
use crate::model::generation::Generation;
use crate::model::record::last_sign;

const SECOND: EventNanos = 1_000_000_000;
/// How often open requests are looked over, ns of event time.
const SWEEP_EVERY: EventNanos = 50_000_000;
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
/// Open exchanges, and open generations; over that the oldest are finished early.
const MAX_OPEN: usize = 65_536;
/// Requests that are finished at once when the stream is over.
const PART: usize = 256;

/// The timers, and the cap on what leaves.
#[derive(Debug)]
pub(super) struct Finish {
    config: Config,
    next_sweep: EventNanos,
    next_slow_sweep: EventNanos,
    spans_dropped: u64,
}

impl Finish {
    pub(super) fn new(config: Config) -> Self {
        Self { config, next_sweep: 0, next_slow_sweep: 0, spans_dropped: 0 }
    }

    /// Spans over the hard cap of their trace, so far.
    pub(super) fn spans_dropped(&self) -> u64 {
        self.spans_dropped
    }

    /// Whether it is time to look over what is open, once each time.
    pub(super) fn is_due(&mut self, now: EventNanos) -> bool {
        is_due(&mut self.next_sweep, now, SWEEP_EVERY)
    }

    /// The same for what need not be looked at more often than once a second.
    pub(super) fn is_slow_due(&mut self, now: EventNanos) -> bool {
        is_due(&mut self.next_slow_sweep, now, SECOND)
    }

    /// Looks at the exchanges that something happened to.
    pub(super) fn settle_touched(&mut self, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        while let Some(key) = scene.requests.exchanges.next_touched() {
            self.settle(key, work, scene);
        }
    }

    fn settle(&mut self, key: u64, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        let requests = &*scene.requests;
        let Some(exchange) = requests.exchanges.get(key) else { return };
        let Some((ended, ending)) = exchange.ending else { return };
        // From when it was known to be over: an end that was not seen is dated back.
        let known = if ending == Ending::Unseen { ended.max(exchange.noticed) } else { ended };
        let waited = scene.now.saturating_sub(known);
        let settled = exchange.generations.iter().all(|&g| requests.generations.is_settled(g));
        // Its share of the steps that it was in is known once they have left.
        let has_left = |g: &Generation| work.has_left(g, scene.now);
        let steps_left = exchange.generations.iter().all(|&g| requests.generations.get(g).is_none_or(has_left));
        let claimed = !exchange.generations.is_empty()
            || !scene.engine.has_messages()
            || exchange.status.is_some_and(|s| s >= 400)
            || (ending.is_clients() && exchange.complete.is_none());
        if (settled && steps_left && (claimed || waited > CLAIM)) || waited > SETTLE {
            self.exchange(key, false, work, scene);
        }
    }

    /// Fires the timers: everything that waited long enough.
    pub(super) fn sweep(&mut self, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        leave::tallies(scene);
        for key in scene.requests.exchanges.ended() {
            self.settle(key, work, scene);
        }
        self.evict(work, scene);
    }

    /// What need not be looked at more often than once a second.
    pub(super) fn slow_sweep(&mut self, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        let now = scene.now;
        self.join_left_over(QUIET, scene);
        self.mark_cancelled(QUIET, scene);
        let requests = &mut *scene.requests;
        let overdue = requests.exchanges.mark_overdue(&requests.generations, now);
        scene.count_loss(LossStage::HttpEnd, overdue);
        let orphans: Vec<u64> = {
            let join = scene.requests.join();
            let is_orphan = |key: u64, g: &Generation| {
                let waited = now.saturating_sub(last_sign(g));
                join.generations.is_settled(key)
                    && (waited > LATE_CLAIM || (waited > ORPHAN && !join.may_still_come(g)))
            };
            join.generations.unclaimed().filter(|&(key, g)| is_orphan(key, g)).map(|(key, _)| key).collect()
        };
        for key in orphans {
            self.orphan(key, false, work, scene);
        }
    }

    fn mark_cancelled(&self, quiet: EventNanos, scene: &mut Scene<'_>) {
        if !self.config.closes_visible {
            let requests = &mut *scene.requests;
            requests.exchanges.mark_cancelled(&requests.generations, scene.now, quiet);
        }
    }

    /// Cancelled engine requests that no exchange claimed yet are tried again: their client may have been seen leaving since, or
    /// (where closes are not seen) their answer has not come for so long that there is none.
    fn join_left_over(&self, quiet: EventNanos, scene: &mut Scene<'_>) {
        let now = scene.now;
        let cancelled = |(key, g): (u64, &Generation)| Some((key, now.saturating_sub(g.aborted()?) >= quiet));
        let left: Vec<(u64, bool)> = scene.requests.generations.unclaimed().filter_map(cancelled).collect();
        for (key, unanswered) in left {
            scene.requests.join().cancelled(key, unanswered && !self.config.closes_visible);
        }
    }

    fn evict(&mut self, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        while scene.requests.exchanges.len() > MAX_OPEN {
            let Some((key, _)) = scene.requests.exchanges.iter().next() else { return };
            scene.count_loss(LossStage::Evicted, 1);
            self.exchange(key, true, work, scene);
        }
        while scene.requests.generations.len() > MAX_OPEN {
            let oldest = scene.requests.generations.iter().next();
            let Some((key, exchange)) = oldest.map(|(key, generation)| (key, generation.exchange)) else { return };
            scene.count_loss(LossStage::Evicted, 1);
            match exchange {
                Some(exchange) if scene.requests.exchanges.get(exchange).is_some() => {
                    self.exchange(exchange, true, work, scene);
                }
                _ => self.orphan(key, true, work, scene),
            }
        }
    }

    /// Too much is held: this request leaves early.
    pub(super) fn let_go(&mut self, key: u64, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        if scene.requests.exchanges.get(key).is_some() {
            scene.count_loss(LossStage::Evicted, 1);
            self.exchange(key, true, work, scene);
        } else if scene.requests.generations.get(key).is_some() {
            scene.count_loss(LossStage::Evicted, 1);
            self.orphan(key, true, work, scene);
        }
    }

    /// The stream is over: what is open leaves, marked incomplete, part by part; true while there is more.
    pub(super) fn part(&mut self, work: &mut Work<'_>, scene: &mut Scene<'_>) -> bool {
        self.join_left_over(0, scene);
        self.mark_cancelled(0, scene);
        let exchanges: Vec<u64> = scene.requests.exchanges.iter().map(|(key, _)| key).take(PART).collect();
        for key in exchanges {
            let unfinished = scene.requests.exchanges.get(key).is_some_and(|e| e.ending.is_none());
            self.exchange(key, unfinished, work, scene);
        }
        if scene.requests.exchanges.len() > 0 {
            return true;
        }
        let orphans: Vec<u64> = scene.requests.generations.iter().map(|(key, _)| key).take(PART).collect();
        for key in orphans {
            let unfinished = scene.requests.generations.get(key).is_some_and(|g| !g.settled());
            self.orphan(key, unfinished, work, scene);
        }
        scene.requests.generations.len() > 0
    }

    fn exchange(&mut self, key: u64, cut_off: bool, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        let Some((mut exchange, mut generations)) = scene.requests.take(key) else { return };
        exchange.blocked.ends(exchange.ending.map_or(scene.now, |(at, _)| at));
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
        let missing = generations.iter_mut().map(|generation| work.steps.look_back(generation)).sum();
        scene.count_loss(LossStage::Evicted, missing);
        let dropped = leave(Some(&exchange), &generations, cut_off, self.config.max_spans, work.steps, scene);
        self.spans_dropped = self.spans_dropped.saturating_add(dropped);
    }

    fn orphan(&mut self, key: u64, cut_off: bool, work: &mut Work<'_>, scene: &mut Scene<'_>) {
        let Some(mut generation) = scene.requests.take_alone(key) else { return };
        scene.count_loss(LossStage::Evicted, work.steps.look_back(&mut generation));
        let dropped = leave(None, &[generation], cut_off, self.config.max_spans, work.steps, scene);
        self.spans_dropped = self.spans_dropped.saturating_add(dropped);
    }
}

fn is_due(next: &mut EventNanos, now: EventNanos, every: EventNanos) -> bool {
    let is_due = now >= *next;
    if is_due {
        *next = now.saturating_add(every);
    }
    is_due
}

#[cfg(test)]
#[path = "finish_tests.rs"]
mod tests;
