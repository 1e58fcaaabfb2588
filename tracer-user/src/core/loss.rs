//! What was lost, and whom it touched.
//!
//! Enters: losses that the source tells, jumps in a stream's count, framing that was lost. Leaves: a count by stage
//! ([`Output::Lost`]) and marks on the requests that may be hit. Where the source counts the bytes of its streams a loss of payload
//! shows by itself, on the connection it is on; only a source that does not count makes everything that is open doubtful.

use std::collections::HashSet;

use super::decoder::Parsed;
use super::engine_side::EngineSide;
use super::http_side::{self, HttpSide, Place};
use super::scene::Scene;
use crate::input::{Direction, End, EventNanos, LossStage, Lost};
use crate::output::Output;

/// Counts a loss that the core itself met.
pub(super) fn count(at: EventNanos, stage: LossStage, count: u64, out: &mut Vec<Output>) {
    if count > 0 {
        out.push(Output::Lost(Lost { at, count, stage }));
    }
}

impl Scene<'_> {
    /// Counts a loss that the core itself met.
    pub(super) fn count_loss(&mut self, stage: LossStage, count: u64) {
        self::count(self.now, stage, count, self.out);
    }
}

/// What one piece of a connection showed to be missing.
pub(super) fn shown(
    http: &mut HttpSide,
    place: Place,
    direction: Direction,
    parsed: &mut Parsed,
    scene: &mut Scene<'_>,
) {
    if parsed.lost {
        scene.count_loss(LossStage::Gap, 1);
        http.lost(place, std::mem::take(&mut parsed.lost_http), scene);
    }
    if parsed.desynced {
        scene.count_loss(LossStage::Desync, 1);
    }
    // What a front end did not get whole; at the engine's end nothing counts while front ends are seen.
    if (parsed.lost || parsed.desynced) && direction == Direction::In {
        outputs(place.end, &[], scene);
    }
}

/// The source lost records. It has counted them already.
pub(super) fn told(lost: Lost, http: &mut HttpSide, messages: &mut EngineSide, scene: &mut Scene<'_>) {
    match lost.stage {
        LossStage::EdgeRing | LossStage::Queue | LossStage::Decode => {
            http.edges_lost(lost.at);
            scene.requests.exchanges.edges_lost();
        }
        LossStage::DataRing => {}
        // A connection that is not followed has nothing to mark.
        _ => return,
    }
    if lost.stage != LossStage::EdgeRing {
        http.data_lost(lost.at);
    }
    messages.calls_lost();
    let mut messages_lost = false;
    for (end, mut parsed) in scene.connections.lose(scene.engine) {
        let Some(process) = scene.connections.get(end).map(|connection| connection.process) else { continue };
        messages_lost |= parsed.carries_messages;
        http_side::in_doubt(end, scene);
        http.lost(Place { at: lost.at, process, end }, std::mem::take(&mut parsed.lost_http), scene);
    }
    if messages_lost {
        for generation in scene.requests.generations.values_mut() {
            generation.lost = true;
        }
    }
}

/// Too much was held: what these connections held of messages that were not whole is let go, counted, and marks what it was of.
pub(super) fn let_go(ends: &[End], http: &mut HttpSide, scene: &mut Scene<'_>) {
    for (end, mut parsed) in scene.connections.let_go(ends) {
        scene.count_loss(LossStage::Evicted, 1);
        let Some(process) = scene.connections.get(end).map(|connection| connection.process) else { continue };
        http.lost(Place { at: scene.now, process, end }, std::mem::take(&mut parsed.lost_http), scene);
        if parsed.carries_messages {
            outputs(end, &[], scene);
        }
    }
}

/// Outputs of the engine on this connection are missing: what may have had one is marked. `present`: requests whose share of the
/// message was read.
pub(super) fn outputs(end: End, present: &[&str], scene: &mut Scene<'_>) {
    let Some(connection) = scene.connections.get(end) else { return };
    let Some(engine) = connection.engine else { return };
    let process = connection.process;
    let present: HashSet<&str> = present.iter().copied().collect();
    for generation in scene.requests.generations.values_mut() {
        let its =
            generation.may_be_of(engine) && (generation.process == process || generation.process == 0 || process == 0);
        if its && !generation.settled() && !present.contains(&*generation.id) {
            generation.lost = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::exchanges::tests::completion;
    use crate::core::scene::tests::Ground;
    use crate::core::slots::Slot;
    use crate::decode::http::{HttpEvent, What};
    use crate::engine::ENGINES;
    use crate::model::exchange::Ending;
    use crate::model::generation::{Generation, StepRef, TokensAt};

    const API: u32 = 7;
    const CLIENT: End = End(70);
    const ENGINE: End = End(71);

    /// An exchange on a client's connection, and a connection to engine 0 with three engine requests: of engine 0, of engine 1, and one that
    /// gave nothing yet. Keys 1 to 4.
    fn ground() -> Ground {
        let mut ground = Ground::default();
        for end in [CLIENT, ENGINE] {
            ground.scene().connect(end, API, true);
        }
        let key = ground.requests.key();
        ground.requests.begin(key, completion(10));
        if let Some(client) = ground.connections.get_mut(CLIENT) {
            client.slots.insert(0, Slot::Exchange(key));
        }
        if let Some(engine) = ground.connections.get_mut(ENGINE) {
            engine.engine = Some(0);
        }
        for (id, engine) in [("a-0123abcd", Some(0)), ("b-0123abcd", Some(1)), ("c-0123abcd", None)] {
            let mut generation = Generation::new(id.into(), ENGINES[0].identify(id, None), 20);
            generation.process = API;
            if let Some(engine) = engine {
                let step = StepRef { engine, stamp: 0 };
                generation.engine = engine;
                generation.first = Some(TokensAt { at: 30, received: 30, tokens: 1, step });
            }
            ground.requests.insert(generation);
        }
        ground
    }

    /// Whether the exchange, and which of the engine requests, are marked.
    fn marked(ground: &Ground) -> (bool, Vec<u64>) {
        let generations = ground.requests.generations.iter().filter(|(_, g)| g.lost).map(|(key, _)| key);
        (ground.requests.exchanges.get(1).is_some_and(|e| e.lost), generations.collect())
    }

    #[test]
    fn a_gap_marks_the_request_that_it_falls_in_and_no_other() {
        // bytes are missing in the first request of the connection · in one that is not known
        for (request, is_marked) in [(0, true), (1, false)] {
            let mut ground = ground();
            let lost_http = vec![HttpEvent { request, what: What::Gap(Direction::Out) }];
            let mut parsed = Parsed { lost: true, lost_http, ..Parsed::default() };
            let place = Place { at: 50, process: API, end: CLIENT };
            shown(&mut HttpSide::default(), place, Direction::Out, &mut parsed, &mut ground.scene());
            assert_eq!((marked(&ground), ground.losses()), ((is_marked, vec![]), vec![(LossStage::Gap, 1)]));
        }
    }

    #[test]
    fn what_a_front_end_did_not_get_marks_what_may_have_had_an_output_in_it() {
        // framing is lost on the engine's connection: at the front end · at the engine, where nothing counts
        for (direction, keys) in [(Direction::In, vec![2, 4]), (Direction::Out, vec![])] {
            let mut ground = ground();
            let mut parsed = Parsed { desynced: true, ..Parsed::default() };
            let place = Place { at: 50, process: API, end: ENGINE };
            shown(&mut HttpSide::default(), place, direction, &mut parsed, &mut ground.scene());
            assert_eq!((marked(&ground), ground.losses()), ((false, keys), vec![(LossStage::Desync, 1)]));
        }
    }

    #[test]
    fn whose_share_of_a_cut_message_was_read_is_not_marked() {
        let mut ground = ground();
        outputs(ENGINE, &["a-0123abcd"], &mut ground.scene());
        assert_eq!(marked(&ground), (false, vec![4]));
    }

    #[test]
    fn records_that_were_lost_mark_what_is_open_where_the_source_does_not_count() {
        // request ─ loss, of payload or of edges ─ the server closes: with edges lost nobody knows who left
        for (stage, is_marked, ending) in [
            (LossStage::DataRing, true, Ending::Unseen),
            (LossStage::EdgeRing, true, Ending::Unseen),
            (LossStage::LaunchRing, false, Ending::ServerClosed),
        ] {
            let mut ground = ground();
            let mut http = HttpSide::default();
            let lost = Lost { at: 50, count: 3, stage };
            told(lost, &mut http, &mut EngineSide::default(), &mut ground.scene());
            assert_eq!(marked(&ground).0, is_marked, "{stage:?}");
            http.close(CLIENT, 60, None, Ending::ServerClosed, &mut ground.scene());
            let ended = ground.requests.exchanges.get(1).and_then(|e| e.ending);
            assert_eq!(ended, Some((60, ending)), "{stage:?}");
        }
    }

    #[test]
    fn lost_messages_of_a_source_that_does_not_count_make_all_engine_requests_doubtful() {
        // the decoders of then said that the second connection carries an engine's messages
        use crate::core::connections::Answer;
        let mut ground = ground();
        let of_engine = Parsed { carries_messages: true, ..Parsed::default() };
        ground.connections.follow(vec![Answer::Lost(vec![(ENGINE, of_engine)])]);
        let lost = Lost { at: 50, count: 3, stage: LossStage::DataRing };
        told(lost, &mut HttpSide::default(), &mut EngineSide::default(), &mut ground.scene());
        assert_eq!(marked(&ground), (false, vec![2, 3, 4]));
        assert_eq!(ground.losses(), [], "the source has counted it");
    }
}
