//! Requests that are over.
//!
//! Enters: records, and trees behind them. Leaves: requests by id and in the order of their ends. Invariant: a request is found by every id
//! that it is known by, until it is dropped. The oldest go first; those that did not go well, or took longer than nineteen of twenty that
//! ended before them, are kept longer: in a quarter of the room that is theirs.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::{Limits, Request, size};
use crate::output::{AccessRecord, Outcome, SpanId, Trace, TraceId};

/// Records whose trees have not come: they come together, so that more than a few are an error somewhere.
const MAX_WAITING: usize = 64;
/// Shortest beginning of a trace id that is looked for, digits.
const SHORTEST_ID: usize = 8;
/// What a request's time is compared with: so many that ended before it.
const COMPARED: usize = 256;

#[derive(Debug)]
struct Kept {
    request: Request,
    bytes: usize,
}

#[derive(Debug, Default)]
pub struct Requests {
    /// By a number that grows with every end.
    kept: BTreeMap<u64, Kept>,
    next: u64,
    /// Numbers in the order of their ends: of those that went well, and of those worth a longer stay.
    plain: Queue,
    notable: Queue,
    by_id: HashMap<Arc<str>, VecDeque<u64>>,
    by_trace: BTreeSet<(TraceId, u64)>,
    /// Requests that are kept of each model.
    models: BTreeMap<Arc<str>, u64>,
    waiting: VecDeque<Arc<AccessRecord>>,
    /// Times of those that ended last, ns.
    times: VecDeque<u64>,
    dropped: u64,
}

/// Requests of a kind.
#[derive(Debug, Default)]
struct Queue {
    numbers: VecDeque<u64>,
    bytes: usize,
}

impl Requests {
    pub fn record(&mut self, record: Arc<AccessRecord>) {
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(record);
    }

    /// A request's tree, where `most` bytes are enough for it; its root comes first, or it is refused.
    pub fn trace(&mut self, trace: Arc<Trace>, most: usize) {
        let Some(root) = trace.spans.first() else { return };
        let (id, took) = ((root.trace_id, root.span_id), root.end_ns.saturating_sub(root.start_ns));
        let record = self.take_record(id);
        let bytes = size::of_trace(&trace) + record.as_deref().map_or(0, size::of_record);
        if bytes > most {
            self.dropped += 1;
            return;
        }
        let number = self.next;
        self.next += 1;
        let is_notable = self.is_slow(took) || !matches!(trace.merit.outcome, Some(Outcome::Stop | Outcome::Length));
        if self.times.len() == COMPARED {
            self.times.pop_front();
        }
        self.times.push_back(took);
        let queue = if is_notable { &mut self.notable } else { &mut self.plain };
        queue.numbers.push_back(number);
        queue.bytes += bytes;
        self.by_trace.insert((id.0, number));
        for name in names(record.as_deref()) {
            self.by_id.entry(name).or_default().push_back(number);
        }
        if let Some(model) = model(record.as_deref()) {
            if let Some(count) = self.models.get_mut(model) {
                *count += 1;
            } else {
                self.models.insert(model.into(), 1);
            }
        }
        self.kept.insert(number, Kept { request: Request { trace, record }, bytes });
    }

    fn take_record(&mut self, id: (TraceId, SpanId)) -> Option<Arc<AccessRecord>> {
        let at = self.waiting.iter().rposition(|record| (record.trace_id, record.span_id) == id)?;
        self.waiting.remove(at)
    }

    /// Among the slowest twentieth of those that ended before it.
    fn is_slow(&self, took: u64) -> bool {
        let slower = self.times.iter().filter(|time| **time >= took).count();
        self.times.len() >= 20 && slower * 20 < self.times.len()
    }

    /// Drops what is too old at `now_ns`, and the oldest until `bytes` are left.
    pub fn shrink(&mut self, bytes: usize, now_ns: u64, limits: &Limits) {
        let plain_room = bytes.saturating_sub(self.notable.bytes.min(bytes / 4));
        let notable_room = bytes.saturating_sub(self.plain.bytes.min(plain_room)).max(bytes / 4);
        while self.oldest(false).is_some_and(|end| end.saturating_add(limits.age_ns) < now_ns)
            || self.plain.bytes > plain_room
        {
            self.drop_oldest(false);
        }
        while self.oldest(true).is_some_and(|end| end.saturating_add(limits.notable_age_ns) < now_ns)
            || self.notable.bytes > notable_room
        {
            self.drop_oldest(true);
        }
    }

    /// When the oldest of a kind ended, unix ns.
    fn oldest(&self, is_notable: bool) -> Option<u64> {
        let queue = if is_notable { &self.notable } else { &self.plain };
        let kept = self.kept.get(queue.numbers.front()?)?;
        kept.request.trace.spans.first().map(|root| root.end_ns)
    }

    fn drop_oldest(&mut self, is_notable: bool) {
        let queue = if is_notable { &mut self.notable } else { &mut self.plain };
        let Some(number) = queue.numbers.pop_front() else { return };
        let Some(kept) = self.kept.remove(&number) else { return };
        queue.bytes = queue.bytes.saturating_sub(kept.bytes);
        self.dropped += 1;
        if let Some(root) = kept.request.trace.spans.first() {
            self.by_trace.remove(&(root.trace_id, number));
        }
        if let Some(model) = model(kept.request.record.as_deref())
            && let Some(count) = self.models.get_mut(model)
        {
            *count -= 1;
            if *count == 0 {
                self.models.remove(model);
            }
        }
        for name in names(kept.request.record.as_deref()) {
            if let Some(numbers) = self.by_id.get_mut(&name) {
                // They grow, and the oldest goes first: a client may use one id for all of its requests.
                if let Ok(at) = numbers.binary_search(&number) {
                    numbers.remove(at);
                }
                if numbers.is_empty() {
                    self.by_id.remove(&name);
                }
            }
        }
    }

    pub fn count(&self) -> usize {
        self.kept.len()
    }

    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(|model| &**model)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Request> {
        self.kept.values().map(|kept| &kept.request)
    }

    pub fn of_trace(&self, trace: TraceId) -> impl Iterator<Item = &Request> {
        let numbers = self.by_trace.range((trace, 0)..=(trace, u64::MAX)).map(|key| key.1);
        numbers.filter_map(|number| self.get(number))
    }

    /// Newest first.
    pub fn find(&self, id: &str) -> Vec<&Request> {
        let mut numbers: Vec<u64> = self.by_id.get(id).into_iter().flatten().copied().collect();
        if let Some((from, to)) = trace_ids(id) {
            numbers.extend(self.by_trace.range((from, 0)..=(to, u64::MAX)).map(|key| key.1));
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().rev().filter_map(|number| self.get(number)).collect()
    }

    fn get(&self, number: u64) -> Option<&Request> {
        self.kept.get(&number).map(|kept| &kept.request)
    }

    pub fn held_bytes(&self) -> usize {
        self.plain.bytes + self.notable.bytes
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

fn model(record: Option<&AccessRecord>) -> Option<&str> {
    record?.model.as_deref()
}

/// What a request is asked for by, besides its trace id.
fn names(record: Option<&AccessRecord>) -> impl Iterator<Item = Arc<str>> {
    let own = record.and_then(|record| record.request_id.as_deref());
    let engine = record.into_iter().flat_map(|record| &record.generations).map(|of| of.engine_request_id.as_str());
    let mut names: Vec<Arc<str>> = own.into_iter().chain(engine).map(Arc::from).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter()
}

/// The trace ids that begin like `text`, from the first to the last; `None` where it is no beginning of one, or too short.
fn trace_ids(text: &str) -> Option<(TraceId, TraceId)> {
    if !(SHORTEST_ID..=32).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let padded = |fill: &str| u128::from_str_radix(&format!("{text}{}", fill.repeat(32 - text.len())), 16).ok();
    Some((TraceId(padded("0")?.to_be_bytes()), TraceId(padded("f")?.to_be_bytes())))
}
