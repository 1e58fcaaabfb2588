//! A look ahead at the start of a syscall log, for what the log itself does not say: which engine it is of, the offset
//! between the engine's clock and the log's, and the model's name.
//!
//! Enters: the first events. Leaves: facts. The method is [`crate::clock::OffsetBounds`].

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::OffsetBounds;
use crate::decode::http::{Conversation, HttpEvent, Piece, What as Http, may_start_request, starts_request};
use crate::decode::zmtp;
use crate::engine::{self, EngineMessage, LifeEventKind};
use crate::input::{Direction, End, Event, EventNanos, Fact, Server, What};

/// Events that are looked at ahead; at 15,000 syscalls a second of a busy server, the first seconds.
pub const EVENTS: usize = 20_000;
/// … or bytes of payload, since they are held until then.
pub const BYTES: usize = 4 << 20;

/// Connections of each kind that are looked at: an engine has a few.
const CONNECTIONS: usize = 4_096;

/// What the first events tell.
#[derive(Debug, Default)]
pub struct Preroll {
    streams: HashMap<(End, Direction), zmtp::Stream>,
    conversations: HashMap<End, Conversation>,
    added: HashMap<String, EventNanos>,
    bounds: OffsetBounds,
    model: Option<String>,
    /// The engine whose messages were seen.
    engine: Option<&'static str>,
    /// The response being read is an error's.
    failed: bool,
}

impl Preroll {
    /// Looks at one event.
    pub fn look(&mut self, event: &Event) {
        let What::Data { end, direction, len, bytes, starts, .. } = &event.what else { return };
        let may_be = starts_request(bytes) || may_start_request(bytes);
        let has_room = self.conversations.len() < CONNECTIONS;
        if self.model.is_none() && *direction == Direction::In && may_be && has_room {
            self.conversations.entry(*end).or_default();
        }
        if self.model.is_none()
            && let Some(conversation) = self.conversations.get_mut(end)
        {
            let piece = Piece { len: *len, bytes, starts: *starts };
            let (model, failed) = (&mut self.model, &mut self.failed);
            conversation.push(*direction, piece, &mut |event| match event {
                HttpEvent { what: Http::ResponseHead { status, .. }, .. } => *failed = status >= 400,
                HttpEvent { what: Http::Chunk(fields) | Http::Complete(Some(fields)), .. }
                    if !*failed && fields.id.is_some() =>
                {
                    *model = model.take().or(fields.model);
                }
                _ => {}
            });
        }
        let has_room = self.streams.len() < CONNECTIONS && !may_be;
        if !has_room && !self.streams.contains_key(&(*end, *direction)) {
            return;
        }
        let mut messages = Vec::new();
        self.streams.entry((*end, *direction)).or_default().push(*len, bytes, *starts, &mut |m| messages.push(m));
        for message in messages {
            let Some((engine, message)) = engine::decode(&message) else { continue };
            self.engine.get_or_insert(engine.name());
            match message {
                EngineMessage::Add(add) => {
                    // The later sighting (the engine's) is the tighter bound.
                    self.added.insert(add.id, event.at);
                }
                EngineMessage::Outputs(outputs) => {
                    if let Some(stamp) = outputs.timestamp {
                        self.bounds.stamped_before((stamp * 1e9) as i64, event.at);
                    }
                    for output in &outputs.outputs {
                        let queued = output.events.iter().find(|e| e.kind == LifeEventKind::Queued);
                        if let (Some(queued), Some(added)) = (queued, self.added.remove(&output.id)) {
                            self.bounds.stamped_after((queued.at * 1e9) as i64, added);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// The facts, and how far off the clock offset may be, ns. `service`: its name, else the engine's.
    pub fn facts(self, service: Option<&str>) -> (Vec<Fact>, Option<u64>) {
        let engine = engine::by_name(self.engine.unwrap_or_default()).name();
        let server = Server {
            service: service.unwrap_or(engine).to_owned(),
            model: self.model.unwrap_or_default(),
            engine: engine.to_owned(),
            ..Server::default()
        };
        let mut facts = vec![Fact::Server(Arc::new(server))];
        facts.extend(self.bounds.estimate().map(|offset_ns| Fact::EngineClock { offset_ns }));
        (facts, self.bounds.uncertainty())
    }
}

#[cfg(test)]
mod tests {
    use rmp::encode::{write_array_len, write_f64, write_map_len, write_nil, write_sint, write_str};

    use super::*;

    const MS: EventNanos = 1_000_000;
    const ID: &str = "cmpl-a-0-0123abcd";

    fn event(at: EventNanos, end: u64, direction: Direction, bytes: Vec<u8>) -> Event {
        let len = bytes.len() as u64;
        let what = What::Data { end: End(end), direction, len, bytes, starts: true, offset: None };
        Event { at, process: 0, thread: 0, what }
    }

    /// One message of these frames, each under 256 bytes.
    fn zmtp(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            bytes.extend([u8::from(index + 1 < frames.len()), frame.len() as u8]);
            bytes.extend(frame);
        }
        bytes
    }

    /// A request of one token for the engine.
    fn add() -> Vec<u8> {
        let mut body = Vec::new();
        write_array_len(&mut body, 2).expect("a vector");
        write_str(&mut body, ID).expect("a vector");
        write_array_len(&mut body, 1).expect("a vector");
        write_sint(&mut body, 7).expect("a vector");
        zmtp(&[vec![0], body])
    }

    /// Its first output: queued and stamped then, seconds.
    fn outputs(queued: f64, stamp: f64) -> Vec<u8> {
        let mut body = Vec::new();
        write_array_len(&mut body, 4).expect("a vector");
        write_sint(&mut body, 0).expect("a vector");
        write_array_len(&mut body, 1).expect("a vector");
        write_array_len(&mut body, 8).expect("a vector");
        write_str(&mut body, ID).expect("a vector");
        write_array_len(&mut body, 1).expect("a vector");
        write_sint(&mut body, 7).expect("a vector");
        for _ in 2..6 {
            write_nil(&mut body).expect("a vector");
        }
        write_array_len(&mut body, 1).expect("a vector");
        write_map_len(&mut body, 2).expect("a vector");
        write_str(&mut body, "type").expect("a vector");
        write_sint(&mut body, 1).expect("a vector");
        write_str(&mut body, "timestamp").expect("a vector");
        write_f64(&mut body, queued).expect("a vector");
        write_nil(&mut body).expect("a vector");
        write_nil(&mut body).expect("a vector");
        write_f64(&mut body, stamp).expect("a vector");
        zmtp(&[body])
    }

    fn looked(events: &[Event]) -> (Vec<Fact>, Option<u64>) {
        let mut preroll = Preroll::default();
        for event in events {
            preroll.look(event);
        }
        preroll.facts(Some("a"))
    }

    fn model(facts: &[Fact]) -> Option<String> {
        facts.iter().find_map(|fact| match fact {
            Fact::Server(server) => Some(server.model.clone()),
            _ => None,
        })
    }

    fn offset(facts: &[Fact]) -> Option<i64> {
        facts.iter().find_map(|fact| match fact {
            Fact::EngineClock { offset_ns } => Some(*offset_ns),
            _ => None,
        })
    }

    #[test]
    fn the_offset_lies_between_the_request_and_its_first_output() {
        // the log's clock:  request sent 100 ms ─ arrives 110 ──────────── output sent 160
        // the engine's:                              queued 20 ── stamped 50      offset in [90, 110] ms
        let (facts, error) = looked(&[
            event(100 * MS, 1, Direction::Out, add()),
            event(110 * MS, 2, Direction::In, add()),
            event(160 * MS, 3, Direction::Out, outputs(0.020, 0.050)),
        ]);
        assert_eq!((offset(&facts), error), (Some(100 * MS as i64), Some(10 * MS)));
    }

    #[test]
    fn a_log_without_the_engine_s_messages_says_no_offset() {
        assert_eq!((offset(&looked(&[]).0), looked(&[]).1), (None, None));
    }

    #[test]
    fn the_model_is_the_first_response_s_that_is_no_error() {
        // GET /v1/models: no · an error: no · a completion: yes · another one: too late
        let response = |status: u16, body: &str| {
            format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\r\n{body}",
                body.len()
            )
        };
        let exchange = |end: u64, status: u16, body: &str| {
            let request = b"POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}".to_vec();
            let answer = response(status, body).into_bytes();
            [event(1, end, Direction::In, request), event(2, end, Direction::Out, answer)]
        };
        let events = [
            exchange(1, 200, r#"{"object":"list","model":"listed"}"#),
            exchange(2, 404, r#"{"id":"cmpl-x","model":"refused"}"#),
            exchange(3, 200, r#"{"id":"cmpl-a","model":"tiny","choices":[]}"#),
            exchange(4, 200, r#"{"id":"cmpl-b","model":"other","choices":[]}"#),
        ];
        assert_eq!(model(&looked(&events.concat()).0).as_deref(), Some("tiny"));
        assert_eq!(model(&looked(&events[..2].concat()).0).as_deref(), Some(""));
    }

    #[test]
    fn stamps_and_times_of_any_size_break_nothing() {
        for stamp in [0.0, -1e300, 1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            for at in [0, u64::MAX] {
                looked(&[event(at, 1, Direction::Out, add()), event(at, 3, Direction::Out, outputs(stamp, stamp))]);
            }
        }
    }
}
