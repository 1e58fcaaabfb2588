//! Three requests of the demo that are worth a look, each as the running `attach` tells of it.
//!
//! Enters: the access log. Leaves: a request that waited, one that was preempted, one whose client left; of each what `inferspan why` and
//! `inferspan trace` print. Fails when the traffic left none of a kind that the server is set up to give.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use inferspan_harness::wait::Interrupt;
use serde_json::Value;

use crate::shell;

/// Lines of a picture that are shown: the phases. `inferspan trace` has every step.
const PICTURE_LINES: usize = 9;
/// Columns of what is shown.
const WIDTH: usize = 100;
/// For the last request to be over and written.
const SETTLE: Duration = Duration::from_millis(500);

/// A request, and what is said of it.
pub(super) struct Case {
    pub title: &'static str,
    pub id: String,
    pub why: String,
    pub picture: String,
}

/// What makes a request one of a kind, the larger the better; `None`: it is none.
type Merit = fn(&Value) -> Option<f64>;

/// What is looked for.
const WANTED: [(&str, Merit); 3] = [("it waited", waited), ("it was preempted", preempted), ("its client left", left)];

/// `is_real`: the server is the real vLLM, with room for all; then what there is of them is shown.
pub(super) fn find(inferspan: &Path, access_log: &Path, is_real: bool, interrupt: &Interrupt) -> Result<Vec<Case>> {
    interrupt.sleep(SETTLE);
    interrupt.check()?;
    let records = records(access_log)?;
    let mut cases = Vec::new();
    for (title, merit) in WANTED {
        let named = records.iter().filter_map(|record| Some((name(record)?, merit(record)?)));
        let Some((id, _)) = named.max_by(|(_, one), (_, other)| one.total_cmp(other)) else {
            if is_real {
                continue;
            }
            bail!(
                "of {} requests there is none of which to say that {title}; see {}",
                records.len(),
                access_log.display()
            );
        };
        let ask = |verb: &str| {
            shell::output(
                Command::new(inferspan).args([verb, &id]).env("COLUMNS", WIDTH.to_string()).env("NO_COLOR", "1"),
            )
        };
        let (why, picture) = (folded(&ask("why")?), brief(&ask("trace")?));
        cases.push(Case { title, id, why, picture });
    }
    if cases.is_empty() {
        bail!("none of {} requests waited, was preempted or lost its client", records.len());
    }
    Ok(cases)
}

/// The requests of an access log whose names are theirs alone.
fn records(access_log: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(access_log).with_context(|| format!("cannot read {}", access_log.display()))?;
    let records = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let records = records.with_context(|| format!("{} holds what is no JSON", access_log.display()))?;
    let mut named: BTreeMap<String, usize> = BTreeMap::new();
    for name in records.iter().filter_map(name) {
        *named.entry(name).or_default() += 1;
    }
    Ok(records.into_iter().filter(|record| name(record).is_some_and(|name| named[&name] == 1)).collect())
}

/// What a user would ask for it by.
fn name(record: &Value) -> Option<String> {
    record["request_id"].as_str().or(record["trace_id"].as_str()).map(str::to_owned)
}

fn seconds(record: &Value, what: &str) -> Option<f64> {
    record["seconds"][what].as_f64()
}

fn is_answered(record: &Value) -> bool {
    matches!(record["outcome"].as_str(), Some("stop" | "length"))
}

/// The largest part of its time in the queue.
fn waited(record: &Value) -> Option<f64> {
    let is_it = is_answered(record) && record["preemptions"] == 0;
    Some(seconds(record, "queue")? / seconds(record, "e2e")?.max(0.001)).filter(|_| is_it)
}

/// The most preemptions, and of those the longest.
fn preempted(record: &Value) -> Option<f64> {
    let times = record["preemptions"].as_f64().filter(|times| *times > 0.0 && is_answered(record))?;
    Some(times * 1e6 + seconds(record, "e2e")?)
}

/// After the most tokens.
fn left(record: &Value) -> Option<f64> {
    record["output_tokens"].as_f64().filter(|tokens| *tokens > 0.0 && record["outcome"] == "abort")
}

/// Words in lines of [`WIDTH`] columns.
fn folded(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > WIDTH {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            *line += if line.is_empty() { "" } else { " " };
            *line += word;
        }
    }
    lines.join("\n")
}

/// The picture alone, which is indented, without its single decode steps.
fn brief(picture: &str) -> String {
    let lines = picture.lines().filter(|line| line.starts_with("  ") && !line.trim().is_empty() && !is_step(line));
    lines.take(PICTURE_LINES).fold(String::new(), |shown, line| shown + line + "\n")
}

fn is_step(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("decode_step") || line.starts_with('…') || line.starts_with("...")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_is_told_by_what_it_is() {
        let of = |outcome: &str, queue: f64, e2e: f64, preemptions: u64| json!({"outcome": outcome, "preemptions": preemptions, "output_tokens": 3, "seconds": {"queue": queue, "e2e": e2e}});
        assert_eq!(waited(&of("stop", 0.5, 1.0, 0)), Some(0.5));
        assert_eq!(waited(&of("stop", 0.5, 1.0, 1)), None, "part of it is of its preemption");
        assert_eq!(waited(&of("abort", 0.5, 1.0, 0)), None);
        assert_eq!(preempted(&of("stop", 0.5, 1.0, 0)), None);
        assert!(preempted(&of("length", 0.0, 1.0, 2)) > preempted(&of("length", 0.0, 9.0, 1)));
        assert_eq!((left(&of("abort", 0.0, 1.0, 0)), left(&of("stop", 0.0, 1.0, 0))), (Some(3.0), None));
    }

    #[test]
    fn a_picture_is_cut_to_its_phases() {
        let picture = "05:37 200\n  trace x\n  decode 5ms\n    decode_step 1 2ms\n    …\n    decode_steps 2-9 3ms\n  detokenize 1us\nwhy x\n";
        assert_eq!(brief(picture), "  trace x\n  decode 5ms\n  detokenize 1us\n");
    }
}
