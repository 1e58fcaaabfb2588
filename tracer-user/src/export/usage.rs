//! What this process takes of the machine.

use rustix::param::{clock_ticks_per_second, page_size};

use crate::proc::{OWN, Proc};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// User and system, since it was started.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
}

impl Usage {
    /// `None` when `/proc` is not there: no value beats a wrong one.
    pub fn read() -> Option<Self> {
        let used = Proc::this().usage(OWN).ok()?;
        Some(Self {
            cpu_seconds: used.cpu_ticks as f64 / clock_ticks_per_second() as f64,
            resident_bytes: used.resident_pages * page_size() as u64,
        })
    }
}
