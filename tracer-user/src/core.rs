//! The pure core: inputs in, outputs out. Owns all state; no clock, no I/O, no locks.

use crate::input::Input;
use crate::output::Output;

/// Limits that a user may set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Hard cap of spans a trace.
    pub max_spans: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_spans: 2000 }
    }
}

/// Turns ordered inputs into outputs.
#[derive(Debug)]
pub struct Core {
    _config: Config,
}

impl Core {
    pub fn new(config: Config) -> Self {
        Self { _config: config }
    }

    /// Takes one input; what it completes is appended to `out`. Inputs must be in time order (see [`crate::order`]).
    pub fn push(&mut self, _input: Input, _out: &mut Vec<Output>) {}

    /// The stream is over: what is open is emitted, marked incomplete.
    pub fn finish(&mut self, _out: &mut Vec<Output>) {}
}
