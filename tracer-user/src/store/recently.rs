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
            let is_over =
                |(said, queues): &(u64, Queues)| (queues.running > 0 || queues.waiting > 0) && at - said > STALE;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Incomplete, RequestSeconds, SpanId, TraceId, UnixNanos};

    const BEGIN: u64 = 1_795_478_400;

    /// A request that was over so many seconds after the beginning.
    fn record(at: u64, outcome: Outcome, e2e: f64) -> AccessRecord {
        AccessRecord {
            v: 1,
            time: UnixNanos((BEGIN + at) * SECOND + 5),
            trace_id: TraceId([1; 16]),
            span_id: SpanId([1; 8]),
            request_id: None,
            method: None,
            path: None,
            status: None,
            model: None,
            stream: None,
            outcome,
            finish_reasons: vec![],
            prompt_tokens: None,
            cached_tokens: None,
            output_tokens: None,
            preemptions: None,
            incomplete: Incomplete::default(),
            server: String::new(),
            seconds: RequestSeconds { e2e: Some(e2e), ..RequestSeconds::default() },
            generations: vec![],
        }
    }

    fn at(seconds: u64) -> u64 {
        (BEGIN + seconds) * SECOND
    }

    fn engine(engine: u32) -> EngineKey {
        EngineKey { server: "chat-1".into(), pid: 1, engine }
    }

    fn stats(running: u64, waiting: u64, kv_cache_usage: f64) -> SchedulerStats {
        SchedulerStats { running, waiting, kv_cache_usage, ..SchedulerStats::default() }
    }

    /// Seconds after the beginning, requests and failures of those that have any.
    fn rates(recently: &Recently, now: u64) -> Vec<(u64, u64, u64)> {
        let series = recently.series(at(now));
        let seconds = series.iter().filter(|second| second.requests > 0);
        seconds.map(|second| (second.at - BEGIN, second.requests, second.failed)).collect()
    }

    #[test]
    fn requests_are_counted_in_the_second_of_their_ends_for_as_long_as_the_window() {
        // 0 s: one well, one failed │ 2 s: one rejected │ 1 s, told late: one well │ 301 s
        let mut recently = Recently::default();
        assert_eq!(recently.series(at(5)), []);
        for (second, outcome) in [(0, Outcome::Stop), (0, Outcome::Error), (2, Outcome::Rejected), (1, Outcome::Length)]
        {
            recently.record(&record(second, outcome, 1.0));
        }
        assert_eq!(rates(&recently, 2), [(0, 2, 1), (1, 1, 0)], "the second that goes on is not told");
        assert_eq!(rates(&recently, 3), [(0, 2, 1), (1, 1, 0), (2, 1, 1)]);
        assert_eq!(recently.series(at(9)).len(), 9, "seconds without anything are told too");
        assert_eq!(recently.outcomes(at(3)).get(&Outcome::Rejected), Some(&1));
        assert_eq!(recently.latency(at(3)).e2e.count(), 4);
        assert_eq!(rates(&recently, 301), [(2, 1, 1)]);
        assert_eq!((recently.latency(at(302)).e2e.count(), rates(&recently, 302).len()), (0, 0));
        recently.record(&record(600, Outcome::Stop, 1.0));
        recently.record(&record(1, Outcome::Stop, 1.0));
        assert_eq!(rates(&recently, 601), [(600, 1, 0)], "what is long over is left out");
    }

    #[test]
    fn tokens_and_the_times_between_them_belong_to_when_they_were_given() {
        let mut recently = Recently::default();
        let mut tokens = Tokens { count: 12, ..Tokens::default() };
        tokens.gaps.add(0.02);
        recently.tokens(at(1), &tokens);
        recently.tokens(at(1), &tokens);
        let series = recently.series(at(2));
        assert_eq!((series[0].at - BEGIN, series[0].output_tokens), (1, 24));
        assert_eq!(recently.latency(at(2)).inter_token.count(), 2);
    }

    #[test]
    fn queues_of_all_engines_stand_until_they_say_otherwise_or_are_silent_for_long() {
        // 0 s: engine 0 runs 3, 1 waits │ 1 s: engine 1 runs 4 │ 3 s: engine 1 idle │ 14 s: engine 0 said nothing for 14 s
        let mut recently = Recently::default();
        recently.queues(at(0), engine(0), stats(3, 1, 0.5));
        recently.queues(at(1), engine(1), stats(4, 0, 0.25));
        recently.queues(at(3), engine(1), stats(0, 0, 0.0));
        let told: Vec<_> =
            recently.series(at(16)).iter().map(|of| of.queues.map(|of| (of.running, of.waiting))).collect();
        assert_eq!(told[..4], [Some((3, 1)), Some((7, 1)), Some((7, 1)), Some((3, 1))]);
        assert_eq!((told[13], told[14]), (Some((3, 1)), None));
        recently.queues(at(20), engine(1), stats(1, 0, 0.1));
        assert_eq!(
            recently.series(at(21)).last().and_then(|of| of.queues).map(|of| of.running),
            Some(1),
            "engine 0 is gone"
        );
        recently.queues(at(21), engine(1), stats(0, 0, 0.0));
        let last = recently.series(at(200)).last().and_then(|of| of.queues);
        assert_eq!(last.map(|of| of.running), Some(0), "who had nothing to do says nothing");
    }

    #[test]
    fn times_and_engines_of_any_kind_take_no_more_than_the_window() {
        let mut recently = Recently::default();
        for ns in [0, u64::MAX, 1, u64::MAX / 2, u64::MAX - 299 * SECOND] {
            recently.tokens(ns, &Tokens::default());
            recently.series(ns);
            recently.latency(ns);
        }
        for n in 0..5_000 {
            recently.queues(u64::MAX, engine(n), stats(u64::MAX, u64::MAX, f64::NAN));
        }
        recently.queues(u64::MAX - 60 * SECOND, engine(0), stats(u64::MAX, 1, 0.0));
        recently.series(u64::MAX);
        assert!(recently.seconds.len() as u64 <= WINDOW && recently.engines.len() <= MAX_ENGINES);
    }
}
