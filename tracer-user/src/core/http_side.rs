//! The HTTP side: exchanges on connections, and how they find their engine requests.
//!
//! The response shows an id that the engine requests' ids are made of; that join is exact. Before that, a client-chosen id
//! (`X-Request-Id`) joins as exactly. A request that was cancelled before its response said anything is joined by elimination:
//! same process, same kind, cancelled after it left, in order of arrival.

use super::Core;
use super::connection::{Parsed, Slot};
use crate::decode::http::{HttpEvent, RequestHead, What};
use crate::decode::json::{RequestFields, ResponseFields};
use crate::engine::ids;
use crate::input::{Direction, End, EventNanos, LossStage};
use crate::model::exchange::{Ending, Exchange};
use crate::model::generation::Generation;
use crate::model::operation::operation_of;
use crate::output::Output;

/// Where an HTTP event was seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub at: EventNanos,
    pub process: u32,
    pub end: End,
}

impl Core {
    pub(super) fn http_event(&mut self, place: Place, event: HttpEvent, out: &mut Vec<Output>) {
        let HttpEvent { request, what } = event;
        let Place { at, end, .. } = place;
        let request = match self.rebound {
            Some((of, from, to)) if of == end && from == request && !matches!(what, What::EndUnseen) => to,
            _ => request,
        };
        match what {
            What::Started { place: nth } => {
                if let Some(connection) = self.connections.get_mut(&end) {
                    connection.slots.insert(request, Slot::Started { at, place: nth });
                }
            }
            What::RequestHead(head) => self.request_head(place, request, head),
            What::RequestComplete(fields) => self.request_complete(at, end, request, fields),
            What::NoRequest => {
                if let Some(Slot::Exchange(key)) = self.take_slot(end, request) {
                    self.unseen(key, at);
                }
            }
            What::ResponseHead { status, stream } => {
                if let Some(exchange) = self.exchange_at(end, request) {
                    exchange.response_head(at, status, stream);
                }
            }
            What::Chunk(fields) => self.response_fields(place, request, fields, out),
            What::Complete(fields) => self.response_complete(place, request, fields, out),
            What::EndUnseen => {
                self.count_loss(LossStage::HttpEnd, 1, out);
                if let Some(Slot::Exchange(key)) = self.take_slot(end, request) {
                    self.unseen(key, at);
                }
            }
            // A cut leaves unknown fields at most, and those are null; a loss was counted and marked where it was noticed.
            What::DoneMark | What::Gap(_) => {}
        }
    }

    /// Events of bytes that were lost: what they touch is marked.
    pub(super) fn http_lost(&mut self, place: Place, events: Vec<HttpEvent>, out: &mut Vec<Output>) {
        for event in events {
            if let Some(exchange) = self.exchange_at(place.end, event.request) {
                exchange.lost = true;
            }
            self.http_event(place, event, out);
        }
    }

    fn exchange_at(&mut self, end: End, request: u64) -> Option<&mut Exchange> {
        match self.connections.get(&end)?.slots.get(&request)? {
            Slot::Exchange(key) => self.exchanges.get_mut(key),
            _ => None,
        }
    }

    fn key_at(&self, end: End, request: u64) -> Option<u64> {
        match self.connections.get(&end)?.slots.get(&request)? {
            Slot::Exchange(key) => Some(*key),
            _ => None,
        }
    }

    fn take_slot(&mut self, end: End, request: u64) -> Option<Slot> {
        self.connections.get_mut(&end)?.slots.remove(&request)
    }

    fn request_head(&mut self, place: Place, request: u64, head: RequestHead) {
        let key = self.key();
        let Some(connection) = self.connections.get_mut(&place.end) else { return };
        let Some(slot) = connection.slots.get_mut(&request) else { return };
        let Slot::Started { at: started, place: nth } = *slot else { return };
        let Some(operation) = operation_of(&head.method, &head.path) else {
            *slot = Slot::Ignored;
            return;
        };
        *slot = Slot::Exchange(key);
        let mut exchange = Exchange::new(place.end, place.process, started, head, operation);
        exchange.place = nth;
        if let Some(id) = exchange.chosen_id() {
            self.index.add_exchange(&id, key);
        }
        self.exchanges.insert(key, exchange);
    }

    fn request_complete(&mut self, at: EventNanos, end: End, request: u64, fields: RequestFields) {
        let Some(key) = self.key_at(end, request) else { return };
        let Some(exchange) = self.exchanges.get_mut(&key) else { return };
        exchange.request_complete(at, fields);
        if let Some(id) = exchange.chosen_id() {
            self.index.add_exchange(&id, key);
        }
    }

    fn response_fields(&mut self, place: Place, request: u64, fields: ResponseFields, out: &mut Vec<Output>) {
        let Place { at, end, .. } = place;
        let request = self.rightful(place, request, &fields, out);
        let Some(key) = self.key_at(end, request) else { return };
        let Some(exchange) = self.exchanges.get_mut(&key) else { return };
        let writes = exchange.content_writes;
        let learned_id = exchange.chunk(at, fields);
        self.wrote(key, at, writes, learned_id);
    }

    fn response_complete(&mut self, place: Place, request: u64, fields: Option<ResponseFields>, out: &mut Vec<Output>) {
        let Place { at, end, .. } = place;
        let request = fields.as_ref().map_or(request, |fields| self.rightful(place, request, fields, out));
        let Some(slot) = self.take_slot(end, request) else { return };
        // The next one on the connection was waiting for this.
        let next = self.connections.get(&end).and_then(|connection| connection.slots.values().next().copied());
        if let Some(Slot::Exchange(next)) = next
            && let Some(next) = self.exchanges.get_mut(&next)
        {
            next.waited_until = Some(at);
        }
        let Slot::Exchange(key) = slot else { return };
        let Some(exchange) = self.exchanges.get_mut(&key) else { return };
        let writes = exchange.content_writes;
        let learned_id = exchange.response_complete(at, fields);
        self.wrote(key, at, writes, learned_id);
        self.touch_ended(key);
    }

    /// Output was written: how long it took since it arrived, what it says of the model, and whose it is.
    fn wrote(&mut self, key: u64, at: EventNanos, writes_before: u64, learned_id: bool) {
        let Some(exchange) = self.exchanges.get_mut(&key) else { return };
        if exchange.content_writes > writes_before {
            let newest =
                exchange.generations.iter().filter_map(|g| self.generations.get(g)?.last).map(|t| t.received).max();
            let written = exchange.counted_until.replace(at);
            if let Some(received) = newest.filter(|&r| r <= at && written.is_none_or(|w| r > w)) {
                exchange.detokenize_total += at - received;
            }
        }
        if self.learned_model.is_none() && exchange.status.is_some_and(|s| s < 400) {
            self.learned_model = exchange.response_model.as_deref().map(Into::into);
            self.model_may_be_known();
        }
        if learned_id {
            self.join_by_response(key);
        }
    }

    /// The response's id may prove that it answers a later request of the connection: the responses before it were lost whole,
    /// and nothing in the framing says so. Returns whose it is.
    fn rightful(&mut self, place: Place, request: u64, fields: &ResponseFields, out: &mut Vec<Output>) -> u64 {
        let end = place.end;
        let Some(id) = fields.id.as_deref() else { return request };
        let Some(key) = self.key_at(end, request) else { return request };
        let Some(exchange) = self.exchanges.get(&key).filter(|exchange| exchange.response_id.is_none()) else {
            return request;
        };
        if exchange.chosen_id().is_none_or(|chosen| chosen == id) {
            return request;
        }
        let Some(connection) = self.connections.get_mut(&end) else { return request };
        let chose_it = |key: &u64| self.exchanges.get(key).is_some_and(|e| e.chosen_id().as_deref() == Some(id));
        let later = connection.slots.range(request + 1..).find_map(|(&ordinal, slot)| match slot {
            Slot::Exchange(other) if chose_it(other) => Some((ordinal, *other)),
            _ => None,
        });
        let Some((to, other)) = later else { return request };
        let mut passed = Vec::new();
        let is_rebound = connection
            .conversation()
            .is_some_and(|conversation| conversation.rebind(request, to, &mut |event| passed.push(event)));
        if !is_rebound {
            return request;
        }
        self.rebound = Some((end, request, to));
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            let head = (exchange.status.take(), exchange.stream.take(), exchange.last_write.take());
            if let Some(other) = self.exchanges.get_mut(&other) {
                (other.status, other.stream, other.last_write) = head;
            }
        }
        for event in passed {
            self.http_event(place, event, out);
        }
        to
    }

    /// The response's end was not seen, and later bytes show that it is over.
    fn unseen(&mut self, key: u64, at: EventNanos) {
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.noticed = at;
            exchange.ending.get_or_insert((exchange.last_write.unwrap_or(at), Ending::Unseen));
            self.touch_ended(key);
        }
    }

    fn touch_ended(&mut self, key: u64) {
        self.ended.insert(key);
        self.touched.push(key);
    }

    /// The peer stopped sending: with a response under way, it left.
    pub(super) fn peer_closed(&mut self, end: End, at: EventNanos) {
        let Some(connection) = self.connections.get(&end) else { return };
        let keys: Vec<u64> = exchanges_of(connection.slots.values()).collect();
        for key in keys {
            if let Some(exchange) = self.exchanges.get_mut(&key) {
                exchange.disconnected.get_or_insert(at);
                self.client_left(key);
            }
        }
    }

    /// A client left: a cancelled engine request that belongs to nobody may be its.
    fn client_left(&mut self, key: u64) {
        let Some(exchange) = self.exchanges.get(&key) else { return };
        if exchange.response_id.is_none() && exchange.chosen_id().is_none() {
            self.left.insert(key);
        }
    }

    /// The connection is over, and with it what was still open on it: by the client, if it was seen leaving, else as `ending` says.
    pub(super) fn close(
        &mut self,
        end: End,
        at: EventNanos,
        moved: Option<(u64, u64)>,
        ending: Ending,
        out: &mut Vec<Output>,
    ) {
        let Some(connection) = self.connections.get_mut(&end) else { return };
        let process = connection.process;
        self.held = self.held.saturating_sub(connection.held_bytes());
        let mut parsed = Parsed::default();
        connection.closed(moved, &mut parsed);
        let place = Place { at, process, end };
        self.losses(place, Direction::In, &mut parsed, out);
        for event in parsed.http.drain(..) {
            self.http_event(place, event, out);
        }
        let Some(connection) = self.connections.remove(&end) else { return };
        for key in exchanges_of(connection.slots.values()) {
            if let Some(exchange) = self.exchanges.get_mut(&key) {
                // With records missing, the client's leaving may be among them.
                let ending =
                    if exchange.lost || self.edges_lost_at >= Some(exchange.started) { Ending::Unseen } else { ending };
                exchange.close(at, ending);
                if exchange.ending.is_some_and(|(_, ending)| ending.is_clients()) {
                    self.client_left(key);
                }
                self.touch_ended(key);
            }
        }
    }

    /// The response showed its id: take every engine request that it is made of.
    fn join_by_response(&mut self, key: u64) {
        let Some(exchange) = self.exchanges.get(&key) else { return };
        let Some(id) = exchange.response_id.clone() else { return };
        let process = exchange.process;
        self.index.add_exchange(&id, key);
        for generation in self.index.generations_of(&id) {
            let free = |g: &Generation| g.exchange.is_none() && same(g.process, process);
            if self.generations.get(&generation).is_some_and(free) {
                self.join(key, generation);
            }
        }
    }

    /// A new engine request: an exchange may already be known to be its.
    pub(super) fn join_by_id(&mut self, generation_key: u64) {
        let Some(generation) = self.generations.get(&generation_key) else { return };
        if generation.exchange.is_some() || self.lead_of.contains_key(&generation_key) {
            return;
        }
        let added = generation.added.unwrap_or(generation.seen);
        // The same chosen id twice at once: the request that has none yet and came first.
        let found = self
            .index
            .exchanges_of(&generation.external_id)
            .into_iter()
            .filter_map(|key| Some((key, self.exchanges.get(&key)?)))
            .filter(|(_, e)| e.ending.is_none() && same(e.process, generation.process))
            .filter(|(_, e)| e.complete.is_some_and(|at| at <= added))
            .min_by_key(|&(key, e)| (self.has_other_request(e, generation), key));
        if let Some((key, _)) = found {
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
        self.unclaimed.remove(&generation_key);
        self.left.remove(&exchange_key);
        exchange.generations.push(generation_key);
        if exchange.generations.len() > 1 {
            // Prompts in order, the samples of each in order; sent order breaks ties.
            let generations = &self.generations;
            let response = exchange.response_id.clone().or_else(|| exchange.chosen_id()).unwrap_or_default();
            exchange.generations.sort_by_key(|k| {
                let place =
                    generations.get(k).map(|g| (ids::index_of(&g.external_id, &response), ids::split_child(&g.id).0));
                (place, *k)
            });
        }
        self.touched.push(exchange_key);
    }

    /// A cancelled engine request without an exchange: the request of its kind that a client left unanswered. Where closes are
    /// not seen, `unanswered` says that enough time passed for an answer: what has none was left.
    pub(super) fn join_cancelled(&mut self, generation_key: u64, unanswered: bool) {
        let Some(generation) = self.generations.get(&generation_key).filter(|g| g.exchange.is_none()) else { return };
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
                && e.kind_fits(&generation.external_id)
                && e.complete.is_some_and(|at| at <= arrival)
                && e.fields.max_tokens.is_none_or(|n| generation.max_tokens.is_none_or(|m| n == m))
        };
        let candidates: Box<dyn Iterator<Item = u64>> =
            if unanswered { Box::new(self.exchanges.keys().copied()) } else { Box::new(self.left.iter().copied()) };
        let found = candidates
            .filter_map(|key| Some((key, self.exchanges.get(&key)?)))
            .filter(|(_, e)| fits(e))
            .min_by_key(|&(key, e)| (!self.is_sibling(e, generation), key));
        if let Some((key, _)) = found {
            self.join(key, generation_key);
            // Further samples of it may come.
            self.client_left(key);
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

fn exchanges_of<'a>(slots: impl Iterator<Item = &'a Slot>) -> impl Iterator<Item = u64> {
    slots.filter_map(|slot| match slot {
        Slot::Exchange(key) => Some(*key),
        _ => None,
    })
}

/// The same process, as far as it is known.
fn same(a: u32, b: u32) -> bool {
    a == b || a == 0 || b == 0
}
