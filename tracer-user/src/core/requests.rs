//! Both sides of the requests that are open: HTTP requests, engine requests, and the ids between them.
//!
//! Enters: what each side saw begin and end. Leaves: requests that are over, whole. Invariant: keys are made in the order of beginnings,
//! and one key is one request's for good.

use super::exchanges::Exchanges;
use super::generations::Generations;
use super::join::{Index, Join};
use crate::input::EventNanos;
use crate::model::exchange::Exchange;
use crate::model::generation::Generation;

#[derive(Debug, Default)]
pub(super) struct Requests {
    pub exchanges: Exchanges,
    pub generations: Generations,
    pub index: Index,
    next_key: u64,
}

impl Requests {
    pub(super) fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Bytes that are held of requests that are open.
    pub(super) fn held_bytes(&self) -> usize {
        self.exchanges.held_bytes() + self.generations.held_bytes()
    }

    /// Who holds them, and how many; in no order. An HTTP request holds what its engine requests do.
    pub(super) fn holders(&self) -> impl Iterator<Item = (usize, u64)> {
        let of_engine = |keys: &[u64]| {
            keys.iter().filter_map(|&key| self.generations.get(key)).map(Generation::held_bytes).sum::<usize>()
        };
        let exchanges = self.exchanges.iter().map(move |(key, e)| (e.held_bytes() + of_engine(&e.generations), key));
        let is_alone = |g: &Generation| g.exchange.is_none_or(|key| self.exchanges.get(key).is_none());
        let alone = self.generations.iter().filter(move |(_, g)| is_alone(g)).map(|(key, g)| (g.held_bytes(), key));
        exchanges.chain(alone)
    }

    pub(super) fn join(&mut self) -> Join<'_> {
        Join { exchanges: &mut self.exchanges, generations: &mut self.generations, index: &mut self.index }
    }

    /// An HTTP request began.
    pub(super) fn begin(&mut self, key: u64, exchange: Exchange) {
        if let Some(id) = exchange.chosen_id() {
            self.index.add_exchange(&id, key);
        }
        self.exchanges.insert(key, exchange);
    }

    /// An engine request that was not known. Gives its key.
    pub(super) fn insert(&mut self, generation: Generation) -> u64 {
        let key = self.key();
        self.generations.insert(key, generation, &mut self.index);
        key
    }

    /// An engine request is over: its HTTP request may be, too, or it waits for one.
    pub(super) fn settled(&mut self, key: u64) {
        if let Some(exchange) = self.generations.settle(key, &mut self.index) {
            self.exchanges.touch(exchange);
        }
    }

    /// What ran where something ended is over, with an error.
    pub(super) fn over(&mut self, at: EventNanos, hit: impl Fn(&Generation) -> bool) {
        for key in self.generations.fail(at, hit) {
            self.settled(key);
        }
    }

    /// Takes an HTTP request out, with its engine requests in order.
    pub(super) fn take(&mut self, key: u64) -> Option<(Exchange, Vec<Generation>)> {
        let exchange = self.exchanges.remove(key)?;
        for id in exchange.response_id.iter().cloned().chain(exchange.chosen_id()) {
            self.index.remove_exchange(&id, key);
        }
        let mut generations = Vec::with_capacity(exchange.generations.len());
        for generation in &exchange.generations {
            generations.extend(self.generations.remove(*generation, &mut self.index));
        }
        Some((exchange, generations))
    }

    /// Takes an engine request out that belongs to no HTTP request.
    pub(super) fn take_alone(&mut self, key: u64) -> Option<Generation> {
        self.generations.remove(key, &mut self.index)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::exchanges::tests::completion;
    use crate::engine::ENGINES;

    const ID: &str = "cmpl-a-0-0123abcd";

    fn generation(added: EventNanos) -> Generation {
        let mut generation = Generation::new(Arc::from(ID), ENGINES[0].identify(ID, None), added);
        generation.added = Some(added);
        generation
    }

    #[test]
    fn a_request_is_taken_out_whole_and_its_ids_with_it() {
        // request (chosen id `a`) ─ sent ─ joined ─ taken ─ the same id again finds nobody
        let mut requests = Requests::default();
        let key = requests.key();
        let mut exchange = completion(10);
        exchange.head.request_id = Some("a".into());
        requests.begin(key, exchange);
        let sent = requests.insert(generation(20));
        requests.join().by_id(sent);
        let (exchange, generations) = requests.take(key).expect("it is open");
        assert_eq!((exchange.generations, generations.len()), (vec![sent], 1));
        assert!(requests.take(key).is_none() && requests.take_alone(sent).is_none());
        let again = requests.insert(generation(30));
        requests.join().by_id(again);
        assert_eq!(requests.generations.get(again).and_then(|g| g.exchange), None);
    }

    #[test]
    fn an_engine_request_that_ends_has_its_http_request_looked_at() {
        // joined ─ its engine dies: the HTTP request is touched · one that belongs to none waits
        let mut requests = Requests::default();
        let key = requests.key();
        let mut exchange = completion(10);
        exchange.head.request_id = Some("a".into());
        requests.begin(key, exchange);
        let sent = requests.insert(generation(20));
        requests.join().by_id(sent);
        while requests.exchanges.next_touched().is_some() {}
        requests.over(30, |_| true);
        assert_eq!(requests.exchanges.next_touched(), Some(key));
        let alone = requests.insert(generation(40));
        requests.over(50, |_| true);
        assert_eq!(requests.exchanges.next_touched(), None);
        assert_eq!(requests.generations.unclaimed().map(|(key, _)| key).collect::<Vec<_>>(), [alone]);
    }
}
