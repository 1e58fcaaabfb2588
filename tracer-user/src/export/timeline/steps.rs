//! Engine steps: a track an engine, and what its scheduler said after each.

use std::collections::HashMap;

use super::arrows::Arrows;
use super::mark::{Count, Mark, Note, Pen, Slice};
use super::rows::Rows;
use super::tracks::{Below, Tracks};
use crate::model::keys::attribute;
use crate::model::trace_ids::run_identity;
use crate::output::EngineStep;

/// Steps follow each other; what overlaps by an error of the clocks still has to be drawn.
const ROWS: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Steps {
    rows: HashMap<(u64, u32), Rows>,
}

impl Steps {
    /// Draws a step; `launches`: the arrows to what it launched. Whether there was room.
    pub(super) fn draw(
        &mut self,
        step: &EngineStep,
        launches: &[u64],
        tracks: &mut Tracks,
        arrows: &mut Arrows,
        pen: &mut Pen<'_>,
    ) -> Option<()> {
        let engine = step.engine;
        let home = tracks.home_of(&step.server, engine);
        let process = tracks.process(&step.server, home, pen)?;
        let rows = self.rows.entry((run_identity(&step.server), engine)).or_insert_with(|| Rows::new(ROWS));
        let row = rows.place(step.start_ns, step.end_ns)? as u32;
        let track = tracks.below(process, Below::Steps { engine, row }, pen)?;
        let id = u64::from_be_bytes(step.span_id.0);
        let mut notes = vec![
            ("step", Note::Hex(id)),
            (attribute::ENGINE_INDEX, Note::Number(u64::from(engine))),
            (attribute::BATCH_REQUESTS, Note::Number(step.requests)),
            (attribute::BATCH_TOKENS, Note::Number(step.tokens)),
            (attribute::BATCH_FIRST_TOKENS, Note::Number(step.first_tokens)),
        ];
        // As its span says: the start is where the step before ended.
        notes.push((attribute::PROVENANCE, Note::Text("inferred")));
        pen.mark(&Mark::Slice(Slice {
            track,
            start: step.start_ns,
            end: step.end_ns,
            name: "step",
            categories: &["step"],
            arrows_out: launches,
            arrow_in: None,
            notes: &notes,
        }));
        arrows.step(id, track, step.start_ns, step.end_ns, pen);
        let Some(stats) = step.stats else { return Some(()) };
        for (what, value) in [
            (Below::Running { engine }, Count::Whole(stats.running)),
            (Below::Waiting { engine }, Count::Whole(stats.waiting)),
            (Below::KvCache { engine }, Count::Real(stats.kv_cache_usage)),
        ] {
            let track = tracks.below(process, what, pen)?;
            pen.mark(&Mark::Count { track, at: step.end_ns, value });
        }
        Some(())
    }
}
