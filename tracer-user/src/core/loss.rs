//! What was lost, and whom it touched.
//!
//! Enters: losses that the source tells, jumps in a stream's count, framing that was lost. Leaves: a count by stage
//! ([`Output::Lost`]) and marks on the requests that may be hit. Where the source counts the bytes of its streams a loss of payload
//! shows by itself, on the connection it is on; only a source that does not count makes everything that is open doubtful.

use super::Core;
use super::connections::Slot;
use super::decoder::Parsed;
use super::http_side::Place;
use crate::input::{Direction, LossStage, Lost};
use crate::output::Output;

impl Core {
    /// Counts a loss that the core itself met.
    pub(super) fn count_loss(&self, stage: LossStage, count: u64, out: &mut Vec<Output>) {
        if count > 0 {
            out.push(Output::Lost(Lost { at: self.now, count, stage }));
        }
    }

    /// What one piece of a connection showed to be missing.
    pub(super) fn losses(&mut self, place: Place, direction: Direction, parsed: &mut Parsed, out: &mut Vec<Output>) {
        let end = place.end;
        if parsed.lost {
            self.count_loss(LossStage::Gap, 1, out);
            self.http_lost(place, std::mem::take(&mut parsed.lost_http), out);
        }
        if parsed.desynced {
            self.count_loss(LossStage::Desync, 1, out);
        }
        // What a front end did not get whole; at the engine's end nothing counts while front ends are seen.
        if (parsed.lost || parsed.desynced) && direction == Direction::In {
            self.outputs_lost(end, &[]);
        }
    }

    /// The source lost records. It has counted them already.
    pub(super) fn lost(&mut self, lost: Lost, out: &mut Vec<Output>) {
        self.now = self.now.max(lost.at);
        if matches!(lost.stage, LossStage::RareRing | LossStage::Queue | LossStage::Decode) {
            self.cuda_lost();
        }
        match lost.stage {
            LossStage::EdgeRing | LossStage::Queue | LossStage::Decode | LossStage::DataRing => {}
            // A connection that is not followed has nothing to mark.
            _ => return,
        }
        if lost.stage != LossStage::DataRing {
            self.edges_lost_at = Some(lost.at);
        }
        self.uptake.lost();
        let mut messages_lost = false;
        for (end, mut parsed) in self.connections.lose(self.engine) {
            let Some(connection) = self.connections.get(end) else { continue };
            messages_lost |= parsed.carries_messages;
            for slot in connection.slots.values() {
                if let Slot::Exchange(key) = slot
                    && let Some(exchange) = self.exchanges.get_mut(*key)
                {
                    exchange.lost = true;
                }
            }
            let place = Place { at: lost.at, process: connection.process, end };
            self.http_lost(place, std::mem::take(&mut parsed.lost_http), out);
        }
        if messages_lost {
            for generation in self.generations.values_mut() {
                generation.lost = true;
            }
        }
    }
}
