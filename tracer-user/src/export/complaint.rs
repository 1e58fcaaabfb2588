//! What goes wrong while exporting, said on stderr without flooding it, and kept for the closing summary.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::console;
use crate::sanitise::sanitise;

/// A repeated failure is said again after this long.
const REPEAT: Duration = Duration::from_mins(1);

/// The longest text of a failure; a back end's error message may hold a whole HTML page.
const MAX_TEXT: usize = 300;

/// One destination's failures; shared by `Arc`.
#[derive(Debug)]
pub struct Complaint {
    /// The destination, as a user knows it (`OTLP export to http://…`).
    about: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    what: String,
    unit: &'static str,
    lost: u64,
}

impl Complaint {
    pub fn new(about: impl Into<String>) -> Self {
        Self { about: about.into(), state: Mutex::default() }
    }

    /// Says `what` at once the first time, then at most once a minute; `lost` items (of a kind called `unit`) went with it.
    pub fn raise(&self, what: &str, lost: u64, unit: &'static str) {
        let mut state = self.lock();
        state.lost += lost;
        state.what = sanitise(what, MAX_TEXT).into_owned();
        state.unit = unit;
        if state.said.is_none_or(|at| at.elapsed() >= REPEAT) {
            state.said = Some(Instant::now());
            console::say(&format!("inferspan: {}", self.text(&state)));
        }
    }

    /// More was lost for the reason last given.
    pub fn add(&self, lost: u64) {
        self.lock().lost += lost;
    }

    /// The last failure, with all losses so far; `None` when there was none.
    pub fn last(&self) -> Option<String> {
        let state = self.lock();
        (!state.what.is_empty()).then(|| self.text(&state))
    }

    fn text(&self, state: &State) -> String {
        match state.lost {
            0 => format!("{}: {}", self.about, state.what),
            lost => format!("{}: {} ({lost} {} lost)", self.about, state.what, state.unit),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_add_up_and_text_is_sanitised() {
        let complaint = Complaint::new("access log x");
        assert_eq!(complaint.last(), None);
        complaint.raise("no space\x1b[2J", 1, "records");
        assert_eq!(complaint.last().unwrap(), "access log x: no space\u{fffd}[2J (1 records lost)");
        complaint.raise("no space", 2, "records");
        complaint.add(1);
        assert_eq!(complaint.last().unwrap(), "access log x: no space (4 records lost)");
    }
}
