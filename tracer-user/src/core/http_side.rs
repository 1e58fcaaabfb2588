//! The HTTP side: what the events of a connection do to the exchanges on it.
//!
//! Enters: HTTP events, disconnects and closes. Leaves: exchanges that begin, learn something, and end.

use super::Core;
use super::connections::Slot;
use crate::decode::http::{HttpEvent, RequestHead, What};
use crate::decode::json::{RequestFields, ResponseFields};
use crate::input::{Direction, End, EventNanos, LossStage};
use crate::model::exchange::{Ending, Exchange};
use crate::output::{Metric, Output};

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
                if let Some(connection) = self.connections.get_mut(end) {
                    connection.slots.insert(request, Slot::Started { at, place: nth });
                }
            }
            What::RequestHead(head) => self.request_head(place, request, head),
            What::RequestComplete(fields) => self.request_complete(at, end, request, fields),
            What::NoRequest => {
                if let Some(Slot::Exchange(key)) = self.take_slot(end, request) {
                    self.exchanges.unseen(key, at);
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
                    self.exchanges.unseen(key, at);
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
        match self.connections.get(end)?.slots.get(&request)? {
            Slot::Exchange(key) => self.exchanges.get_mut(*key),
            _ => None,
        }
    }

    fn key_at(&self, end: End, request: u64) -> Option<u64> {
        match self.connections.get(end)?.slots.get(&request)? {
            Slot::Exchange(key) => Some(*key),
            _ => None,
        }
    }

    fn take_slot(&mut self, end: End, request: u64) -> Option<Slot> {
        self.connections.get_mut(end)?.slots.remove(&request)
    }

    fn request_head(&mut self, place: Place, request: u64, head: RequestHead) {
        let key = self.key();
        let Some(connection) = self.connections.get_mut(place.end) else { return };
        let Some(slot) = connection.slots.get_mut(&request) else { return };
        let Slot::Started { at: started, place: nth } = *slot else { return };
        let Some(operation) = self.engine.operation(&head.method, &head.path) else {
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
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        exchange.request_complete(at, fields);
        if let Some(id) = exchange.chosen_id() {
            self.index.add_exchange(&id, key);
        }
    }

    fn response_fields(&mut self, place: Place, request: u64, fields: ResponseFields, out: &mut Vec<Output>) {
        let Place { at, end, .. } = place;
        let request = self.rightful(place, request, &fields, out);
        let Some(key) = self.key_at(end, request) else { return };
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let writes = exchange.content_writes;
        let (text, has_text) = (exchange.last_text, fields.texts > 0);
        let learned_id = exchange.chunk(at, fields);
        if let Some(before) = text.filter(|_| has_text && !self.engine.has_messages()) {
            // The pieces of a stream are all that is seen of its tokens; how many they are, the response says at its end.
            let inter_token = Some((at - before) as f64 / 1e9);
            out.push(Output::Metric(Metric::Tokens { labels: self.about.labels(0), tokens: 0, inter_token }));
        }
        self.wrote(key, at, writes, learned_id);
    }

    fn response_complete(&mut self, place: Place, request: u64, fields: Option<ResponseFields>, out: &mut Vec<Output>) {
        let Place { at, end, .. } = place;
        let request = fields.as_ref().map_or(request, |fields| self.rightful(place, request, fields, out));
        let Some(slot) = self.take_slot(end, request) else { return };
        // The next one on the connection was waiting for this.
        let next = self.connections.get(end).and_then(|connection| connection.slots.values().next().copied());
        if let Some(Slot::Exchange(next)) = next
            && let Some(next) = self.exchanges.get_mut(next)
        {
            next.waited_until = Some(at);
        }
        let Slot::Exchange(key) = slot else { return };
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        let writes = exchange.content_writes;
        let learned_id = exchange.response_complete(at, fields);
        self.wrote(key, at, writes, learned_id);
        self.exchanges.touch_ended(key);
    }

    /// Output was written: how long it took since it arrived, what it says of the model, and whose it is.
    fn wrote(&mut self, key: u64, at: EventNanos, writes_before: u64, learned_id: bool) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if exchange.content_writes > writes_before {
            let newest =
                exchange.generations.iter().filter_map(|&g| self.generations.get(g)?.last).map(|t| t.received).max();
            let written = exchange.counted_until.replace(at);
            if let Some(received) = newest.filter(|&r| r <= at && written.is_none_or(|w| r > w)) {
                exchange.detokenize_total += at - received;
            }
        }
        if exchange.status.is_some_and(|s| s < 400)
            && let Some(model) = exchange.response_model.as_deref()
        {
            self.about.response_model(model);
        }
        if learned_id {
            self.join().by_response(key);
        }
    }

    /// The response's id may prove that it answers a later request of the connection: the responses before it were lost whole,
    /// and nothing in the framing says so. Returns whose it is.
    fn rightful(&mut self, place: Place, request: u64, fields: &ResponseFields, out: &mut Vec<Output>) -> u64 {
        let end = place.end;
        let Some(id) = fields.id.as_deref() else { return request };
        let Some(key) = self.key_at(end, request) else { return request };
        let Some(exchange) = self.exchanges.get(key).filter(|exchange| exchange.response_id.is_none()) else {
            return request;
        };
        if exchange.chosen_id().is_none_or(|chosen| chosen == id) {
            return request;
        }
        let Some(connection) = self.connections.get(end) else { return request };
        let chose_it = |key: &u64| self.exchanges.get(*key).is_some_and(|e| e.chosen_id().as_deref() == Some(id));
        let later = connection.slots.range(request + 1..).find_map(|(&ordinal, slot)| match slot {
            Slot::Exchange(other) if chose_it(other) => Some((ordinal, *other)),
            _ => None,
        });
        let Some((to, other)) = later else { return request };
        let Some(passed) = self.connections.rebind(end, request, to) else { return request };
        self.rebound = Some((end, request, to));
        if let Some(exchange) = self.exchanges.get_mut(key) {
            let head = (exchange.status.take(), exchange.stream.take(), exchange.last_write.take());
            if let Some(other) = self.exchanges.get_mut(other) {
                (other.status, other.stream, other.last_write) = head;
            }
        }
        for event in passed {
            self.http_event(place, event, out);
        }
        to
    }

    /// The peer stopped sending: with a response under way, it left.
    pub(super) fn peer_closed(&mut self, end: End, at: EventNanos) {
        let Some(connection) = self.connections.get(end) else { return };
        let keys: Vec<u64> = exchanges_of(connection.slots.values()).collect();
        for key in keys {
            if let Some(exchange) = self.exchanges.get_mut(key) {
                exchange.disconnected.get_or_insert(at);
                self.exchanges.client_left(key);
            }
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
        let Some((process, mut parsed)) = self.connections.close(end, moved, self.engine) else { return };
        let place = Place { at, process, end };
        self.losses(place, Direction::In, &mut parsed, out);
        for event in parsed.http.drain(..) {
            self.http_event(place, event, out);
        }
        let Some(connection) = self.connections.remove(end) else { return };
        for key in exchanges_of(connection.slots.values()) {
            if let Some(exchange) = self.exchanges.get_mut(key) {
                // With records missing, the client's leaving may be among them.
                let ending =
                    if exchange.lost || self.edges_lost_at >= Some(exchange.started) { Ending::Unseen } else { ending };
                exchange.close(at, ending);
                if exchange.ending.is_some_and(|(_, ending)| ending.is_clients()) {
                    self.exchanges.client_left(key);
                }
                self.exchanges.touch_ended(key);
            }
        }
    }
}

fn exchanges_of<'a>(slots: impl Iterator<Item = &'a Slot>) -> impl Iterator<Item = u64> {
    slots.filter_map(|slot| match slot {
        Slot::Exchange(key) => Some(*key),
        _ => None,
    })
}
