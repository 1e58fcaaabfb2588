//! The server that the demo traces: our small engine, or the real vLLM on CPU.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use inferspan_harness::server::Server;
use inferspan_harness::wait::Interrupt;

use crate::setup;

/// Starts `program`, the demo's own engine, with these further arguments.
pub(crate) fn start_demo<'a>(
    program: &Path,
    arguments: impl IntoIterator<Item = &'a OsString>,
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<Server> {
    let mut command = Command::new(program);
    // The name on the command line is how a real server is told its model; without it metrics begin unlabelled.
    command.args(["--port", "0", "--served-model-name", "demo"]);
    // Little memory and small batches, so that there are preemptions and chunked prefills to see.
    command.args(["--blocks", "32", "--max-num-batched-tokens", "128"]).args(arguments);
    Server::start_demo(&mut command, folder, interrupt)
}

/// Starts the real vLLM with the tiny model, and with these further arguments.
pub(crate) fn start_vllm(folder: &Path, interrupt: &Interrupt, arguments: &[&str]) -> Result<Server> {
    Server::start_vllm(&setup::vllm::ensure()?, folder, interrupt, arguments, &[])
}
