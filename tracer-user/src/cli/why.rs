//! `inferspan why`: why a request took as long as it did, of a run that goes on or of a file.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{print, print_json, say};
use crate::ask::client::{Heard, ask};
use crate::ask::{Answer, Ask, Found, Paper};
use crate::exit::{Code, Failure};
use crate::export::terminal::{Style, wrap};
use crate::sanitise::sanitise;

/// Say why a request took as long as it did, with the evidence for it.
///
/// Causes stand by the time that each cost, what is inferred behind a `~`, and what could not be seen at the end; where nothing went wrong it
/// says so. Asks every `inferspan attach` and `record` that runs here (as root: their sockets are in /run/inferspan), or a file. Exits 1
/// where the id is not known or may mean several, 3 where nobody can be asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A request: the id that its client sees, its trace id or the first 8 digits or more of it, or the engine's id
    #[arg(required_unless_present = "slow", conflicts_with = "slow")]
    pub id: Option<String>,
    /// The slowest for what they were, to the first token or for each token behind it; a long answer alone is not slow
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "3", value_parser = clap::value_parser!(u32).range(1..=20))]
    pub slow: Option<u32>,
    #[command(flatten)]
    pub of: OfArgs,
}

/// Whom to ask, and how it is shown.
#[derive(Debug, clap::Args)]
pub struct OfArgs {
    /// Ask this recording, syscall log or trace file (OTLP/JSON lines), unprivileged
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let asked = match (&args.id, args.slow) {
        (Some(id), _) => Ask::Why { id: id.clone() },
        (None, most) => Ask::Slow { most: most.unwrap_or(3) as usize },
    };
    show(asked, &args.of, "inferspan.why/1")
}

/// Asks, and shows what was found.
pub(super) fn show(asked: Ask, of: &OfArgs, schema: &str) -> anyhow::Result<Code> {
    let style = Style::of(&io::stdout());
    let paper = Paper { color: style.color, unicode: style.unicode, width: style.width };
    let id = asked.id().map(str::to_owned);
    let Heard { answer, warnings } = ask(asked, paper, of.from.as_deref())?;
    for what in &warnings {
        say(&format!("warning: {what}"));
    }
    if answer.found.is_empty() {
        return Err(unknown(id.as_deref(), &answer, of.from.as_deref()).into());
    }
    let is_told = |found: &&Found| !found.document.is_null();
    if !answer.found.iter().all(|found| is_told(&found)) && answer.found.len() > 1 {
        return Err(ambiguous(&id.unwrap_or_default(), &answer.found).into());
    }
    if of.json {
        let requests: Vec<&Value> = answer.found.iter().map(|found| &found.document).collect();
        print_json(&json!({"schema": schema, "requests": requests}))?;
    } else {
        let is_person = io::stdout().is_terminal();
        let texts: Vec<String> = answer
            .found
            .iter()
            .map(|found| if is_person { folded(&found.text, style) } else { found.text.clone() })
            .collect();
        print(&texts.join("\n"))?;
    }
    Ok(Code::Ok)
}

/// Its paragraph in lines of the terminal's width; programs get it on one.
fn folded(text: &str, style: Style) -> String {
    let fold = |line: &str| match line.strip_prefix("why ") {
        Some(_) => wrap(line, style.width, style).join("\n"),
        None => line.to_owned(),
    };
    text.lines().map(|line| fold(line) + "\n").collect()
}

fn unknown(id: Option<&str>, answer: &Answer, file: Option<&Path>) -> Failure {
    let whose = if file.is_some() { "the file has" } else { "the runs that go on keep" };
    let Some(id) = id else {
        let what = format!("{whose} no request that is over");
        return Failure::new(Code::Finding, what, "ask when requests have been answered");
    };
    let what = format!("no request is called {}: {whose} {} that are over", sanitise(id, 80), answer.kept);
    let fix = match &answer.hints[..] {
        [] => "ids are in the access log, the traces and the response".to_owned(),
        hints => hints.join("\n       "),
    };
    Failure::new(Code::Finding, what, fix)
}

fn ambiguous(id: &str, found: &[Found]) -> Failure {
    let what = format!("{} may mean {} requests or more", sanitise(id, 80), found.len());
    let lines = found.iter().map(|found| {
        let own = found.request_id.as_deref().unwrap_or("id not known");
        format!("{}  {}", found.trace_id, sanitise(own, 80))
    });
    Failure::new(Code::Finding, what, format!("name one:\n       {}", lines.collect::<Vec<_>>().join("\n       ")))
}
