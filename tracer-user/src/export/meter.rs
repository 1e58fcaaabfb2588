//! What goes on, in a few numbers, for who watches: rates, the time to the first token, what the engines say, what the tracer costs.
//!
//! Enters: records and metrics, on the core's thread, and the time of a look. Leaves: [`Figures`]. Bounded: one count a kind, the newest
//! [`MAX_TIMES`] times, one row an engine, up to [`MAX_ENGINES`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::sink::Sink;
use super::usage::Usage;
use crate::input::LossStage;
use crate::output::{AccessRecord, Metric, Outcome};
use crate::telemetry::Telemetry;

/// Rates are those of the last so many seconds.
const RATE_OVER: Duration = Duration::from_secs(5);
/// Times to the first token: of the last minute, and at most so many.
const TIMES_OVER: Duration = Duration::from_mins(1);
const MAX_TIMES: usize = 2048;
/// Looks that are remembered: more than [`RATE_OVER`] has at two a second.
const MAX_LOOKS: usize = 16;
const MAX_ENGINES: usize = 1024;
/// A busy engine that said nothing for so long may have gone; one step takes less. An idle one has nothing to say for longer.
const STALE: Duration = Duration::from_secs(10);
const GONE: Duration = Duration::from_mins(5);

/// Counts while the run goes on; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    requests: AtomicU64,
    failed: AtomicU64,
    tokens: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    engines: BTreeMap<(Arc<str>, u32), (Instant, Engine)>,
    ttft: VecDeque<(Instant, f64)>,
}

/// What an engine's scheduler said last.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Engine {
    running: u64,
    waiting: u64,
    kv_cache_usage: f64,
}

impl Meter {
    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole between any two of its changes.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is over.
    pub fn record(&self, record: &AccessRecord, now: Instant) {
        self.0.requests.fetch_add(1, Relaxed);
        if !matches!(record.outcome, Outcome::Stop | Outcome::Length) {
            self.0.failed.fetch_add(1, Relaxed);
        }
        let Some(ttft) = record.seconds.ttft else { return };
        let mut state = self.state();
        if state.ttft.len() == MAX_TIMES {
            state.ttft.pop_front();
        }
        state.ttft.push_back((now, ttft));
    }

    pub fn metric(&self, metric: &Metric, now: impl FnOnce() -> Instant) {
        match metric {
            Metric::Tokens { tokens, .. } => {
                self.0.tokens.fetch_add(*tokens, Relaxed);
            }
            Metric::Scheduler { labels, running, waiting, kv_cache_usage, .. } => {
                let mut state = self.state();
                let key = (Arc::clone(&labels.server), labels.engine);
                let now = now();
                if state.engines.len() >= MAX_ENGINES && !state.engines.contains_key(&key) {
                    state.engines.retain(|_, (said, _)| now.saturating_duration_since(*said) < GONE);
                }
                if state.engines.len() < MAX_ENGINES || state.engines.contains_key(&key) {
                    let of = Engine { running: *running, waiting: *waiting, kv_cache_usage: *kv_cache_usage };
                    state.engines.insert(key, (now, of));
                }
            }
            _ => {}
        }
    }

    /// As a destination by itself.
    pub fn sink(&self) -> Box<dyn Sink> {
        Box::new(Metering(self.clone()))
    }
}

#[derive(Debug)]
struct Metering(Meter);

impl Sink for Metering {
    fn access(&mut self, record: &Arc<AccessRecord>) {
        self.0.record(record, Instant::now());
    }

    fn metric(&mut self, metric: &Metric) {
        self.0.metric(metric, Instant::now);
    }

    fn is_beside(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>) -> Option<String> {
        None
    }
}

/// What goes on. `None`: not known.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// Of the run so far.
    pub requests: u64,
    pub failed: u64,
    /// A second.
    pub requests_rate: Option<f64>,
    pub failed_rate: Option<f64>,
    pub tokens_rate: Option<f64>,
    /// Seconds, of the last minute.
    pub ttft_p50: Option<f64>,
    pub ttft_p95: Option<f64>,
    /// Of all engines.
    pub running: Option<u64>,
    pub waiting: Option<u64>,
    /// The fullest engine's, 0 to 1.
    pub kv_cache_usage: Option<f64>,
    /// Records lost, of all stages.
    pub lost: u64,
    /// Cores that the tracer takes.
    pub cpu: Option<f64>,
    pub memory_bytes: Option<u64>,
}

/// A look: when, and what was counted.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    requests: u64,
    failed: u64,
    tokens: u64,
    cpu_seconds: Option<f64>,
}

/// Reads a meter every now and then.
#[derive(Debug)]
pub struct Reader {
    meter: Meter,
    telemetry: Arc<Telemetry>,
    looks: VecDeque<Look>,
}

impl Reader {
    pub fn new(meter: Meter, telemetry: Arc<Telemetry>, now: Instant) -> Self {
        let cpu_seconds = Usage::read().map(|used| used.cpu_seconds);
        let first = Look { at: now, requests: 0, failed: 0, tokens: 0, cpu_seconds };
        Self { meter, telemetry, looks: VecDeque::from([first]) }
    }

    pub fn read(&mut self, now: Instant) -> Figures {
        let shared = &self.meter.0;
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let used = Usage::read();
        let look = Look {
            at: now,
            requests: count(&shared.requests),
            failed: count(&shared.failed),
            tokens: count(&shared.tokens),
            cpu_seconds: used.map(|used| used.cpu_seconds),
        };
        // The oldest that is younger than the time looked at, or the one before it.
        while self.looks.len() == MAX_LOOKS || self.looks.get(1).is_some_and(|next| now - next.at >= RATE_OVER) {
            self.looks.pop_front();
        }
        let before = *self.looks.front().unwrap_or(&look);
        self.looks.push_back(look);
        let seconds = (look.at - before.at).as_secs_f64();
        let rate = |by: u64| (seconds > 0.0).then(|| by as f64 / seconds);
        let cpu = look.cpu_seconds.zip(before.cpu_seconds).filter(|_| seconds > 0.0);
        let state = self.meter.state();
        let mut ttft: Vec<f64> = state
            .ttft
            .iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) < TIMES_OVER)
            .map(|time| time.1)
            .collect();
        let stands = |(said, of): &&(Instant, Engine)| {
            let is_busy = of.running > 0 || of.waiting > 0;
            now.saturating_duration_since(*said) < if is_busy { STALE } else { GONE }
        };
        let engines: Vec<Engine> = state.engines.values().filter(stands).map(|(_, of)| *of).collect();
        drop(state);
        ttft.sort_by(f64::total_cmp);
        let at = |share: f64| ttft.get((ttft.len().saturating_sub(1) as f64 * share).round() as usize).copied();
        let sum =
            |of: fn(&Engine) -> u64| (!engines.is_empty()).then(|| engines.iter().map(of).fold(0, u64::saturating_add));
        Figures {
            requests: look.requests,
            failed: look.failed,
            requests_rate: rate(look.requests - before.requests),
            failed_rate: rate(look.failed - before.failed),
            tokens_rate: rate(look.tokens - before.tokens),
            ttft_p50: at(0.5),
            ttft_p95: at(0.95),
            running: sum(|engine| engine.running),
            waiting: sum(|engine| engine.waiting),
            kv_cache_usage: engines.iter().map(|engine| engine.kv_cache_usage).reduce(f64::max),
            lost: LossStage::ALL.iter().map(|stage| self.telemetry.lost(*stage)).sum(),
            cpu: cpu.map(|(now, before)| (now - before).max(0.0) / seconds),
            memory_bytes: used.map(|used| used.resident_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::access_log::tests::record;
    use crate::output::Labels;

    fn scheduler(engine: u32, running: u64, usage: f64) -> Metric {
        let labels = Labels { server: "s".into(), model: "m".into(), engine };
        let (waiting, prefix_queries, prefix_hits) = (1, 0, 0);
        Metric::Scheduler { labels, running, waiting, kv_cache_usage: usage, prefix_queries, prefix_hits }
    }

    #[test]
    fn an_engine_that_says_nothing_any_more_does_not_count_for_ever() {
        // 0 s: two engines are busy ─ 5 s: one says so again ─ 11 s: the other may be gone ─ 16 s: both
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let meter = Meter::default();
        let mut reader = Reader::new(meter.clone(), Arc::default(), start);
        meter.metric(&scheduler(0, 3, 0.2), || start);
        meter.metric(&scheduler(1, u64::MAX, 0.1), || start);
        assert_eq!(reader.read(at(4)).running, Some(u64::MAX), "sums of any size");
        meter.metric(&scheduler(0, 3, 0.2), || at(5));
        assert_eq!(reader.read(at(11)).running, Some(3));
        assert_eq!(reader.read(at(16)).running, None);
    }

    #[test]
    fn rates_are_those_of_the_last_seconds_and_engines_add_up() {
        // looks: |0 s  10 requests, one failed  |1 s  nothing  …  |10 s
        let start = Instant::now();
        let meter = Meter::default();
        let mut reader = Reader::new(meter.clone(), Arc::default(), start);
        for nth in 0..10 {
            let outcome = if nth == 0 { Outcome::Abort } else { Outcome::Stop };
            meter.record(&AccessRecord { outcome, ..record() }, start);
        }
        let labels = Labels { server: "s".into(), model: "m".into(), engine: 0 };
        meter.metric(&Metric::Tokens { labels, tokens: 500, inter_token: None }, || start);
        meter.metric(&scheduler(0, 3, 0.2), || start);
        meter.metric(&scheduler(1, 4, 0.9), || start);
        meter.metric(&scheduler(0, 5, 0.3), || start);
        let figures = reader.read(start + Duration::from_secs(1));
        assert_eq!(
            (figures.requests_rate, figures.failed_rate, figures.tokens_rate),
            (Some(10.0), Some(1.0), Some(500.0))
        );
        assert_eq!((figures.running, figures.waiting, figures.kv_cache_usage), (Some(9), Some(2), Some(0.9)));
        assert_eq!((figures.ttft_p50, figures.lost), (Some(0.0123), 0));
        let rates: Vec<_> =
            (2..11).map(|second| reader.read(start + Duration::from_secs(second)).requests_rate.unwrap()).collect();
        assert_eq!(rates[3].to_string(), "2", "over five seconds");
        assert_eq!(rates.last().unwrap().to_string(), "0");
        assert_eq!(reader.read(start + Duration::from_secs(100)).ttft_p50, None);
    }
}
