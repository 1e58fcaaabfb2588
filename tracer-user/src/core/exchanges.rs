//! The HTTP requests that are open, and which of them something happened to.
//!
//! Enters: exchanges, and word of their ends. Leaves: keys of those to look at. Invariant: what is in `ended`, `left` or `unnamed` is open.

use std::collections::{BTreeMap, BTreeSet};

use super::generations::Generations;
use crate::input::EventNanos;
use crate::model::exchange::{Ending, Exchange};
use crate::model::generation::Generation;
use crate::model::record::last_sign;

/// How long a response may be quiet after its engine requests are over, before its end counts as missed, ns.
const OVERDUE: EventNanos = 60_000_000_000;
/// A client that takes nothing for longer than this is not waited for: the record of its taking may have been lost unseen.
const LONGEST_BLOCKED: EventNanos = 3_600_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Exchanges {
    /// Boxed: nodes of a tree that grows at one end stay half empty.
    open: BTreeMap<u64, Box<Exchange>>,
    /// Bytes that they hold.
    held: usize,
    /// Those that ended and are not finished.
    ended: BTreeSet<u64>,
    /// Those whose client left before their response showed an id.
    left: BTreeSet<u64>,
    /// Those that are whole and whose response showed no id: by process and kind, in the order in which they were whole.
    unnamed: BTreeMap<Kind, BTreeSet<(EventNanos, u64)>>,
    /// Those that something happened to since they were last looked at.
    touched: Vec<u64>,
}

/// The process of a request, and what its response ids start with.
type Kind = (u32, Option<&'static str>);

/// Where a request is found while nothing but its kind and its time tells whose it is: when it was whole.
fn unnamed(exchange: &Exchange) -> Option<(Kind, EventNanos)> {
    let complete = exchange.complete.filter(|_| exchange.response_id.is_none())?;
    Some(((exchange.process, exchange.operation.id_prefix), complete))
}

impl Exchanges {
    pub(super) fn insert(&mut self, key: u64, exchange: Exchange) {
        self.moved(key, None, unnamed(&exchange));
        self.held += exchange.held_bytes();
        self.open.insert(key, Box::new(exchange));
    }

    pub(super) fn get(&self, key: u64) -> Option<&Exchange> {
        self.open.get(&key).map(Box::as_ref)
    }

    /// Bytes that are held of them.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
    }

    /// To change anything but when it was whole, its response's id and what is held of it.
    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut Exchange> {
        self.open.get_mut(&key).map(Box::as_mut)
    }

    /// Changes anything.
    pub(super) fn change<R>(&mut self, key: u64, change: impl FnOnce(&mut Exchange) -> R) -> Option<R> {
        let exchange = self.open.get_mut(&key)?;
        let (before, held) = (unnamed(exchange), exchange.held_bytes());
        let changed = change(exchange);
        let after = unnamed(exchange);
        self.held = (self.held + exchange.held_bytes()).saturating_sub(held);
        self.moved(key, before, after);
        Some(changed)
    }

    /// It is found elsewhere among the unnamed, or no longer.
    fn moved(&mut self, key: u64, before: Option<(Kind, EventNanos)>, after: Option<(Kind, EventNanos)>) {
        if before == after {
            return;
        }
        if let Some((kind, complete)) = before
            && let Some(keys) = self.unnamed.get_mut(&kind)
        {
            keys.remove(&(complete, key));
            if keys.is_empty() {
                self.unnamed.remove(&kind);
            }
        }
        if let Some((kind, complete)) = after {
            self.unnamed.entry(kind).or_default().insert((complete, key));
        }
    }

    /// Those of a process (0: any) that were whole by `until`, whose response showed no id, and that may have asked for the engine request
    /// `external` by its kind. What is looked through are the kinds, which are few.
    pub(super) fn unnamed_of(
        &self,
        process: u32,
        external: &str,
        until: EventNanos,
    ) -> impl Iterator<Item = (u64, &Exchange)> {
        let fits = move |&((of, prefix), _): &(&Kind, _)| {
            same(*of, process) && prefix.is_none_or(|prefix| external.starts_with(prefix))
        };
        let keys = self.unnamed.iter().filter(fits).flat_map(move |(_, keys)| keys.range(..=(until, u64::MAX)));
        keys.filter_map(|&(_, key)| Some((key, self.get(key)?)))
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<Exchange> {
        self.ended.remove(&key);
        self.left.remove(&key);
        let exchange = *self.open.remove(&key)?;
        self.moved(key, unnamed(&exchange), None);
        self.held = self.held.saturating_sub(exchange.held_bytes());
        Some(exchange)
    }

    /// In the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Exchange)> {
        self.open.iter().map(|(&key, exchange)| (key, &**exchange))
    }

    /// Records of refused writes may be missing.
    pub(super) fn edges_lost(&mut self) {
        for exchange in self.open.values_mut() {
            exchange.blocked.loses_sight();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Something happened to it: it is looked at soon.
    pub(super) fn touch(&mut self, key: u64) {
        self.touched.push(key);
    }

    pub(super) fn next_touched(&mut self) -> Option<u64> {
        self.touched.pop()
    }

    /// It ended: it is looked at soon, and until it is finished.
    pub(super) fn touch_ended(&mut self, key: u64) {
        self.ended.insert(key);
        self.touched.push(key);
    }

    pub(super) fn ended(&self) -> Vec<u64> {
        self.ended.iter().copied().collect()
    }

    /// Its client left: a cancelled engine request that belongs to nobody may be its.
    pub(super) fn client_left(&mut self, key: u64) {
        let Some(exchange) = self.open.get(&key) else { return };
        if exchange.response_id.is_none() && exchange.chosen_id().is_none() {
            self.left.insert(key);
        }
    }

    /// It has what it was waiting for.
    pub(super) fn not_left(&mut self, key: u64) {
        self.left.remove(&key);
    }

    /// Those whose client left, with nothing that names their engine requests.
    pub(super) fn left(&self) -> impl Iterator<Item = (u64, &Exchange)> {
        self.left.iter().filter_map(|&key| Some((key, self.get(key)?)))
    }

    /// Its end was not seen, and later bytes show that it is over.
    pub(super) fn unseen(&mut self, key: u64, at: EventNanos) {
        if let Some(exchange) = self.open.get_mut(&key) {
            exchange.noticed = at;
            exchange.ending.get_or_insert((exchange.last_write.unwrap_or(at), Ending::Unseen));
            self.touch_ended(key);
        }
    }

    /// Where closes are not seen: all engine requests cancelled, then quiet, means that the client left.
    pub(super) fn mark_cancelled(&mut self, generations: &Generations, now: EventNanos, quiet: EventNanos) {
        for (&key, exchange) in &mut self.open {
            if exchange.ending.is_some() || exchange.generations.is_empty() {
                continue;
            }
            let aborts = exchange.generations.iter().map(|&g| generations.get(g).and_then(Generation::aborted));
            let Some(aborted) = aborts.collect::<Option<Vec<_>>>().and_then(|at| at.into_iter().max()) else {
                continue;
            };
            let last = exchange.last_write.map_or(aborted, |at| at.max(aborted));
            if now.saturating_sub(last) >= quiet {
                exchange.ending = Some((exchange.disconnected.unwrap_or(aborted), Ending::Cancelled));
                self.ended.insert(key);
            }
        }
    }

    /// Responses whose end was missed on a connection that then stays idle: nothing was written for long, though the engine is
    /// done with all of it. Gives how many.
    pub(super) fn mark_overdue(&mut self, generations: &Generations, now: EventNanos) -> u64 {
        let mut overdue = 0;
        for (&key, exchange) in &mut self.open {
            let Some(written) = exchange.last_write.filter(|_| exchange.ending.is_none()) else { continue };
            if now.saturating_sub(written) < OVERDUE || exchange.generations.is_empty() {
                continue;
            }
            // Its client takes nothing: the rest waits in the server, for as long as that likes.
            if exchange.blocked.since().is_some_and(|since| now.saturating_sub(since) < LONGEST_BLOCKED) {
                continue;
            }
            let over = |&g: &u64| {
                generations.get(g).is_none_or(|g| g.settled() && last_sign(g).saturating_add(OVERDUE) <= now)
            };
            if exchange.generations.iter().all(over) {
                exchange.ending = Some((written, Ending::Unseen));
                exchange.noticed = now;
                self.ended.insert(key);
                overdue += 1;
            }
        }
        overdue
    }
}

/// The same process, as far as it is known.
pub(super) fn same(a: u32, b: u32) -> bool {
    a == b || a == 0 || b == 0
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::decode::http::RequestHead;
    use crate::engine::ENGINES;
    use crate::input::End;

    const SECOND: EventNanos = 1_000_000_000;

    /// A completion that was read whole at `at`.
    pub(in crate::core) fn completion(at: EventNanos) -> Exchange {
        let head = RequestHead { method: "POST".into(), path: "/v1/completions".into(), ..RequestHead::default() };
        let operation = ENGINES[0].operation(&head.method, &head.path).expect("it generates");
        let mut exchange = Exchange::new(End(1), 7, at, head, operation);
        exchange.complete = Some(at);
        exchange
    }

    /// An engine request that was cancelled at `at`.
    fn cancelled(at: EventNanos) -> Generation {
        let mut generation =
            Generation::new(Arc::from("cmpl-a-0-0123abcd"), ENGINES[0].identify("cmpl-a-0-0123abcd", None), 1);
        generation.abort(at);
        generation
    }

    #[test]
    fn a_client_counts_as_left_once_its_requests_are_cancelled_and_it_is_quiet() {
        // cancelled at 10 s ─ 4 s ─ nothing yet ─ 1 s ─ it left
        let (mut exchanges, mut generations) = (Exchanges::default(), Generations::default());
        let mut exchange = completion(1);
        exchange.generations.push(5);
        exchanges.insert(1, exchange);
        generations.insert(5, cancelled(10 * SECOND), &mut super::super::join::Index::default());
        exchanges.mark_cancelled(&generations, 14 * SECOND, 5 * SECOND);
        assert!(exchanges.ended().is_empty());
        exchanges.mark_cancelled(&generations, 15 * SECOND, 5 * SECOND);
        assert_eq!(exchanges.ended(), [1]);
        assert_eq!(exchanges.get(1).and_then(|e| e.ending), Some((10 * SECOND, Ending::Cancelled)));
    }

    #[test]
    fn a_response_whose_end_was_missed_is_over_a_minute_after_its_last_write() {
        // cancelled at 10 s, written at 20 s ─ 59 s ─ nothing yet ─ 1 s ─ over, as of 20 s
        let (mut exchanges, mut generations) = (Exchanges::default(), Generations::default());
        let mut exchange = completion(1);
        exchange.generations.push(5);
        exchange.last_write = Some(20 * SECOND);
        exchanges.insert(1, exchange);
        generations.insert(5, cancelled(10 * SECOND), &mut super::super::join::Index::default());
        assert_eq!(exchanges.mark_overdue(&generations, 79 * SECOND), 0);
        // Refused at 30, taken at 90.
        exchanges.change(1, |exchange| exchange.blocked.begins(30 * SECOND));
        assert_eq!(exchanges.mark_overdue(&generations, 85 * SECOND), 0);
        exchanges.change(1, |exchange| exchange.blocked.ends(90 * SECOND));
        assert_eq!(exchanges.mark_overdue(&generations, 90 * SECOND), 1);
        assert_eq!(exchanges.mark_overdue(&generations, 95 * SECOND), 0, "once");
        assert_eq!(exchanges.get(1).and_then(|e| e.ending), Some((20 * SECOND, Ending::Unseen)));
    }

    #[test]
    fn a_client_that_left_is_of_interest_while_nothing_names_its_engine_requests() {
        let mut exchanges = Exchanges::default();
        exchanges.insert(1, completion(1));
        let mut named = completion(2);
        named.response_id = Some("cmpl-b".into());
        exchanges.insert(2, named);
        exchanges.client_left(1);
        exchanges.client_left(2);
        assert_eq!(exchanges.left().map(|(key, _)| key).collect::<Vec<_>>(), [1]);
        exchanges.remove(1);
        assert_eq!(exchanges.left().count(), 0);
    }

    #[test]
    fn one_that_is_whole_is_found_by_its_kind_until_its_response_shows_an_id() {
        // starts ─ whole 20 ─ whole again 30 (a hostile stream) ─ its id is shown │ another one whole 25, which leaves
        let mut exchanges = Exchanges::default();
        let found = |exchanges: &Exchanges, process, external: &str, until| {
            exchanges.unnamed_of(process, external, until).map(|(key, _)| key).collect::<Vec<_>>()
        };
        let mut coming = completion(10);
        coming.complete = None;
        exchanges.insert(1, coming);
        assert_eq!(found(&exchanges, 7, "cmpl-a", u64::MAX), [] as [u64; 0]);
        exchanges.change(1, |exchange| exchange.complete = Some(20));
        assert_eq!((found(&exchanges, 7, "cmpl-a", 20), found(&exchanges, 7, "cmpl-a", 19)), (vec![1], vec![]));
        assert_eq!((found(&exchanges, 8, "cmpl-a", 20), found(&exchanges, 7, "chatcmpl-a", 20)), (vec![], vec![]));
        assert_eq!(found(&exchanges, 0, "cmpl-a", 20), [1], "of any process");
        exchanges.change(1, |exchange| exchange.complete = Some(30));
        exchanges.insert(2, completion(25));
        assert_eq!((found(&exchanges, 7, "cmpl-a", 29), found(&exchanges, 7, "cmpl-a", 30)), (vec![2], vec![2, 1]));
        exchanges.change(1, |exchange| exchange.response_id = Some("cmpl-a".into()));
        assert_eq!(found(&exchanges, 7, "cmpl-a", u64::MAX), [2]);
        exchanges.remove(2);
        assert!(exchanges.unnamed.is_empty(), "nothing is kept of those that left");
    }
}
