//! The HTTP side: what the events of a connection do to the exchanges on it.
//!
//! Enters: HTTP events, disconnects and closes. Leaves: exchanges that begin, learn something, and end. Invariant: each event goes to the
//! request that the connection's slots name for it, or to none.

use super::loss;
use super::scene::Scene;
use super::slots::Slot;
use crate::decode::http::{HttpEvent, RequestHead, What};
use crate::decode::json::{RequestFields, ResponseFields};
use crate::input::{Direction, End, EventNanos, LossStage};
use crate::model::blocked::Blocked;
use crate::model::exchange::{Ending, Exchange};
use crate::output::Metric;

/// Where an HTTP event was seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub at: EventNanos,
    pub process: u32,
    pub end: End,
}

/// What the HTTP side keeps from event to event, besides the connections and the exchanges themselves.
#[derive(Debug, Default)]
pub(super) struct HttpSide {
    /// A response that turned out to answer another request of its connection: the rest of the call's events is that one's.
    rebound: Option<(End, u64, u64)>,
    /// When records of opened and closed connections were last lost.
    edges_lost_at: Option<EventNanos>,
    /// When records of payload were last lost, anywhere.
    data_lost_at: Option<EventNanos>,
}

impl HttpSide {
    /// All events of one call, or of a close.
    pub(super) fn events(&mut self, place: Place, events: &mut Vec<HttpEvent>, scene: &mut Scene<'_>) {
        for event in events.drain(..) {
            self.event(place, event, scene);
        }
        self.rebound = None;
    }

    fn event(&mut self, place: Place, event: HttpEvent, scene: &mut Scene<'_>) {
        let HttpEvent { request, what } = event;
        let Place { at, end, .. } = place;
        let request = match self.rebound {
            Some((of, from, to)) if of == end && from == request && !matches!(what, What::EndUnseen) => to,
            _ => request,
        };
        match what {
            What::Started { place: nth } => {
                if let Some(connection) = scene.connections.get_mut(end) {
                    connection.slots.insert(request, Slot::Started { at, place: nth });
                }
            }
            What::RequestHead(head) => request_head(place, request, head, scene),
            What::RequestComplete(fields) => request_complete(at, end, request, fields, scene),
            What::NoRequest => {
                if let Some(Slot::Exchange(key)) = take_slot(end, request, scene) {
                    scene.requests.exchanges.unseen(key, at);
                }
            }
            What::ResponseHead { status, stream } => {
                if let Some(exchange) = exchange_at(end, request, scene) {
                    exchange.response_head(at, status, stream);
                }
            }
            What::Chunk(fields) => self.response_fields(place, request, fields, scene),
            What::Complete(fields) => self.response_complete(place, request, fields, scene),
            What::EndUnseen => {
                scene.count_loss(LossStage::HttpEnd, 1);
                if let Some(Slot::Exchange(key)) = take_slot(end, request, scene) {
                    scene.requests.exchanges.unseen(key, at);
                }
            }
            // A cut leaves unknown fields at most, and those are null; a loss was counted and marked where it was noticed.
            What::DoneMark | What::Gap(_) => {}
        }
    }

    /// Events of bytes that were lost: what they touch is marked.
    pub(super) fn lost(&mut self, place: Place, events: Vec<HttpEvent>, scene: &mut Scene<'_>) {
        for event in events {
            if let Some(exchange) = exchange_at(place.end, event.request, scene) {
                exchange.lost = true;
            }
            self.event(place, event, scene);
        }
    }

    /// Records of opened and closed connections were lost.
    pub(super) fn edges_lost(&mut self, at: EventNanos) {
        self.edges_lost_at = Some(at);
    }

    /// Records of payload were lost, on connections that the source does not name.
    pub(super) fn data_lost(&mut self, at: EventNanos) {
        self.data_lost_at = Some(at);
    }

    fn response_fields(&mut self, place: Place, request: u64, fields: ResponseFields, scene: &mut Scene<'_>) {
        let Place { at, end, .. } = place;
        let request = self.rightful(place, request, &fields, scene);
        let Some(key) = key_at(end, request, scene) else { return };
        let Some(exchange) = scene.requests.exchanges.get(key) else { return };
        let writes = exchange.content_writes;
        let (text, has_text) = (exchange.last_text, fields.texts > 0);
        let is_known = exchange.response_id.is_some() && exchange.response_model.is_some();
        let exchanges = &mut scene.requests.exchanges;
        // Of one whose response is known a chunk changes nothing that is held, and most of what is held of it lies far away.
        let learned_id = if is_known {
            exchanges.get_mut(key).map(|exchange| exchange.chunk(at, fields))
        } else {
            exchanges.change(key, |exchange| exchange.chunk(at, fields))
        };
        if let Some(before) = text.filter(|_| has_text && !scene.engine.has_messages()) {
            // The pieces of a stream are all that is seen of its tokens; how many they are, the response says at its end. A piece that
            // comes late, behind a later one, says nothing of the time between them.
            let inter_token = at.checked_sub(before).map(|ns| ns as f64 / 1e9);
            let labels = scene.about.labels(0);
            scene.say(Metric::Tokens { labels, tokens: 0, inter_token });
        }
        wrote(key, at, writes, learned_id == Some(true), scene);
    }

    fn response_complete(&mut self, place: Place, request: u64, fields: Option<ResponseFields>, scene: &mut Scene<'_>) {
        let Place { at, end, .. } = place;
        let request = fields.as_ref().map_or(request, |fields| self.rightful(place, request, fields, scene));
        let Some(slot) = take_slot(end, request, scene) else { return };
        // The next one on the connection was waiting for this.
        let next = scene.connections.get(end).and_then(|connection| connection.slots.iter().next());
        if let Some((_, Slot::Exchange(next))) = next
            && let Some(next) = scene.requests.exchanges.get_mut(next)
        {
            next.waited_until = Some(at);
        }
        let Slot::Exchange(key) = slot else { return };
        let Some(exchange) = scene.requests.exchanges.get(key) else { return };
        let writes = exchange.content_writes;
        let learned_id = scene.requests.exchanges.change(key, |exchange| exchange.response_complete(at, fields));
        wrote(key, at, writes, learned_id == Some(true), scene);
        scene.requests.exchanges.touch_ended(key);
    }

    /// The response's id may prove that it answers a later request of the connection: the responses before it were lost whole,
    /// and nothing in the framing says so. Returns whose it is.
    fn rightful(&mut self, place: Place, request: u64, fields: &ResponseFields, scene: &mut Scene<'_>) -> u64 {
        let end = place.end;
        let Some(id) = fields.id.as_deref() else { return request };
        let Some(key) = key_at(end, request, scene) else { return request };
        let exchanges = &mut scene.requests.exchanges;
        let Some(exchange) = exchanges.get(key).filter(|exchange| exchange.response_id.is_none()) else {
            return request;
        };
        if exchange.chosen_id().is_none_or(|chosen| chosen == id) {
            return request;
        }
        let Some(connection) = scene.connections.get(end) else { return request };
        let chose_it = |key| exchanges.get(key).is_some_and(|e| e.chosen_id().as_deref() == Some(id));
        let behind = connection.slots.iter().filter(|&(ordinal, _)| ordinal > request);
        let later = { behind }.find_map(|(ordinal, slot)| match slot {
            Slot::Exchange(other) if chose_it(other) => Some((ordinal, other)),
            _ => None,
        });
        let Some((to, other)) = later else { return request };
        let Some(passed) = scene.connections.rebind(end, request, to) else { return request };
        self.rebound = Some((end, request, to));
        if let Some(exchange) = exchanges.get_mut(key) {
            let head = (exchange.status.take(), exchange.stream.take(), exchange.last_write.take());
            if let Some(other) = exchanges.get_mut(other) {
                (other.status, other.stream, other.last_write) = head;
            }
        }
        for event in passed {
            self.event(place, event, scene);
        }
        to
    }

    /// The connection is over, and with it what was still open on it: by the client, if it was seen leaving, else as `ending` says.
    pub(super) fn close(
        &mut self,
        end: End,
        at: EventNanos,
        moved: Option<(u64, u64)>,
        ending: Ending,
        scene: &mut Scene<'_>,
    ) {
        let Some((process, mut parsed)) = scene.connections.close(end, moved, scene.engine) else { return };
        let place = Place { at, process, end };
        loss::shown(self, place, Direction::In, &mut parsed, scene);
        self.events(place, &mut parsed.http, scene);
        let keys = keys_on(end, scene);
        scene.connections.remove(end);
        let exchanges = &mut scene.requests.exchanges;
        for key in keys {
            let left = exchanges.change(key, |exchange| {
                // Nobody says how much was written, and the response's end may have been in what was lost: then its client's leaving
                // says nothing.
                if moved.is_none() && self.data_lost_at >= exchange.last_write.or(Some(exchange.started)) {
                    exchange.ending.get_or_insert((at, Ending::Unseen));
                }
                // With records missing, the client's leaving may be among them.
                let ending =
                    if exchange.lost || self.edges_lost_at >= Some(exchange.started) { Ending::Unseen } else { ending };
                exchange.close(at, ending);
                exchange.ending.is_some_and(|(_, ending)| ending.is_clients())
            });
            if let Some(is_clients) = left {
                if is_clients {
                    exchanges.client_left(key);
                }
                exchanges.touch_ended(key);
            }
        }
    }
}

/// Bytes of a connection may be missing: what is open on it is marked.
pub(super) fn in_doubt(end: End, scene: &mut Scene<'_>) {
    for key in keys_on(end, scene) {
        if let Some(exchange) = scene.requests.exchanges.get_mut(key) {
            exchange.lost = true;
        }
    }
}

/// A write was refused, or took all again: of the response that is under way, the first on the connection.
pub(super) fn blocked(end: End, change: impl FnOnce(&mut Blocked), scene: &mut Scene<'_>) {
    let first = scene.connections.get(end).and_then(|connection| connection.slots.iter().next());
    if let Some((_, Slot::Exchange(key))) = first {
        scene.requests.exchanges.change(key, |exchange| change(&mut exchange.blocked));
    }
}

/// The peer stopped sending: with a response under way, it left.
pub(super) fn peer_closed(end: End, at: EventNanos, scene: &mut Scene<'_>) {
    for key in keys_on(end, scene) {
        if let Some(exchange) = scene.requests.exchanges.get_mut(key) {
            exchange.disconnected.get_or_insert(at);
            scene.requests.exchanges.client_left(key);
        }
    }
}

fn key_at(end: End, request: u64, scene: &Scene<'_>) -> Option<u64> {
    match scene.connections.get(end)?.slots.get(request)? {
        Slot::Exchange(key) => Some(*key),
        _ => None,
    }
}

fn exchange_at<'a>(end: End, request: u64, scene: &'a mut Scene<'_>) -> Option<&'a mut Exchange> {
    let key = key_at(end, request, scene)?;
    scene.requests.exchanges.get_mut(key)
}

fn take_slot(end: End, request: u64, scene: &mut Scene<'_>) -> Option<Slot> {
    scene.connections.get_mut(end)?.slots.remove(request)
}

/// The exchanges that are open on a connection, in order.
fn keys_on(end: End, scene: &Scene<'_>) -> Vec<u64> {
    let Some(connection) = scene.connections.get(end) else { return Vec::new() };
    let key = |(_, slot)| match slot {
        Slot::Exchange(key) => Some(key),
        _ => None,
    };
    connection.slots.iter().filter_map(key).collect()
}

fn request_head(place: Place, request: u64, head: RequestHead, scene: &mut Scene<'_>) {
    let key = scene.requests.key();
    let Some(connection) = scene.connections.get_mut(place.end) else { return };
    let Some(slot) = connection.slots.get_mut(request) else { return };
    let Slot::Started { at: started, place: nth } = *slot else { return };
    let Some(operation) = scene.engine.operation(&head.method, &head.path) else {
        *slot = Slot::Ignored;
        return;
    };
    *slot = Slot::Exchange(key);
    let mut exchange = Exchange::new(place.end, place.process, started, head, operation);
    exchange.place = nth;
    scene.requests.begin(key, exchange);
}

fn request_complete(at: EventNanos, end: End, request: u64, fields: RequestFields, scene: &mut Scene<'_>) {
    let Some(key) = key_at(end, request, scene) else { return };
    let chosen = scene.requests.exchanges.change(key, |exchange| {
        exchange.request_complete(at, fields);
        exchange.chosen_id()
    });
    if let Some(Some(id)) = chosen {
        scene.requests.index.add_exchange(&id, key);
    }
}

/// Output was written: how long it took since it arrived, what it says of the model, and whose it is.
fn wrote(key: u64, at: EventNanos, writes_before: u64, learned_id: bool, scene: &mut Scene<'_>) {
    let requests = &mut *scene.requests;
    let Some(exchange) = requests.exchanges.get_mut(key) else { return };
    if exchange.content_writes > writes_before {
        let last = |&key: &u64| requests.generations.get(key)?.last;
        let newest = exchange.generations.iter().filter_map(last).map(|t| t.received).max();
        let written = exchange.counted_until.replace(at);
        if let Some(received) = newest.filter(|&r| r <= at && written.is_none_or(|w| r > w)) {
            exchange.detokenize_total = exchange.detokenize_total.saturating_add(at.saturating_sub(received));
        }
    }
    if exchange.status.is_some_and(|s| s < 400)
        && let Some(model) = exchange.response_model.as_deref()
    {
        scene.about.response_model(model);
    }
    if learned_id {
        requests.join().by_response(key);
    }
}

#[cfg(test)]
#[path = "http_side_tests.rs"]
mod tests;
