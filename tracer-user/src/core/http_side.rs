//! The HTTP side: exchanges on connections, and how they find their engine requests.
//!
//! The response shows an id that the engine requests' ids are made of; that join is exact. Before that, a client-chosen id
//! (`X-Request-Id`) joins as exactly. A request that was cancelled before its response said anything is joined by elimination:
//! same process, same kind, cancelled after it left, in order of arrival.

use super::Core;
use super::connection::{HttpEvent, Parsed, Slot};
use crate::decode::http::{RequestEvent, ResponseEvent};
use crate::engine::ids;
use crate::input::{End, EventNanos};
use crate::model::exchange::{Ending, Exchange};
use crate::model::generation::Generation;
use crate::model::operation::operation_of;
use crate::output::Output;

impl Core {
    pub(super) fn http_event(&mut self, at: EventNanos, process: u32, end: End, event: HttpEvent) {
        match event {
            HttpEvent::Request(event) => self.request_event(at, process, end, event),
            HttpEvent::Response(event) => self.response_event(at, end, event),
        }
    }

    fn request_event(&mut self, at: EventNanos, process: u32, end: End, event: RequestEvent) {
        let Some(connection) = self.connections.get_mut(&end) else { return };
        match event {
            RequestEvent::Started => connection.start(at),
            RequestEvent::Lost => {
                connection.slots.pop_back();
            }
            RequestEvent::Head(head) => {
                let Some(slot) = connection.slots.back_mut() else { return };
                let Slot::Started { at: started, place } = *slot else { return };
                match operation_of(&head.method, &head.path) {
                    None => *slot = Slot::Ignored,
                    Some(operation) => {
                        self.next_key += 1;
                        let key = self.next_key;
                        *slot = Slot::Exchange(key);
                        let mut exchange = Exchange::new(end, process, started, head, operation);
                        exchange.place = place;
                        self.exchanges.insert(key, exchange);
                    }
                }
            }
            RequestEvent::Complete(fields) => {
                let Some(&Slot::Exchange(key)) = connection.slots.back() else { return };
                if let Some(exchange) = self.exchanges.get_mut(&key) {
                    exchange.request_complete(at, fields);
                }
            }
        }
    }

    fn response_event(&mut self, at: EventNanos, end: End, event: ResponseEvent) {
        let Some(connection) = self.connections.get_mut(&end) else { return };
        let complete = matches!(event, ResponseEvent::Complete(_));
        let slot = if complete { connection.slots.pop_front() } else { connection.slots.front().copied() };
        let Some(Slot::Exchange(key)) = slot else { return };
        let Some(exchange) = self.exchanges.get_mut(&key) else { return };
        let (writes, written) = (exchange.content_writes, exchange.last_content);
        let learned_id = exchange.response(at, event);
        if exchange.content_writes > writes {
            let newest =
                exchange.generations.iter().filter_map(|g| self.generations.get(g)?.last).map(|t| t.received).max();
            if let Some(received) = newest.filter(|&r| r <= at && written.is_none_or(|w| r > w)) {
                exchange.detokenize_total += at - received;
            }
        }
        if self.learned_model.is_none() && exchange.status.is_some_and(|s| s < 400) {
            self.learned_model = exchange.response_model.as_deref().map(Into::into);
        }
        if learned_id {
            self.join_by_response(key);
        }
        if complete {
            self.touched.push(key);
        }
    }

    /// The peer stopped sending: with a response under way, it left.
    pub(super) fn peer_closed(&mut self, end: End, at: EventNanos) {
        let Some(connection) = self.connections.get(&end) else { return };
        for slot in connection.slots.clone() {
            if let Slot::Exchange(key) = slot
                && let Some(exchange) = self.exchanges.get_mut(&key)
            {
                exchange.disconnected.get_or_insert(at);
            }
        }
    }

    /// The connection is over, and with it what was still open on it.
    pub(super) fn close(&mut self, end: End, at: EventNanos, _out: &mut Vec<Output>) {
        let Some(mut connection) = self.connections.remove(&end) else { return };
        self.oddities.desyncs += connection.desyncs();
        let mut parsed = Parsed::default();
        connection.closed(&mut parsed);
        let slots = connection.slots.clone();
        if !parsed.http.is_empty() {
            let process = connection.process;
            self.connections.insert(end, connection);
            for event in parsed.http {
                self.http_event(at, process, end, event);
            }
            self.connections.remove(&end);
        }
        for slot in slots {
            let Slot::Exchange(key) = slot else { continue };
            if let Some(exchange) = self.exchanges.get_mut(&key) {
                exchange.disconnect(at);
                self.touched.push(key);
            }
        }
    }

    /// The response showed its id: take every engine request that it is made of.
    fn join_by_response(&mut self, key: u64) {
        let Some(exchange) = self.exchanges.get(&key) else { return };
        let Some(id) = exchange.response_id.clone() else { return };
        let process = exchange.process;
        let mine: Vec<u64> = self
            .generations
            .iter()
            .filter(|(_, g)| g.exchange.is_none() && same(g.process, process) && ids::belongs(&g.external_id, &id))
            .map(|(&k, _)| k)
            .collect();
        for generation in mine {
            self.join(key, generation);
        }
    }

    /// A new engine request: an exchange may already be known to be its.
    pub(super) fn join_by_id(&mut self, generation_key: u64) {
        let Some(generation) = self.generations.get(&generation_key) else { return };
        if generation.exchange.is_some() {
            return;
        }
        let external = generation.external_id.as_str();
        let added = generation.added.unwrap_or(generation.seen);
        let wants = |exchange: &Exchange| {
            let by_response = exchange.response_id.as_deref().is_some_and(|id| ids::belongs(external, id));
            by_response || exchange.chosen_id().is_some_and(|id| ids::belongs(external, &id))
        };
        // The same chosen id twice at once: the request that has none yet and came first.
        let found = self
            .exchanges
            .iter()
            .filter(|(_, e)| e.ending.is_none() && same(e.process, generation.process))
            .filter(|(_, e)| e.complete.is_some_and(|at| at <= added) && wants(e))
            .min_by_key(|&(&key, e)| (self.has_other_request(e, generation), key));
        if let Some((&key, _)) = found {
            self.join(key, generation_key);
        }
    }

    /// Whether the exchange already has an engine request that is not a sibling (another sample or prompt) of this one.
    fn has_other_request(&self, exchange: &Exchange, generation: &Generation) -> bool {
        exchange.generations.iter().filter_map(|k| self.generations.get(k)).any(|g| {
            g.external_id == generation.external_id && ids::split_child(&g.id).0 == ids::split_child(&generation.id).0
        })
    }

    pub(super) fn join(&mut self, exchange_key: u64, generation_key: u64) {
        let Some(exchange) = self.exchanges.get_mut(&exchange_key) else { return };
        let Some(generation) = self.generations.get_mut(&generation_key) else { return };
        generation.exchange = Some(exchange_key);
        exchange.generations.push(generation_key);
        // Prompts in order, the samples of each in order; sent order breaks ties.
        let generations = &self.generations;
        let response = exchange.response_id.clone().or_else(|| exchange.chosen_id()).unwrap_or_default();
        exchange.generations.sort_by_key(|k| {
            let place =
                generations.get(k).map(|g| (ids::index_of(&g.external_id, &response), ids::split_child(&g.id).0));
            (place, *k)
        });
        self.touched.push(exchange_key);
    }

    /// A cancelled engine request without an exchange: the request of its kind that a client left unanswered. Where closes are
    /// not seen, `unanswered` says that enough time passed for an answer: what has none was left.
    pub(super) fn join_cancelled(&mut self, generation_key: u64, unanswered: bool) {
        let Some(generation) = self.generations.get(&generation_key) else { return };
        let (Some(added), Some(_)) = (generation.added, generation.aborted()) else { return };
        let arrival = generation.arrival.unwrap_or(added).min(added);
        let found = self
            .exchanges
            .iter()
            .filter(|(_, e)| e.response_id.is_none() && e.chosen_id().is_none() && same(e.process, generation.process))
            .filter(|(_, e)| e.generations.is_empty() || self.is_sibling(e, generation))
            .filter(|(_, e)| {
                let left = e.disconnected.is_some() || matches!(e.ending, Some((_, Ending::Disconnected)));
                left || (unanswered && e.status.is_none())
            })
            .filter(|(_, e)| e.kind_fits(&generation.external_id) && e.complete.is_some_and(|at| at <= arrival))
            .filter(|(_, e)| e.fields.max_tokens.is_none_or(|n| generation.max_tokens.is_none_or(|m| n == m)))
            .min_by_key(|&(&key, e)| (!self.is_sibling(e, generation), key));
        if let Some((&key, _)) = found {
            self.join(key, generation_key);
        }
    }

    /// Another sample or prompt of a request that the exchange already has.
    fn is_sibling(&self, exchange: &Exchange, generation: &Generation) -> bool {
        let base = ids::client_id(&generation.external_id);
        exchange
            .generations
            .iter()
            .filter_map(|k| self.generations.get(k))
            .any(|g| ids::client_id(&g.external_id) == base)
    }

    /// Whether an exchange is open that may turn out to be this generation's.
    pub(super) fn may_still_join(&self, generation: &Generation) -> bool {
        let added = generation.added.unwrap_or(generation.seen);
        self.exchanges.values().any(|e| {
            e.response_id.is_none()
                && same(e.process, generation.process)
                && e.kind_fits(&generation.external_id)
                && e.complete.is_some_and(|at| at <= added)
        })
    }
}

/// The same process, as far as it is known.
fn same(a: u32, b: u32) -> bool {
    a == b || a == 0 || b == 0
}
