//! What tracing needs, looked at: on this host, and in one server.
//!
//! Enters: the machine, and a process of the server to check. Leaves: [`Check`]s in a fixed order, each with what was seen and the fix.
//! Invariant: nothing is traced and nothing stays attached. `host`, `gpu`, `target` and `cuda` look; what they conclude from what they saw
//! is in pure functions of their own.

mod cuda;
mod gpu;
mod host;
mod target;

pub use self::cuda::memory_hooks;

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub detail: String,
    /// What to do; only where something is to be done.
    pub fix: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Warn,
    Fail,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), fix: None }
    }

    pub fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    pub fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Every check of the host, and of the server that `pid` belongs to.
pub fn checks(pid: Option<u32>) -> Vec<Check> {
    let mut checks = host::checks();
    checks.push(gpu::check());
    checks.extend(pid.into_iter().flat_map(target::checks));
    checks
}
