//! Writes a made-up syscall log to stdout, and what must be counted from it, as JSON, to a file. See
//! [`inferspan_tests::madeup`].

use std::io::BufWriter;
use std::path::PathBuf;

use clap::Parser;
use inferspan_tests::madeup::{Plan, write};

/// A made-up syscall log of an API server and its engine.
#[derive(Debug, Parser)]
#[command(name = "madeup-log", version)]
struct Arguments {
    /// Generations open at once.
    #[arg(long)]
    open: usize,
    /// Generations that are finished.
    #[arg(long)]
    requests: usize,
    /// Tokens of each.
    #[arg(long)]
    tokens: u32,
    /// Prompt tokens of each.
    #[arg(long, default_value_t = 50)]
    prompt: u32,
    /// Stream the answers.
    #[arg(long)]
    stream: bool,
    /// Outputs of an engine step's message; 0: of every open generation.
    #[arg(long, default_value_t = 0)]
    per_message: usize,
    /// Requests that wait to the end.
    #[arg(long, default_value_t = 0)]
    waiting: usize,
    /// Leave out the engine's ends of the sockets.
    #[arg(long)]
    one_end: bool,
    /// Leave out the clients.
    #[arg(long)]
    no_http: bool,
    /// Payloads that say nothing, of the same sizes.
    #[arg(long)]
    blank: bool,
    /// Where the account goes.
    #[arg(long, value_name = "FILE")]
    account: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let plan = Plan {
        open: arguments.open,
        requests: arguments.requests,
        tokens: arguments.tokens,
        prompt: arguments.prompt,
        stream: arguments.stream,
        per_message: arguments.per_message,
        waiting: arguments.waiting,
        both_ends: !arguments.one_end,
        http: !arguments.no_http,
        blank: arguments.blank,
    };
    let account = write(&plan, BufWriter::with_capacity(1 << 20, std::io::stdout().lock()))?;
    std::fs::write(&arguments.account, serde_json::to_vec(&account)?)?;
    Ok(())
}
