//! The signals that a run obeys.
//!
//! Enters: SIGINT, SIGTERM, SIGHUP. Leaves: flags. Invariant: with the end asked for, the next SIGINT or SIGTERM ends the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit::Code;
use crate::proc::{OWN, Proc};

/// What somebody asked for.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    end: Arc<AtomicBool>,
    reopen: Arc<AtomicBool>,
}

impl Stop {
    /// From here on the signals are caught. `has_log`: SIGHUP asks to open the outputs anew; else it is the end of a terminal, and asks for
    /// the run's, unless whoever started this has it ignored (`nohup`).
    pub fn on_signals(has_log: bool) -> io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, Code::Interrupted as i32, Arc::clone(&stop.end))?;
            flag::register(signal, Arc::clone(&stop.end))?;
        }
        if has_log {
            flag::register(SIGHUP, Arc::clone(&stop.reopen))?;
        } else if !Proc::this().status(OWN).is_ok_and(|status| status.ignores(SIGHUP)) {
            flag::register(SIGHUP, Arc::clone(&stop.end))?;
        }
        Ok(stop)
    }

    pub fn is_asked_for(&self) -> bool {
        self.end.load(Relaxed)
    }

    /// Asks for the end, as a signal does.
    pub fn ask(&self) {
        self.end.store(true, Relaxed);
    }

    /// The outputs are to be opened anew; asked for since the last call.
    pub fn takes_reopen(&self) -> bool {
        self.reopen.swap(false, Relaxed)
    }
}
