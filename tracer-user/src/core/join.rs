//! Which engine requests belong to which exchange: by look-up of their ids, or of their kind and time, never by search.
//!
//! Enters: ids as they become known. Leaves: joined pairs. The response shows an id that the engine requests' ids are made of; that join
//! is exact. Before that, an id that the client chose (`X-Request-Id`) joins as exactly. A request that was cancelled before its
//! response said anything is joined by elimination: same process, same kind, cancelled after it left, in order of arrival.
//!
//! An engine request stands under every response id that it may belong to ([`Identity::responses`]), an exchange under the id that its
//! client chose and the one its response shows; keys come in the order in which they were made.

use std::collections::HashMap;

use super::exchanges::{Exchanges, same};
use super::generations::Generations;
use crate::engine::Identity;
use crate::model::exchange::Exchange;
use crate::model::generation::Generation;

/// Keys by response id.
#[derive(Debug, Default)]
pub(super) struct Index {
    exchanges: HashMap<String, Vec<u64>>,
    generations: HashMap<String, Vec<u64>>,
}

impl Index {
    pub(super) fn add_exchange(&mut self, id: &str, key: u64) {
        let keys = self.exchanges.entry(id.to_owned()).or_default();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    pub(super) fn remove_exchange(&mut self, id: &str, key: u64) {
        remove(&mut self.exchanges, id, key);
    }

    pub(super) fn add_generation(&mut self, ids: &Identity, key: u64) {
        for (id, _) in &ids.responses {
            self.generations.entry(id.clone()).or_default().push(key);
        }
    }

    pub(super) fn remove_generation(&mut self, ids: &Identity, key: u64) {
        for (id, _) in &ids.responses {
            remove(&mut self.generations, id, key);
        }
    }

    /// Exchanges that the engine request with these ids may be of.
    pub(super) fn exchanges_of(&self, ids: &Identity) -> Vec<u64> {
        let of = |(id, _): &(String, _)| self.exchanges.get(id);
        let mut keys: Vec<u64> = ids.responses.iter().filter_map(of).flatten().copied().collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Engine requests that the response with this id may be made of.
    pub(super) fn generations_of(&self, response: &str) -> Vec<u64> {
        self.generations.get(response).cloned().unwrap_or_default()
    }
}

fn remove(map: &mut HashMap<String, Vec<u64>>, id: &str, key: u64) {
    if let Some(keys) = map.get_mut(id) {
        keys.retain(|&k| k != key);
        if keys.is_empty() {
            map.remove(id);
        }
    }
}

/// Both sides, and the ids between them.
pub(super) struct Join<'a> {
    pub exchanges: &'a mut Exchanges,
    pub generations: &'a mut Generations,
    pub index: &'a mut Index,
}

impl Join<'_> {
    /// The response showed its id: take every engine request that it is made of.
    pub(super) fn by_response(&mut self, key: u64) {
        let Some(exchange) = self.exchanges.get(key) else { return };
        let Some(id) = exchange.response_id.clone() else { return };
        let process = exchange.process;
        self.index.add_exchange(&id, key);
        for generation in self.index.generations_of(&id) {
            let free = |g: &Generation| g.exchange.is_none() && same(g.process, process);
            if self.generations.get(generation).is_some_and(free) {
                self.join(key, generation);
            }
        }
    }

    /// A new engine request: an exchange may already be known to be its.
    pub(super) fn by_id(&mut self, key: u64) {
        let Some(generation) = self.generations.get(key) else { return };
        if generation.exchange.is_some() || self.generations.has_lead(key) {
            return;
        }
        let added = generation.added.unwrap_or(generation.seen);
        // The same chosen id twice at once: the request that has none yet and came first. A client may leave between the two.
        let is_over = |e: &Exchange| e.ending.is_some();
        let left_early = |e: &Exchange| {
            e.ending.is_some_and(|(_, ending)| ending.is_clients()) && !self.has_other_request(e, generation)
        };
        let found = self
            .index
            .exchanges_of(&generation.identity)
            .into_iter()
            .filter_map(|key| Some((key, self.exchanges.get(key)?)))
            .filter(|(_, e)| (!is_over(e) || left_early(e)) && same(e.process, generation.process))
            .filter(|(_, e)| e.complete.is_some_and(|at| at <= added))
            .min_by_key(|&(key, e)| (self.has_other_request(e, generation), is_over(e), key));
        if let Some((exchange, _)) = found {
            self.join(exchange, key);
        }
    }

    /// A cancelled engine request without an exchange: the request of its kind that a client left unanswered. Where closes are
    /// not seen, `unanswered` says that enough time passed for an answer: what has none was left.
    pub(super) fn cancelled(&mut self, key: u64, unanswered: bool) {
        let Some(generation) = self.generations.get(key).filter(|g| g.exchange.is_none()) else { return };
        let (Some(added), Some(_)) = (generation.added, generation.aborted()) else { return };
        let arrival = generation.arrival.unwrap_or(added).min(added);
        let fits = |e: &Exchange| {
            e.response_id.is_none()
                && e.chosen_id().is_none()
                && same(e.process, generation.process)
                && (e.generations.is_empty() || self.is_sibling(e, generation))
                && (e.disconnected.is_some()
                    || e.ending.is_some_and(|(_, ending)| ending.is_clients())
                    || (unanswered && e.status.is_none()))
                && e.kind_fits(&generation.identity.external)
                && e.complete.is_some_and(|at| at <= arrival)
                && e.fields.max_tokens.is_none_or(|n| generation.max_tokens.is_none_or(|m| n == m))
        };
        let candidates: Box<dyn Iterator<Item = (u64, &Exchange)>> = if unanswered {
            Box::new(self.exchanges.unnamed_of(generation.process, &generation.identity.external, arrival))
        } else {
            Box::new(self.exchanges.left())
        };
        let found = candidates.filter(|(_, e)| fits(e)).min_by_key(|&(key, e)| (!self.is_sibling(e, generation), key));
        if let Some((exchange, _)) = found {
            self.join(exchange, key);
            // Further samples of it may come.
            self.exchanges.client_left(exchange);
        }
    }

    fn join(&mut self, exchange_key: u64, generation_key: u64) {
        if self.generations.get(generation_key).is_none() {
            return;
        }
        let Some(exchange) = self.exchanges.get_mut(exchange_key) else { return };
        self.generations.claimed(generation_key, exchange_key);
        exchange.generations.push(generation_key);
        if exchange.generations.len() > 1 {
            // Prompts in order, the samples of each in order; sent order breaks ties.
            let response = exchange.response_id.clone().or_else(|| exchange.chosen_id()).unwrap_or_default();
            exchange.generations.sort_by_key(|&key| {
                let place = self.generations.get(key).map(|g| (g.identity.prompt_of(&response), g.identity.sample));
                (place, key)
            });
        }
        self.exchanges.not_left(exchange_key);
        self.exchanges.touch(exchange_key);
    }

    /// Whether the exchange already has an engine request that is not a sibling (another sample or prompt) of this one.
    fn has_other_request(&self, exchange: &Exchange, generation: &Generation) -> bool {
        let ids = &generation.identity;
        self.of(exchange).any(|g| g.identity.external == ids.external && g.identity.sample == ids.sample)
    }

    /// Another sample or prompt of a request that the exchange already has.
    fn is_sibling(&self, exchange: &Exchange, generation: &Generation) -> bool {
        self.of(exchange).any(|g| g.identity.client == generation.identity.client)
    }

    fn of(&self, exchange: &Exchange) -> impl Iterator<Item = &Generation> {
        exchange.generations.iter().filter_map(|&key| self.generations.get(key))
    }

    /// Whether an exchange is open that may turn out to be this engine request's.
    pub(super) fn may_still_come(&self, generation: &Generation) -> bool {
        let added = generation.added.unwrap_or(generation.seen);
        self.exchanges.unnamed_of(generation.process, &generation.identity.external, added).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::exchanges::tests::completion;
    use crate::engine::ENGINES;
    use crate::model::exchange::Ending;

    #[test]
    fn an_engine_request_is_found_by_every_id_its_response_may_show() {
        let mut index = Index::default();
        index.add_generation(&ids("cmpl-a-0"), 1);
        index.add_generation(&ids("cmpl-a-1"), 2);
        index.add_generation(&ids("chatcmpl-job-7"), 3);
        assert_eq!(index.generations_of("cmpl-a"), [1, 2]);
        assert_eq!(index.generations_of("chatcmpl-job-7"), [3]);
        assert_eq!(index.generations_of("chatcmpl-job"), [] as [u64; 0]);
        index.remove_generation(&ids("cmpl-a-0"), 1);
        assert_eq!(index.generations_of("cmpl-a"), [2]);
    }

    #[test]
    fn exchanges_come_in_their_order_and_once() {
        let mut index = Index::default();
        index.add_exchange("cmpl-x", 9);
        index.add_exchange("cmpl-x", 4);
        index.add_exchange("cmpl-x-0", 4);
        assert_eq!(index.exchanges_of(&ids("cmpl-x-0")), [4, 9]);
        index.remove_exchange("cmpl-x", 9);
        index.remove_exchange("cmpl-x", 4);
        assert_eq!(index.exchanges_of(&ids("cmpl-x-0")), [4]);
    }

    fn ids(id: &str) -> Identity {
        ENGINES[0].identify(id, None)
    }

    #[derive(Default)]
    struct Sides {
        exchanges: Exchanges,
        generations: Generations,
        index: Index,
    }

    impl Sides {
        fn join(&mut self) -> Join<'_> {
            Join { exchanges: &mut self.exchanges, generations: &mut self.generations, index: &mut self.index }
        }

        /// Sent at `added`, in the process of [`completion`].
        fn sent(&mut self, key: u64, id: &str, added: u64) {
            let mut generation = Generation::new(Arc::from(id), ids(id), added);
            generation.process = 7;
            generation.added = Some(added);
            self.generations.insert(key, generation, &mut self.index);
        }

        fn of(&self, exchange: u64) -> &[u64] {
            self.exchanges.get(exchange).map_or(&[], |exchange| &exchange.generations)
        }
    }

    #[test]
    fn a_responses_id_takes_all_its_engine_requests_in_order() {
        // request ─ sample 1 sent, sample 0 sent, another request's ─ the response shows `cmpl-a`
        let mut sides = Sides::default();
        sides.exchanges.insert(1, completion(10));
        for (key, id) in [(2, "1_cmpl-a-0-0123abcd"), (3, "0_cmpl-a-0-0123abcd"), (4, "cmpl-b-0-0123abcd")] {
            sides.sent(key, id, 20);
            sides.join().by_id(key);
        }
        assert_eq!(sides.of(1), [] as [u64; 0], "nothing names them yet");
        sides.exchanges.change(1, |exchange| exchange.response_id = Some("cmpl-a".into()));
        sides.join().by_response(1);
        assert_eq!(sides.of(1), [3, 2]);
        assert_eq!(sides.exchanges.next_touched(), Some(1));
    }

    #[test]
    fn a_cancelled_request_goes_to_the_first_client_that_left_before_it_was_sent() {
        // requests read at 10, 11 and 30 ─ all clients leave ─ one engine request was sent at 20 and is cancelled
        let mut sides = Sides::default();
        for (key, at) in [(1, 10), (2, 11), (3, 30)] {
            let mut exchange = completion(at);
            exchange.disconnected = Some(50);
            sides.exchanges.insert(key, exchange);
            sides.exchanges.client_left(key);
        }
        sides.sent(4, "cmpl-a-0-0123abcd", 20);
        sides.join().cancelled(4, false);
        assert_eq!(sides.of(1), [] as [u64; 0], "it is not cancelled");
        if let Some(generation) = sides.generations.get_mut(4) {
            generation.abort(60);
        }
        sides.join().cancelled(4, false);
        assert_eq!((sides.of(1), sides.of(2), sides.of(3)), (&[4][..], &[][..], &[][..]));
    }

    #[test]
    fn a_client_that_chose_an_id_and_left_before_its_request_was_sent_has_it_all_the_same() {
        // requests with the id `a`, read at 10 and 11 ─ the first's client leaves at 15 ─ sent at 20 and 21
        for (left, has) in [(false, [&[3][..], &[4][..]]), (true, [&[4][..], &[3][..]])] {
            let mut sides = Sides::default();
            for (key, at) in [(1, 10), (2, 11)] {
                let mut exchange = completion(at);
                exchange.fields.request_id = Some("a".into());
                exchange.ending = (left && key == 1).then_some((15, Ending::Disconnected));
                sides.exchanges.insert(key, exchange);
                sides.index.add_exchange("cmpl-a", key);
            }
            for (key, at) in [(3, 20), (4, 21)] {
                sides.sent(key, &format!("cmpl-a-0-0123abc{key}"), at);
                sides.join().by_id(key);
            }
            assert_eq!([sides.of(1), sides.of(2)], has, "one that is there comes before one that left");
        }
    }

    #[test]
    fn an_open_request_that_was_read_later_cannot_be_its() {
        let mut sides = Sides::default();
        sides.exchanges.insert(1, completion(30));
        sides.sent(2, "cmpl-a-0-0123abcd", 20);
        sides.sent(3, "cmpl-b-0-0123abcd", 40);
        let may = |sides: &mut Sides, key| {
            let generation = sides.generations.get(key).expect("sent").clone();
            sides.join().may_still_come(&generation)
        };
        assert!(!may(&mut sides, 2) && may(&mut sides, 3));
    }
}
