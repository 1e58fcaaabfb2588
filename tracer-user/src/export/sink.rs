//! What a destination of outputs is.
//!
//! Enters: outputs, one by one, on the core's thread. Leaves: nothing that could make it wait: a sink has a bounded queue and a thread of
//! its own, or does what takes no time. To add one: a file that has an `open`, and its lines in [`super`].

use std::fmt::Debug;
use std::sync::Arc;

use super::Pressure;
use super::flags::OutputArgs;
use super::log_file::Reopen;
use super::otlp::spans::Origin;
use super::prometheus::server::MetricsServer;
use crate::input::gpu::Gpus;
use crate::output::cuda::{CudaCall, KernelRow};
use crate::output::{AccessRecord, EngineStep, Metric, ServerProcess, Trace};
use crate::store::now::Now;
use crate::telemetry::Telemetry;

/// A destination that is open. It takes what it is made for; the rest passes it.
pub trait Sink: Debug {
    /// A trace that is to be exported.
    fn trace(&mut self, _trace: &Arc<Trace>) {}

    /// Every finished request's trace, exported or not.
    fn request(&mut self, _trace: &Arc<Trace>) {}

    /// Every engine step, exported or not.
    fn step(&mut self, _step: &EngineStep) {}

    fn cuda(&mut self, _call: &CudaCall) {}

    fn process(&mut self, _process: &ServerProcess) {}

    fn access(&mut self, _record: &Arc<AccessRecord>) {}

    fn metric(&mut self, _metric: &Metric) {}

    fn kernel(&mut self, _row: &KernelRow) {}

    fn gpus(&mut self, _now: Option<&Arc<Gpus>>) {}

    /// It shows what is open now, and would like to hear of it.
    fn wants_now(&self) -> bool {
        false
    }

    /// What is open now.
    fn now(&mut self, _now: &Arc<Now>) {}

    /// Traces end here, so there is something to sample.
    fn takes_traces(&self) -> bool {
        false
    }

    /// Request lines go to a person.
    fn is_terminal(&self) -> bool {
        false
    }

    /// Whoever read it is gone (`| head`).
    fn is_unread(&self) -> bool {
        false
    }

    /// Nothing leaves by it of its own accord: whether anybody reads what the run says is for others to say.
    fn is_beside(&self) -> bool {
        false
    }

    /// The endpoint, to outlive the run.
    fn keep_serving(&mut self) -> Option<MetricsServer> {
        None
    }

    /// Flushes, within a bounded time; what failed, as a user should read it.
    fn finish(self: Box<Self>) -> Option<String>;
}

/// What a sink is opened with.
#[derive(Debug)]
pub struct Context<'a> {
    pub flags: &'a OutputArgs,
    pub telemetry: &'a Arc<Telemetry>,
    pub pressure: Pressure,
    pub origin: Origin,
    pub reopen: &'a Reopen,
}

/// Opens a sink, if the flags (or the environment) ask for it.
pub type Open = fn(&Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>>;
