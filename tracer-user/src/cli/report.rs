//! `inferspan report`: what a recording, a syscall log or a trace file amounts to.

use std::io::{self, Write as _};
use std::path::PathBuf;

use super::{print, print_json};
use crate::exit::Code;
use crate::export::terminal::Style;
use crate::out_file::{self, Existing};
use crate::recall;
use crate::report::digest::Digest;
use crate::report::{html, text};
use crate::sanitise;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A recording of `inferspan record`, a syscall log, or traces as `--traces-out` or a collector's file exporter writes them
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Make a page for a browser: one file that needs no other
    #[arg(long, conflicts_with = "json")]
    pub html: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Write it to OUT instead of stdout
    #[arg(short, long, value_name = "OUT")]
    pub output: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let (digest, about) = recall::read(&args.file, Digest::default())?;
    let report = digest.report(&args.file.display().to_string(), &about);
    let Some(path) = &args.output else {
        match (args.html, args.json) {
            (true, _) => print(&html::render(&report))?,
            (_, true) => print_json(&serde_json::to_value(&report)?)?,
            _ => print(&text::render(&report, Style::of(&io::stdout())))?,
        }
        return Ok(Code::Ok);
    };
    let whole = match (args.html, args.json) {
        (true, _) => html::render(&report),
        (_, true) => format!("{:#}\n", serde_json::to_value(&report)?),
        _ => text::render(&report, Style { color: false, unicode: true, width: text::WIDTH, has_cursor: false }),
    };
    let mut file = out_file::open(path, "the report", Existing::Dropped)?;
    file.write_all(whole.as_bytes())?;
    eprintln!("inferspan: wrote {}", sanitise::lines(&path.display().to_string()));
    Ok(Code::Ok)
}
