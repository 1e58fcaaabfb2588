//! The terminal that stdout and stderr may share: lines, and one line in place below them.
//!
//! Enters: text that is safe to show. Leaves: the same, on stdout and stderr. Invariant: whoever writes a line takes the line in place away
//! first and puts it back behind, so that the two never mix; while the screen is somebody's whole ([`divert`]), chatter waits for them. Who
//! must not wait ([`hurry`]) does not: what the terminal has no room for then is kept, as far as there is room, and said before what is said next.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Lines of chatter that are kept; the oldest goes first.
const MAX_KEPT: usize = 64;
/// How long chatter waits for a terminal that takes no more (Ctrl-S): what is wrong is worth more than a tidy screen.
const PATIENCE: Duration = Duration::from_millis(100);
/// To the first column, and nothing right of it.
const ERASE: &[u8] = b"\r\x1b[2K";

#[derive(Debug)]
struct State {
    placed: Option<String>,
    diverted: Option<Last>,
}

/// The last of what was said, and how much more there was before.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Last {
    pub lines: VecDeque<String>,
    pub more: u64,
}

impl Last {
    pub fn push(&mut self, text: &str) {
        if self.lines.len() == MAX_KEPT {
            self.lines.pop_front();
            self.more = self.more.saturating_add(1);
        }
        self.lines.push_back(text.to_owned());
    }

    /// What `later` holds was said behind it.
    pub fn extend(&mut self, later: &Self) {
        later.lines.iter().for_each(|text| self.push(text));
        self.more = self.more.saturating_add(later.more);
    }

    /// How much was said.
    pub fn count(&self) -> u64 {
        self.more.saturating_add(self.lines.len() as u64)
    }

    fn write(&self) {
        for text in self.head().iter().chain(&self.lines) {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Where not all of it is there, how much is not.
    fn head(&self) -> Option<String> {
        (self.more > 0).then(|| format!("inferspan: ... and {} more before these", self.more))
    }
}

static STATE: Mutex<State> = Mutex::new(State { placed: None, diverted: None });
/// What was not said yet, because its thread does not wait. Nobody who holds it waits for anything.
static UNSAID: Mutex<Last> = Mutex::new(Last { lines: VecDeque::new(), more: 0 });

thread_local! {
    static IS_HURRIED: Cell<bool> = const { Cell::new(false) };
}

/// While it lives its thread waits for no terminal: the core's, which has events to take.
#[derive(Debug)]
pub struct Hurried {
    before: bool,
    /// It is of its thread.
    _thread: PhantomData<*const ()>,
}

pub fn hurry() -> Hurried {
    Hurried { before: IS_HURRIED.replace(true), _thread: PhantomData }
}

impl Drop for Hurried {
    fn drop(&mut self) {
        IS_HURRIED.set(self.before);
    }
}

/// `None` where somebody holds it who waits for the terminal.
fn state() -> Option<MutexGuard<'static, State>> {
    let until = Instant::now() + if IS_HURRIED.get() { Duration::ZERO } else { PATIENCE };
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
        diverted.extend(&unsaid());
        diverted.push(text);
        return;
    }
    if IS_HURRIED.get() && (state.is_none() || !takes_some()) {
        UNSAID.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        return;
    }
    let placed = state.as_ref().and_then(|state| state.placed.as_deref()).filter(|_| io::stderr().is_terminal());
    if placed.is_some() {
        let _ = out(ERASE);
    }
    unsaid().write();
    let _ = writeln!(io::stderr(), "{text}");
    if let Some(placed) = placed {
        let _ = out(placed.as_bytes());
    }
}

/// What was not said yet, once.
fn unsaid() -> Last {
    std::mem::take(&mut *UNSAID.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Whether stderr has room.
fn takes_some() -> bool {
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    // What cannot be asked is written to.
    poll(&mut ready, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Writes `lines`, each with its end, to stdout above the line in place, which becomes `placed`: one that fits the width.
pub fn print(lines: &[u8], placed: Option<&str>) -> io::Result<()> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
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
    if let Some(mut state) = state() {
        if state.placed.take().is_some() {
            let _ = out(ERASE);
        }
        unsaid().write();
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
    pub fn take(&self) -> Last {
        let mut state = state();
        state.as_mut().and_then(|state| state.diverted.as_mut()).map(std::mem::take).unwrap_or_default()
    }
}

/// Says what was shown to a person already, once the screen is given back.
pub fn keep(said: &Last) {
    if let Some(diverted) = state().as_mut().and_then(|state| state.diverted.as_mut()) {
        diverted.extend(said);
    }
}

impl Drop for Diverted {
    /// What nobody took is said now.
    fn drop(&mut self) {
        let left = self.take();
        if let Some(mut state) = state() {
            state.diverted = None;
        }
        for text in left.head().iter().chain(&left.lines) {
            say(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one console.
    static ONE: Mutex<()> = Mutex::new(());

    #[test]
    fn chatter_waits_for_whoever_has_the_screen_and_the_oldest_goes_first() {
        let _one = ONE.lock().unwrap();
        let screen = divert();
        for number in 0..MAX_KEPT + 2 {
            say(&format!("warning {number}"));
        }
        let said = screen.take();
        assert_eq!((said.lines.len(), said.lines[0].as_str(), said.more), (MAX_KEPT, "warning 2", 2));
        assert_eq!(screen.take(), Last::default());
        drop(screen);
        assert!(state().unwrap().diverted.is_none());
    }

    #[test]
    fn of_weeks_of_chatter_the_last_is_kept_and_the_rest_is_counted() {
        let mut all = Last::default();
        for round in 0..100 {
            let mut said = Last::default();
            (0..=MAX_KEPT).for_each(|number| said.push(&format!("{round} {number}")));
            all.extend(&said);
        }
        assert_eq!((all.lines.len(), all.count()), (MAX_KEPT, 100 * (MAX_KEPT as u64 + 1)));
        assert_eq!(all.head().as_deref(), Some("inferspan: ... and 6436 more before these"));
    }

    #[test]
    fn who_must_not_wait_does_not_and_it_is_said_later() {
        // somebody holds the console, and waits for its terminal │ two are not said │ it is free again
        let _one = ONE.lock().unwrap();
        let screen = divert();
        let took = {
            let _waits = state().unwrap();
            let said = std::thread::spawn(|| {
                let _hurried = hurry();
                let start = Instant::now();
                say("one");
                say("another");
                start.elapsed()
            });
            said.join().unwrap()
        };
        assert!(took < PATIENCE, "{took:?}");
        assert_eq!(screen.take(), Last::default());
        say("later");
        assert_eq!(screen.take().lines, ["one", "another", "later"]);
    }
}
