//! `inferspan diff`: which phase moved between two files.

use std::io;
use std::path::{Path, PathBuf};

use super::{print, print_json};
use crate::exit::{Code, Failure};
use crate::export::terminal::Style;
use crate::recall;
use crate::report::compare::{self, Side, Smallest};
use crate::report::rows::Collected;
use crate::report::{FileSaid, LossSaid, compare_text};

/// The smallest change of a request's time that is told, seconds: below, it is the tracer's own.
const SMALLEST: f64 = 50e-6;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Before: a recording, a syscall log, or a trace file
    #[arg(value_name = "A")]
    pub before: PathBuf,
    /// After: another
    #[arg(value_name = "B")]
    pub after: PathBuf,
    /// Smallest change that is told, in percent of what it was before
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, value_parser = parse_percent)]
    pub threshold: f64,
    /// Print the comparison as JSON
    #[arg(long)]
    pub json: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| "a number of percent, such as 2".to_owned())?;
    if (0.0..=1000.0).contains(&percent) { Ok(percent) } else { Err("from 0 to 1000".to_owned()) }
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let smallest = Smallest { share: args.threshold / 100.0, seconds: SMALLEST };
    let diff = compare::compare(side(&args.before)?, side(&args.after)?, smallest);
    if diff.models.is_empty() {
        let what = "no model is in both files, so nothing is compared";
        return Err(Failure::new(Code::Usage, what, "give two files of requests to the same model").into());
    }
    if args.json {
        print_json(&serde_json::to_value(&diff)?)?;
    } else {
        print(&compare_text::render(&diff, Style::of(&io::stdout())))?;
    }
    let is_slower = diff.findings.iter().any(|found| found.verdict.is_slower());
    Ok(if is_slower { Code::Finding } else { Code::Ok })
}

fn side(path: &Path) -> Result<Side, Failure> {
    let (Collected(rows), about) = recall::read(path, Collected::default())?;
    let file = FileSaid::of(&path.display().to_string(), &about);
    Ok(Side { file, rows, losses: about.losses.iter().map(LossSaid::of).collect() })
}
