//! A thread that asks the driver every [`PERIOD`], critical errors (Xid) among it.
//!
//! Leaves: what it says, and that it says nothing any more. Invariants: whoever reads waits for nobody; an answer older than [`STALE`] (the
//! driver hangs; the watch has ended) is none. Dropping the watch ends the thread, and waits for it no longer than [`FAREWELL`].

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::{Gpus, nvml};

/// The driver's own samples are up to a second old.
const PERIOD: Duration = Duration::from_secs(5);
const STALE: Duration = Duration::from_secs(15);
/// So that NVML is let go in order where it answers.
const FAREWELL: Duration = Duration::from_millis(500);

/// The running thread.
#[derive(Debug)]
pub struct Watch {
    answers: Receiver<Gpus>,
    /// When the newest answer came that is not stale.
    newest: Option<Instant>,
    /// The thread ends when this is gone.
    stop: Option<Sender<()>>,
    /// Closes when it has ended.
    ended: Receiver<()>,
}

impl Watch {
    /// Starts it. Without NVML it ends at once, and there is never any news.
    pub fn start() -> Self {
        let (say, answers) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel::<()>();
        // Without a thread there are no readings, as without NVML.
        let _ = thread::Builder::new().name("gpus".to_owned()).spawn(move || {
            // Goes last.
            let _end = end;
            let Ok(open) = nvml::open() else { return };
            let mut errors = open.errors();
            loop {
                let is_heard = say.send(open.read(&mut errors)).is_ok();
                if !is_heard || stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { answers, newest: None, stop: Some(stop), ended }
    }

    /// What is new since this was last asked: an answer, or that the last one is stale.
    pub fn news(&mut self) -> Option<Option<Gpus>> {
        if let Some(gpus) = self.answers.try_iter().last() {
            self.newest = Some(Instant::now());
            return Some(Some(gpus));
        }
        self.newest.is_some_and(|at| at.elapsed() >= STALE).then(|| {
            self.newest = None;
            None
        })
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
    fn an_answer_is_news_once_and_again_when_it_is_stale() {
        // answer ─ 16 s of silence
        let (say, answers) = mpsc::channel();
        let (_end, ended) = mpsc::channel();
        let mut watch = Watch { answers, newest: None, stop: None, ended };
        assert_eq!(watch.news(), None);
        say.send(Gpus::default()).unwrap();
        assert_eq!(watch.news(), Some(Some(Gpus::default())));
        assert_eq!(watch.news(), None);
        watch.newest = Instant::now().checked_sub(STALE + Duration::from_secs(1));
        assert_eq!(watch.news(), Some(None));
        assert_eq!(watch.news(), None);
    }
}
