//! The terminal while it is this program's whole, and as it was afterwards.
//!
//! Enters: a terminal. Leaves: one to draw on. Invariant: its modes, its screen and its cursor are as they were once this is dropped, the
//! process panics anywhere, or is stopped by Ctrl-Z or SIGTSTP (and taken again when it goes on). One that takes no more keeps its screen and
//! its cursor, and gets its modes: nobody waits for it. A picture comes whole: in one write, shown at once by terminals that can.

use std::io::{self, IsTerminal as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use ratatui::Terminal;
use ratatui::backend::{Backend as _, ClearType, CrosstermBackend};
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode,
};
use ratatui::crossterm::{execute, queue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCONT, SIGTSTP};

/// The terminal is taken.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    IS_TAKEN.store(true, SeqCst);
    execute!(io::stdout(), EnterAlternateScreen, Hide)
}

/// Gives it back, if it is taken. What fails, fails because the terminal is gone.
pub fn give_back() {
    if IS_TAKEN.swap(false, SeqCst) {
        // The modes first: setting them waits for nothing.
        let _ = disable_raw_mode();
        leave(io::stdout().as_fd());
    }
}

/// Shows the screen that was there before, where the terminal takes anything. Past std's stdout: whoever draws may hold its lock, and wait
/// for a terminal that nobody reads.
fn leave(terminal: BorrowedFd<'_>) {
    let mut sequence = Vec::new();
    // Half a picture may have been written.
    let is_made = queue!(sequence, EndSynchronizedUpdate, LeaveAlternateScreen, Show).is_ok();
    let mut ready = [PollFd::from_borrowed_fd(terminal, PollFlags::OUT)];
    let takes_some =
        poll(&mut ready, Some(&Timespec::default())).is_ok_and(|_| ready[0].revents().contains(PollFlags::OUT));
    if is_made && takes_some {
        let _ = rustix::io::write(terminal, &sequence);
    }
}

/// What is being drawn, until all of it is. std's stdout would write it a kilobyte at a time, each of which a terminal may show. Nothing is
/// written to a terminal that was given back.
#[derive(Debug, Default)]
pub struct Pictures(Vec<u8>);

impl Write for Pictures {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            queue!(self.0, BeginSynchronizedUpdate)?;
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut picture = std::mem::take(&mut self.0);
        if !IS_TAKEN.load(SeqCst) {
            return Ok(());
        }
        queue!(picture, EndSynchronizedUpdate)?;
        let mut terminal = io::stdout().lock();
        terminal.write_all(&picture)?;
        terminal.flush()
    }
}

/// Clears the screen, so that the next picture is drawn whole. Ratatui's own asks the terminal where its cursor is, and fails where none answers.
fn clear(terminal: &mut Terminal<CrosstermBackend<Pictures>>) -> io::Result<()> {
    terminal.backend_mut().clear_region(ClearType::All)?;
    // What was drawn is forgotten, on both sides.
    terminal.swap_buffers();
    Ok(())
}

/// Whether there is a terminal to draw on, and keys.
pub fn is_possible() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb
}

/// A terminal that is taken.
#[derive(Debug)]
pub struct Screen {
    pub terminal: Terminal<CrosstermBackend<Pictures>>,
    /// Somebody sent SIGTSTP, or SIGCONT.
    stopped: Arc<AtomicBool>,
    continued: Arc<AtomicBool>,
}

impl Screen {
    pub fn open() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            // A message of a panic belongs on the screen that stays.
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        let (stopped, continued) = (Arc::default(), Arc::default());
        signal_hook::flag::register(SIGTSTP, Arc::clone(&stopped))?;
        signal_hook::flag::register(SIGCONT, Arc::clone(&continued))?;
        take()?;
        // From here on it is given back by whatever happens.
        let mut terminal = Terminal::new(CrosstermBackend::new(Pictures::default())).inspect_err(|_| give_back())?;
        clear(&mut terminal).inspect_err(|_| give_back())?;
        Ok(Self { terminal, stopped, continued })
    }

    /// Obeys SIGTSTP, and draws anew what others may have drawn over when the process goes on.
    pub fn obey(&mut self) -> io::Result<()> {
        if !IS_TAKEN.load(SeqCst) {
            return Err(io::Error::other("a thread failed, and the terminal was given back"));
        }
        if self.stopped.swap(false, SeqCst) {
            return self.suspend();
        }
        if self.continued.swap(false, SeqCst) {
            clear(&mut self.terminal)?;
        }
        Ok(())
    }

    /// Stops this process as Ctrl-Z does; comes back when it goes on.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        signal_hook::low_level::emulate_default_handler(SIGTSTP)?;
        self.continued.store(false, SeqCst);
        take()?;
        clear(&mut self.terminal)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}
