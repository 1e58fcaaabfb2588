//! Exit codes of the binary, and errors that carry one.
//!
//! Every error a user sees says what happened, why, and what to do.

use std::fmt;

/// Exit codes, as the README lists them: 0 ok · 1 finding · 2 usage · 3 target not found or gone · 4 permission · 5 unsupported · 130 interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Ok = 0,
    /// Something was found wrong (a doctor's FAIL, a failed export), or the run itself failed.
    Finding = 1,
    Usage = 2,
    NoTarget = 3,
    Permission = 4,
    Unsupported = 5,
    Interrupted = 130,
}

/// An error with its exit code and its fix.
#[derive(Debug, thiserror::Error)]
pub struct Failure {
    pub code: Code,
    /// What happened, and why.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  fix: {}", self.what, self.fix)
    }
}

impl Failure {
    pub fn new(code: Code, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, what: what.into(), fix: fix.into() }
    }
}
