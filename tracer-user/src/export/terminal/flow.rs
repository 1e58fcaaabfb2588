//! Which finished requests a person is shown: all of them as long as they can be read, else the notable ones.
//!
//! Enters: access records as they come, and the end of every second. Leaves: records to show, and how many were not. Invariant: what is
//! not shown is counted; nothing is held longer than a second. Refused: more than [`MAX_MODELS`] models by themselves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::output::{AccessRecord, Outcome};

/// Lines a second that a person can follow.
const READABLE: usize = 20;
/// At so few a second everything is shown again.
const CALM: usize = 15;
/// Notable requests of a second that are shown, when not all are.
const MAX_NOTABLE: usize = 8;
/// A count of what was not shown stands there after so many seconds at the latest.
const SAY_EVERY: u32 = 10;
/// What a request is compared with: so many of its model before it, once there are a few.
const COMPARED: usize = 256;
const FEW: usize = 20;
/// Slow is more than this many times the median …
const SLOW: f64 = 2.0;
/// … and among the slowest twentieth.
const SLOW_SHARE: f64 = 0.95;
/// Models that are told apart; the rest is one.
const MAX_MODELS: usize = 32;

/// What is to be written.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    Request(Arc<AccessRecord>),
    /// So many were not shown.
    More(u64),
}

/// Times of requests of a model that are over.
#[derive(Debug, Default)]
struct Model {
    ttft: VecDeque<f64>,
    per_token: VecDeque<f64>,
    /// Above these a request is slow; refreshed every second.
    slow: Option<(f64, f64)>,
}

#[derive(Debug, Default)]
pub struct Flow {
    models: BTreeMap<String, Model>,
    /// Requests in this second, and whether only notable ones are shown.
    came: usize,
    is_busy: bool,
    /// Of this second, the more notable first.
    notable: Vec<(f64, u64, Arc<AccessRecord>)>,
    next: u64,
    hidden: u64,
    silent: u32,
}

impl Flow {
    /// A request is over; given back where it is to be shown at once.
    pub fn request(&mut self, record: &Arc<AccessRecord>) -> Option<Shown> {
        self.came += 1;
        let merit = self.merit(record);
        self.is_busy |= self.came > READABLE;
        if !self.is_busy {
            return Some(Shown::Request(Arc::clone(record)));
        }
        self.hidden += 1;
        if merit > 0.0 {
            let at = self.notable.partition_point(|(other, ..)| *other >= merit);
            self.notable.insert(at, (merit, self.next, Arc::clone(record)));
            self.notable.truncate(MAX_NOTABLE);
            self.next += 1;
        }
        None
    }

    /// A second is over: what of it is still to be shown.
    pub fn tick(&mut self) -> Vec<Shown> {
        self.is_busy = self.came > CALM && self.is_busy;
        self.came = 0;
        self.models.values_mut().for_each(Model::refresh);
        let mut notable = std::mem::take(&mut self.notable);
        notable.sort_by_key(|(_, nth, _)| *nth);
        self.hidden -= notable.len() as u64;
        let mut shown: Vec<Shown> = notable.into_iter().map(|(.., record)| Shown::Request(record)).collect();
        self.silent += 1;
        if self.hidden > 0 && (!shown.is_empty() || !self.is_busy || self.silent >= SAY_EVERY) {
            shown.extend(self.end());
        }
        shown
    }

    /// What was not shown, if anything.
    pub fn end(&mut self) -> Option<Shown> {
        self.silent = 0;
        let hidden = std::mem::take(&mut self.hidden);
        (hidden > 0).then_some(Shown::More(hidden))
    }

    /// How notable a request is: 0 for one like the others; more than any time of one for a failed one.
    fn merit(&mut self, record: &AccessRecord) -> f64 {
        let name = record.model.as_deref().unwrap_or_default();
        let is_known = self.models.contains_key(name) || self.models.len() < MAX_MODELS;
        let model = self.models.entry(if is_known { name } else { "" }.to_owned()).or_default();
        let times = (record.seconds.ttft, record.per_token());
        let ratio = model.slow.map_or(0.0, |(ttft, per_token)| {
            let over =
                |time: Option<f64>, limit: f64| time.filter(|time| *time > limit).map_or(0.0, |time| time / limit);
            over(times.0, ttft).max(over(times.1, per_token))
        });
        model.add(times);
        match record.outcome {
            Outcome::Stop | Outcome::Length => ratio,
            _ => f64::INFINITY,
        }
    }
}

impl Model {
    fn add(&mut self, (ttft, per_token): (Option<f64>, Option<f64>)) {
        for (times, time) in [(&mut self.ttft, ttft), (&mut self.per_token, per_token)] {
            let Some(time) = time.filter(|time| time.is_finite()) else { continue };
            if times.len() == COMPARED {
                times.pop_front();
            }
            times.push_back(time);
        }
    }

    fn refresh(&mut self) {
        let limit = |times: &VecDeque<f64>| {
            let mut sorted: Vec<f64> = times.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            let at = |share: f64| sorted.get(((sorted.len() - 1) as f64 * share) as usize).copied();
            if sorted.len() < FEW {
                f64::INFINITY
            } else {
                (at(0.5).unwrap_or(0.0) * SLOW).max(at(SLOW_SHARE).unwrap_or(0.0))
            }
        };
        self.slow = Some((limit(&self.ttft), limit(&self.per_token)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::access_log::tests::record;

    fn took(ttft: f64) -> Arc<AccessRecord> {
        let mut record = record();
        (record.seconds.ttft, record.seconds.e2e) = (Some(ttft), Some(ttft + 1.0));
        Arc::new(record)
    }

    fn failed() -> Arc<AccessRecord> {
        Arc::new(AccessRecord { outcome: Outcome::Error, ..record() })
    }

    #[test]
    fn what_can_be_read_is_all_shown_at_once() {
        // 20 a second, for three seconds
        let mut flow = Flow::default();
        for _ in 0..3 {
            for _ in 0..20 {
                assert!(flow.request(&took(0.1)).is_some());
            }
            assert_eq!(flow.tick(), []);
        }
        assert_eq!(flow.end(), None);
    }

    #[test]
    fn above_that_the_notable_ones_are_shown_and_the_rest_is_counted() {
        // a busy second: 20 lines, then 20 unseen · one with a slow and a failed request among 40 · a calm one
        let mut flow = Flow::default();
        let shown: usize = (0..40).filter_map(|_| flow.request(&took(0.1))).count();
        assert_eq!(shown, 20);
        assert_eq!(flow.tick(), [], "nothing notable: said with what comes");
        let (slow, failed) = (took(0.5), failed());
        for nth in 0..40 {
            let request = match nth {
                7 => Arc::clone(&slow),
                30 => Arc::clone(&failed),
                _ => took(0.1),
            };
            assert_eq!(flow.request(&request), None);
        }
        assert_eq!(flow.tick(), [Shown::Request(slow), Shown::Request(failed), Shown::More(58)]);
        assert_eq!(flow.request(&took(0.1)), None);
        assert_eq!(flow.tick(), [Shown::More(1)]);
        assert!(flow.request(&took(0.1)).is_some(), "calm again");
    }

    #[test]
    fn of_many_failures_in_a_second_some_are_shown_and_all_are_counted() {
        let mut flow = Flow::default();
        let at_once = (0..1000).filter_map(|_| flow.request(&failed())).count();
        let shown = flow.tick();
        assert_eq!((at_once, shown.len()), (READABLE, MAX_NOTABLE + 1));
        assert_eq!(shown.last(), Some(&Shown::More(1000 - 20 - 8)));
    }

    #[test]
    fn a_long_silence_is_broken_by_the_count() {
        let mut flow = Flow::default();
        let mut said = Vec::new();
        for _ in 0..SAY_EVERY {
            for _ in 0..50 {
                let _ = flow.request(&took(0.1));
            }
            said.extend(flow.tick());
        }
        assert_eq!(said, [Shown::More(50 * 10 - 20)]);
    }
}
