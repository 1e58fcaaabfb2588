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
        if self.model.is_none() && *direction == Direction::In && may_be {
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
