//! The last minutes in numbers: rates, latencies and queues, second by second.
//!
//! Enters: records, tokens and steps, with the wall-clock time that they belong to. Leaves: one [`Second`] for each of the last
//! [`WINDOW`], and how the latencies of all of them are spread. Invariant: no more seconds are held than the window has, and no more
//! engines than [`MAX_ENGINES`]. What comes later than the window is long is left out. Pure.

use std::collections::{BTreeMap, VecDeque};

use super::histogram::Histogram;
use super::steps::EngineKey;
use crate::engine::SchedulerStats;
use crate::output::{AccessRecord, Outcome};

/// Seconds that are looked back at.
pub const WINDOW: u64 = 300;
/// Engines whose queues are added up; those of a large node.
const MAX_ENGINES: usize = 1_024;
/// A busy engine that said nothing for so long may have gone, s; one step takes less.
const STALE: u64 = 10;
const SECOND: u64 = 1_000_000_000;

/// Tokens that were given since this was last said, and the times between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    pub count: u64,
    pub gaps: Histogram,
}

/// What the schedulers said last, of all engines together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Queues {
    pub running: u64,
    pub waiting: u64,
    /// The fullest engine's, 0 to 1.
    pub kv_cache_usage: f64,
}

/// A second as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Second {
    /// Unix s.
    pub at: u64,
    /// Requests that were over in it; of them those that did not go well.
    pub requests: u64,
    pub failed: u64,
    pub output_tokens: u64,
    /// At its end; `None` where no engine said anything that still stands.
    pub queues: Option<Queues>,
}

/// How the latencies of the window are spread.
#[derive(Debug, Clone, Default)]
pub struct Latency {
    pub ttft: Histogram,
    pub inter_token: Histogram,
    pub e2e: Histogram,
}

#[derive(Debug, Default)]
struct Held {
    outcomes: BTreeMap<Outcome, u64>,
    output_tokens: u64,
    queues: Option<Queues>,
    latency: Latency,
}

#[derive(Debug, Default)]
pub struct Recently {
    /// Second by second without holes, the newest last.
    seconds: VecDeque<Held>,
    /// The second after the newest, unix s.
    end: u64,
    engines: BTreeMap<EngineKey, (u64, SchedulerStats)>,
}

impl Recently {
    /// A request that was over at `record.time`.
    pub fn record(&mut self, record: &AccessRecord) {
        let Some(held) = self.at(record.time.0) else { return };
        *held.outcomes.entry(record.outcome).or_default() += 1;
        let latency = &mut held.latency;
        record.seconds.ttft.into_iter().for_each(|seconds| latency.ttft.add(seconds));
        record.seconds.e2e.into_iter().for_each(|seconds| latency.e2e.add(seconds));
    }

    /// Tokens that were given about `at_ns`.
    pub fn tokens(&mut self, at_ns: u64, tokens: &Tokens) {
        let Some(held) = self.at(at_ns) else { return };
        held.output_tokens = held.output_tokens.saturating_add(tokens.count);
        held.latency.inter_token.merge(&tokens.gaps);
    }

    /// What an engine's scheduler said at `at_ns`.
    pub fn queues(&mut self, at_ns: u64, engine: EngineKey, stats: SchedulerStats) {
        let second = at_ns / SECOND;
        if self.at(at_ns).is_none() || (self.engines.len() == MAX_ENGINES && !self.engines.contains_key(&engine)) {
            return;
        }
        self.engines.insert(engine, (second, stats));
        self.engines.retain(|_, (at, stats)| *at + if is_busy(stats) { STALE } else { WINDOW } >= second);
        let mut all = Queues { running: 0, waiting: 0, kv_cache_usage: 0.0 };
        for (_, stats) in self.engines.values() {
            all.running = all.running.saturating_add(stats.running);
            all.waiting = all.waiting.saturating_add(stats.waiting);
            all.kv_cache_usage = all.kv_cache_usage.max(stats.kv_cache_usage);
        }
        if let Some(held) = self.at(at_ns) {
            held.queues = Some(all);
        }
    }

    /// The second of a time; `None` where that is before the window.
    fn at(&mut self, at_ns: u64) -> Option<&mut Held> {
        let second = at_ns / SECOND;
        if second >= self.end {
            let new = second - self.end + 1;
            if self.seconds.is_empty() || new >= WINDOW {
                self.seconds.clear();
                self.seconds.push_back(Held::default());
            } else {
                (0..new).for_each(|_| self.seconds.push_back(Held::default()));
                while self.seconds.len() as u64 > WINDOW {
                    self.seconds.pop_front();
                }
            }
            self.end = second + 1;
        }
        let first = self.end - self.seconds.len() as u64;
        if second < first && self.end - second <= WINDOW {
            (second..first).for_each(|_| self.seconds.push_front(Held::default()));
        }
        let first = self.end - self.seconds.len() as u64;
        self.seconds.get_mut(usize::try_from(second.checked_sub(first)?).ok()?)
    }

    /// The seconds that are held and lie in the window that ends with the second of `now_ns`.
    fn window(&self, now_ns: u64) -> impl Iterator<Item = (u64, &Held)> {
        let now = now_ns / SECOND;
        let first = self.end - self.seconds.len() as u64;
        let seconds = (first..).zip(&self.seconds);
        seconds.filter(move |(at, _)| *at <= now && now - at < WINDOW)
    }

    /// Every second from the first of the window that anything is known of to the last that is whole at `now_ns`.
    pub fn series(&self, now_ns: u64) -> Vec<Second> {
        let now = now_ns / SECOND;
        let mut held = self.window(now_ns).peekable();
        let Some((first, _)) = held.peek() else { return Vec::new() };
        let mut stands: Option<(u64, Queues)> = None;
        let seconds = (*first..now).map(|at| {
            let of = held.next_if(|(second, _)| *second == at).map(|(_, held)| held);
            if let Some(queues) = of.and_then(|of| of.queues) {
                stands = Some((at, queues));
            }
            let is_over = |(said, queues): &(u64, Queues)| queues.running + queues.waiting > 0 && at - said > STALE;
            stands = stands.filter(|said| !is_over(said));
            Second {
                at,
                requests: of.map_or(0, |of| of.outcomes.values().sum()),
                failed: of.map_or(0, |of| of.outcomes.iter().filter(|(how, _)| !is_good(**how)).map(|(_, n)| n).sum()),
                output_tokens: of.map_or(0, |of| of.output_tokens),
                queues: stands.map(|(_, queues)| queues),
            }
        });
        seconds.collect()
    }

    /// How the window's latencies are spread.
    pub fn latency(&self, now_ns: u64) -> Latency {
        let mut all = Latency::default();
        for (_, held) in self.window(now_ns) {
            all.ttft.merge(&held.latency.ttft);
            all.inter_token.merge(&held.latency.inter_token);
            all.e2e.merge(&held.latency.e2e);
        }
        all
    }

    /// How the window's requests ended.
    pub fn outcomes(&self, now_ns: u64) -> BTreeMap<Outcome, u64> {
        let mut all = BTreeMap::new();
        for (outcome, count) in self.window(now_ns).flat_map(|(_, held)| &held.outcomes) {
            *all.entry(*outcome).or_default() += count;
        }
        all
    }
}

fn is_busy(stats: &SchedulerStats) -> bool {
    stats.running > 0 || stats.waiting > 0
}

/// It went as its client asked.
pub fn is_good(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Stop | Outcome::Length)
}
