//! Which servers a verb traces: the flags that name them.

use crate::discover::failure::parse_pid;
use crate::discover::{self, ServerProcesses, named};
use crate::exit::Failure;

/// One server, or all.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "target", required = true, multiple = false)]
pub struct TargetArgs {
    /// Trace the server that this process belongs to
    #[arg(short, long, value_name = "PID", value_parser = parse_pid, allow_negative_numbers = true)]
    pub pid: Option<u32>,
    /// Trace the one server that `inferspan ls` shows under this engine, model, container, service or server name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Trace every server on this host
    #[arg(long)]
    pub all: bool,
}

/// The servers that the arguments name; at least one.
pub(super) fn find(args: &TargetArgs) -> Result<Vec<ServerProcesses>, Failure> {
    match (args.pid, &args.name) {
        (Some(pid), _) => Ok(vec![discover::server(pid)?]),
        (None, Some(name)) => Ok(vec![named::one(name)?]),
        (None, None) => named::all(),
    }
}
