//! The command line, one file a verb. Data goes to stdout, chatter to stderr.

use std::io::{self, Write as _};
use std::sync::LazyLock;

use clap::{Parser, Subcommand};
use serde_json::Value;

use crate::attach::loader;
use crate::console;
use crate::exit::Code;
use crate::sanitise;

pub mod attach;
pub mod diff;
pub mod doctor;
pub mod ls;
pub mod names;
pub mod probes;
pub mod record;
pub mod replay;
pub mod report;
pub mod target;
pub mod top;
pub mod trace;
pub mod waterfall;
pub mod why;

/// `0.1.0 (commit 07818f7, BPF object 5d41402a)`: what was built, and from what.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("INFERSPAN_COMMIT").unwrap_or("unknown");
    format!("{} (commit {commit}, BPF object {})", env!("CARGO_PKG_VERSION"), loader::object_id())
});

/// Attach to a running LLM server by PID and see where every request's time went.
#[derive(Debug, Parser)]
#[command(name = "inferspan", version = VERSION.as_str(), arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List inference servers on this host: pid, engine and version, model, roles, traceable or why not
    Ls(ls::Args),
    /// Check what tracing needs, on this host and in one server: OK, WARN or FAIL, and the fix
    Doctor(doctor::Args),
    /// Trace a running server until Ctrl-C
    Attach(attach::Args),
    /// Look at a running server in the terminal: requests with their phases, steps, queue, KV cache
    Top(top::Args),
    /// Record a running server into a file: what was decoded, nothing of prompts and outputs; or a timeline for Perfetto
    Record(record::Args),
    /// List the CUDA kernels that a library, or every library of a process, registers
    Names(names::Args),
    /// Show what would be probed in a library, or in every library of a process, and why not; attaches nothing
    Probes(probes::Args),
    /// Say why a request took as long as it did, or why the slowest did: of a running attach, or of a file
    Why(why::Args),
    /// Draw one request: of a running attach, or of a file
    Trace(waterfall::Args),
    /// Run the same pipeline on a recording or a syscall log, unprivileged
    Replay(replay::Args),
    /// Summarise a recording, a syscall log or a trace file: latencies, phases, the slowest requests, steps; as text, page or JSON
    Report(report::Args),
    /// Compare two such files: which phase moved, by how much, and how sure that is; exit code 1 when one got slower
    Diff(diff::Args),
}

/// Writes data to stdout; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes a document for programs, which a person may look at.
fn print_json(document: &Value) -> io::Result<()> {
    print(&sanitise::json(&format!("{document:#}\n")))
}

/// Says something on stderr: it may hold what a target or a back end chose.
fn say(what: &str) {
    console::say(&format!("inferspan: {}", sanitise::lines(what)));
}

/// Runs the verb; the exit code is the caller's to use.
pub fn run(cli: Cli) -> anyhow::Result<Code> {
    match cli.verb {
        Verb::Ls(args) => ls::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Attach(args) => attach::run(&args),
        Verb::Top(args) => top::run(&args),
        Verb::Record(args) => record::run(&args),
        Verb::Names(args) => names::run(&args),
        Verb::Probes(args) => probes::run(&args),
        Verb::Why(args) => why::run(&args),
        Verb::Trace(args) => waterfall::run(&args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Report(args) => report::run(&args),
        Verb::Diff(args) => diff::run(&args),
    }
}
