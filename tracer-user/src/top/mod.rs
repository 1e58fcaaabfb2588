//! The live view in a terminal: `inferspan top`.
//!
//! Enters: what left the core lately ([`Kept`]), figures, keys. Leaves: a screen, drawn twice a second and at every key, or one
//! [`picture`](picture::Picture) as text or JSON. Invariant: the core never waits for it, and the terminal is left as it was found, however
//! this ends. Refused: a terminal that is none.

pub mod cells;
pub mod detail;
pub mod document;
pub mod draw;
pub mod keys;
pub mod picture;
pub mod screen;
pub mod steps;
pub mod view;

use std::sync::Arc;
use std::time::Instant;

use crate::export::Pressure;
use crate::export::Sinks;
use crate::export::kept::Kept;
use crate::export::meter::{Meter, Reader};
use crate::telemetry::Telemetry;
use picture::Picture;

/// What is looked at: filled by a run's sinks.
#[derive(Debug, Clone)]
pub struct Watched {
    pub kept: Kept,
    pub meter: Meter,
    pub telemetry: Arc<Telemetry>,
}

impl Watched {
    /// Adds what fills it to a run's sinks.
    pub fn of(sinks: &mut Sinks, telemetry: &Arc<Telemetry>) -> std::io::Result<Self> {
        let (kept, meter) = (Kept::default(), Meter::default());
        sinks.add(kept.sink(Pressure::Drop)?);
        sinks.add(meter.sink());
        Ok(Self { kept, meter, telemetry: Arc::clone(telemetry) })
    }

    /// To read its figures with.
    pub fn reader(&self) -> Reader {
        Reader::new(self.meter.clone(), Arc::clone(&self.telemetry), Instant::now())
    }

    /// What there is now, as of the newest look at what is open; asks for a newer one.
    pub fn picture(&self, reader: &mut Reader) -> Picture {
        let figures = reader.read(Instant::now());
        let now = self.kept.now();
        Picture { missed: self.kept.missed(), ..Picture::of(&self.kept.store(), now, figures) }
    }
}
