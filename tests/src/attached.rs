//! A running `inferspan` verb that attaches, from outside: what it says, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, Command, Stdio};

use inferspan_harness::process::{Signal, send};

use crate::judge::binary;

/// A verb that has said that it is attached.
#[derive(Debug)]
pub struct Attached {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Attached {
    /// Runs `inferspan VERB -p PID ARGUMENTS` until it is attached.
    ///
    /// # Panics
    /// When it ends before.
    pub fn start(verb: &str, pid: u32, arguments: &[String]) -> Self {
        let mut child = Command::new(binary())
            .args([verb, "-p", &pid.to_string()])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("inferspan runs");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        while !said.lines().any(|line| line.starts_with("inferspan: attached")) {
            assert!(stderr.read_line(&mut said).expect("stderr") > 0, "it ended:\n{said}");
        }
        Self { child, stderr, said }
    }

    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal).expect("kill");
    }

    /// Waits for its end: exit code and all of stderr.
    ///
    /// # Panics
    /// When stderr is no text.
    pub fn end(mut self) -> (Option<i32>, String) {
        self.stderr.read_to_string(&mut self.said).expect("stderr");
        (self.child.wait().expect("wait").code(), self.said)
    }
}
