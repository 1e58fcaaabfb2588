//! A thread that asks the driver every [`PERIOD`], critical errors (Xid) among it, and the newest answer.
//!
//! Invariants: whoever reads waits for nobody; an answer older than [`STALE`] (the driver hangs; the watch has ended) is none. Dropping the
//! watch ends the thread, and waits for it no longer than [`FAREWELL`].

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Gpus, nvml};

/// The driver's own samples are up to a second old.
const PERIOD: Duration = Duration::from_secs(5);
const STALE: Duration = Duration::from_secs(15);
/// So that NVML is let go in order where it answers.
const FAREWELL: Duration = Duration::from_millis(500);

/// When it was read, and what.
type Reading = (Instant, Arc<Gpus>);

/// The newest answer; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readings(Arc<Mutex<Option<Reading>>>);

impl Readings {
    /// Nothing without NVML, before the first answer, and when the newest is stale.
    pub fn newest(&self) -> Option<Arc<Gpus>> {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, gpus) = newest.as_ref()?;
        (at.elapsed() < STALE).then(|| Arc::clone(gpus))
    }

    /// What was read just now.
    pub fn set(&self, gpus: Gpus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::new(gpus)));
    }
}

/// The running thread.
#[derive(Debug)]
pub struct Watch {
    /// The thread ends when this is gone.
    stop: Option<Sender<()>>,
    /// Closes when it has ended.
    ended: Receiver<()>,
}

impl Watch {
    /// Starts it. Without NVML it ends at once, and `readings` stay empty.
    pub fn start(readings: Readings) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel::<()>();
        // Without a thread there are no readings, as without NVML.
        let _ = thread::Builder::new().name("gpus".to_owned()).spawn(move || {
            // Goes last.
            let _end = end;
            let Ok(open) = nvml::open() else { return };
            let mut errors = open.errors();
            loop {
                readings.set(open.read(&mut errors));
                if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { stop: Some(stop), ended }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_answer_is_none() {
        let readings = Readings::default();
        assert_eq!(readings.newest(), None);
        readings.set(Gpus::default());
        assert!(readings.newest().is_some());
        let old = Instant::now().checked_sub(STALE + Duration::from_secs(1)).expect("the machine runs since");
        *readings.0.lock().expect("a lock") = Some((old, Arc::default()));
        assert_eq!(readings.newest(), None);
    }
}
