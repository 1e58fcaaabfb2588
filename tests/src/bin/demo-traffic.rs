//! Sends a mixed load to a vLLM-like server and prints, as JSON, what it sent and saw. See [`inferspan_tests::traffic`].

use std::time::Duration;

use clap::Parser;
use inferspan_tests::traffic::{Kind, Load, Until};

/// A mixed load for a vLLM-like server.
#[derive(Debug, Parser)]
#[command(name = "demo-traffic", version, after_help = kinds())]
struct Arguments {
    /// The server, http://HOST:PORT.
    #[arg(long)]
    url: String,
    /// Name of the served model.
    #[arg(long)]
    model: String,
    /// How long to send.
    #[arg(long, conflicts_with = "requests", value_name = "N")]
    seconds: Option<f64>,
    /// How many requests to send [default: 60].
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Concurrent clients.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Seed of everything that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these kinds, by comma; all but embedding when left out.
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    kinds: Vec<String>,
    /// Leave out the list of single requests.
    #[arg(long)]
    brief: bool,
}

fn kinds() -> String {
    let lines: Vec<String> =
        Kind::ALL.iter().map(|kind| format!("  {:20}{}", kind.name(), kind.help().trim())).collect();
    format!("Kinds of requests:\n{}", lines.join("\n"))
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut kinds = Vec::new();
    for name in &arguments.kinds {
        let kind = Kind::ALL.iter().find(|kind| kind.name() == name);
        kinds.push(*kind.ok_or_else(|| anyhow::anyhow!("no kind of request is called {name:?}; see --help"))?);
    }
    if kinds.is_empty() {
        kinds = Kind::generating();
    }
    let until = match arguments.seconds {
        Some(seconds) => Until::Elapsed(Duration::from_secs_f64(seconds)),
        None => Until::Requests(arguments.requests.unwrap_or(60)),
    };
    let Arguments { url, model, clients, seed, .. } = arguments;
    let mut summary = Load { url, model, kinds, clients, until, seed }.run()?;
    if arguments.brief {
        summary.requests.clear();
    }
    println!("{}", serde_json::to_string_pretty(&summary)?);
    Ok(())
}
