//! A running `inferspan` verb that attaches, from outside: what it says, and how it ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use inferspan_harness::attached;
use inferspan_harness::process::Signal;

use crate::judge::binary;

/// For it to end, with its target or after a signal.
const LIMIT: Duration = Duration::from_mins(5);

/// A verb that has said that it is attached.
#[derive(Debug)]
pub struct Attached(attached::Attached);

impl Attached {
    /// Runs `inferspan VERB -p PID ARGUMENTS` until it is attached.
    ///
    /// # Panics
    /// When it ends before.
    pub fn start(verb: &str, pid: u32, arguments: &[String]) -> Self {
        let mut command = Command::new(binary());
        command.args([verb, "-p", &pid.to_string()]).args(arguments).stdout(Stdio::null());
        Self(attached::Attached::start(&mut command).expect("inferspan attaches"))
    }

    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        self.0.signal(signal).expect("it runs");
    }

    /// Waits for its end: exit code and all of stderr.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(self) -> (Option<i32>, String) {
        let (status, said) = self.0.end(LIMIT).expect("inferspan ends");
        (status.code(), said)
    }
}
