//! What is open now, as a picture that outlives the moment.
//!
//! Enters: views of the cores. Leaves: plain rows. Refused: more than [`MAX_OPEN`] requests of a server; how many there are is said.

use crate::core::view::{EngineNow, Stage, View};
use crate::input::EventNanos;

/// Requests of a server that are in a picture; the oldest. A large node's engines run 8,192.
pub const MAX_OPEN: usize = 10_000;

/// All servers at a moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Now {
    pub servers: Vec<ServerNow>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServerNow {
    /// [`crate::input::Server::instance`].
    pub server: String,
    /// The newest event's time, on the event clock.
    pub now: EventNanos,
    /// Oldest first.
    pub open: Vec<OpenRequest>,
    /// Requests that are open, in the picture or not.
    pub open_count: usize,
    pub engines: Vec<EngineNow>,
}

/// A request that is open. Times on the event clock.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenRequest {
    pub id: Option<String>,
    pub route: Option<String>,
    pub model: Option<String>,
    pub stage: Stage,
    /// First byte read, or when it was first heard of.
    pub since: EventNanos,
    /// When it was sent to the engine; when it was scheduled first, and gave its first token, once the engine said so.
    pub sent: Option<EventNanos>,
    pub scheduled: Option<EventNanos>,
    pub first_token: Option<EventNanos>,
    pub preemptions: u64,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: u64,
    pub engine: Option<u32>,
    pub lost: bool,
}

impl Now {
    pub fn of<'a>(views: impl Iterator<Item = View<'a>>) -> Self {
        Self { servers: views.map(server).collect() }
    }
}

fn server(view: View<'_>) -> ServerNow {
    let mut open = Vec::new();
    let mut open_count = 0;
    for row in view.open() {
        open_count += 1;
        if open.len() < MAX_OPEN {
            open.push(OpenRequest {
                id: row.id,
                route: row.route.map(str::to_owned),
                model: row.model.map(str::to_owned),
                stage: row.stage,
                since: row.since,
                sent: row.sent,
                scheduled: row.scheduled,
                first_token: row.first_token,
                preemptions: row.preemptions,
                prompt_tokens: row.prompt_tokens,
                output_tokens: row.output_tokens,
                engine: row.engine,
                lost: row.lost,
            });
        }
    }
    ServerNow { server: view.server().instance(), now: view.now(), open, open_count, engines: view.engines().collect() }
}
