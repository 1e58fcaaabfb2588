//! `inferspan trace`: one request as a waterfall, of a run that goes on or of a file.

use super::why::{OfArgs, show};
use crate::ask::Ask;
use crate::exit::Code;

/// Draw one request: its access line, its spans as a waterfall, and why it took as long as it did.
///
/// Asks every `inferspan attach` and `record` that runs here (as root: their sockets are in /run/inferspan), or a file. Exits 1 where the id
/// is not known or may mean several, 3 where nobody can be asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A request: the id that its client sees, its trace id or the first 8 digits or more of it, or the engine's id
    pub id: String,
    #[command(flatten)]
    pub of: OfArgs,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    show(Ask::Trace { id: args.id.clone() }, &args.of, "inferspan.trace/1")
}
