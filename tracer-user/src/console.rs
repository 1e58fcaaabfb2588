//! The terminal that stdout and stderr may share: lines, and one line in place below them.
//!
//! Enters: text that is safe to show. Leaves: the same, on stdout and stderr. Invariant: whoever writes a line takes the line in place away
//! first and puts it back behind, so that the two never mix; while the screen is somebody's whole ([`divert`]), chatter waits for them.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

/// Chatter that waits for whoever has the screen; the oldest goes first.
const MAX_DIVERTED: usize = 64;
/// How long chatter waits for a terminal that takes no more (Ctrl-S): what is wrong is worth more than a tidy screen.
const PATIENCE: Duration = Duration::from_millis(100);
/// To the first column, and nothing right of it.
const ERASE: &[u8] = b"\r\x1b[2K";

#[derive(Debug)]
struct State {
    placed: Option<String>,
    diverted: Option<VecDeque<String>>,
}

static STATE: Mutex<State> = Mutex::new(State { placed: None, diverted: None });

/// `None` where somebody holds it who waits for the terminal.
fn state() -> Option<MutexGuard<'static, State>> {
    let until = Instant::now() + PATIENCE;
    loop {
        match STATE.try_lock() {
            Ok(state) => return Some(state),
            // It is whole between any two writes.
            Err(TryLockError::Poisoned(state)) => return Some(state.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Says something on stderr; a line end is added. A terminal that is gone is nobody's concern.
pub fn say(text: &str) {
    let mut state = state();
    if let Some(diverted) = state.as_mut().and_then(|state| state.diverted.as_mut()) {
        if diverted.len() == MAX_DIVERTED {
            diverted.pop_front();
        }
        diverted.push_back(text.to_owned());
        return;
    }
    let placed = state.as_ref().and_then(|state| state.placed.as_deref()).filter(|_| io::stderr().is_terminal());
    if placed.is_some() {
        let _ = out(ERASE);
    }
    let _ = writeln!(io::stderr(), "{text}");
    if let Some(placed) = placed {
        let _ = out(placed.as_bytes());
    }
}

/// Writes `lines`, each with its end, to stdout above the line in place, which becomes `placed`: one that fits the width.
pub fn print(lines: &[u8], placed: Option<&str>) -> io::Result<()> {
    let mut state = STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut bytes = Vec::with_capacity(lines.len() + 256);
    if state.placed.is_some() {
        bytes.extend_from_slice(ERASE);
    }
    bytes.extend_from_slice(lines);
    bytes.extend_from_slice(placed.unwrap_or_default().as_bytes());
    state.placed = placed.map(str::to_owned);
    out(&bytes)
}

/// Takes the line in place away for good: at the end, however it came.
pub fn clear() {
    if let Some(mut state) = state()
        && state.placed.take().is_some()
    {
        let _ = out(ERASE);
    }
}

fn out(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// The screen is somebody's whole: from here on chatter is theirs to show.
#[derive(Debug)]
pub struct Diverted(());

pub fn divert() -> Diverted {
    if let Some(mut state) = state() {
        state.diverted.get_or_insert_default();
    }
    Diverted(())
}

impl Diverted {
    /// What was said since the last call.
    pub fn take(&self) -> Vec<String> {
        let mut state = state();
        state
            .as_mut()
            .and_then(|state| state.diverted.as_mut())
            .map(|said| said.drain(..).collect())
            .unwrap_or_default()
    }
}

/// Says what was shown to a person already, once the screen is given back.
pub fn keep(text: &str) {
    if let Some(diverted) = state().as_mut().and_then(|state| state.diverted.as_mut()) {
        diverted.push_back(text.to_owned());
    }
}

impl Drop for Diverted {
    /// What nobody took is said now.
    fn drop(&mut self) {
        let left = self.take();
        if let Some(mut state) = state() {
            state.diverted = None;
        }
        for text in left {
            say(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chatter_waits_for_whoever_has_the_screen_and_the_oldest_goes_first() {
        let screen = divert();
        for number in 0..MAX_DIVERTED + 2 {
            say(&format!("warning {number}"));
        }
        let said = screen.take();
        assert_eq!((said.len(), said[0].as_str()), (MAX_DIVERTED, "warning 2"));
        assert!(screen.take().is_empty());
        drop(screen);
        assert!(state().unwrap().diverted.is_none());
    }
}
