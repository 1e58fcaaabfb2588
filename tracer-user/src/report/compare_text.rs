//! A comparison for a terminal: 80 columns.
//!
//! Enters: a [`Diff`], whose names are safe to show. Leaves: text.

use std::fmt::Write as _;

use super::FileSaid;
use super::compare::{Diff, Finding, ModelDiff, PhaseDiff, Unit, Verdict};
use super::shift::{CONFIDENCE, Shift};
use super::text::{Drawn, WIDTH, fit, plain, shown, wrap};
use super::words::{count, maybe, percent, seconds};

pub fn render(diff: &Diff, drawn: Drawn) -> String {
    let mut out = String::new();
    for (name, file) in [("A", &diff.a), ("B", &diff.b)] {
        line(&mut out, &format!("{name}  {}", of_file(file)));
    }
    for model in &diff.models {
        of_model(&mut out, model, drawn);
    }
    for (name, only) in [("A", &diff.only_in_a), ("B", &diff.only_in_b)] {
        if !only.is_empty() {
            out.push('\n');
            wrapped(&mut out, &format!("in {name} alone: {}", only.join(", ")), 0);
        }
    }
    for (name, losses) in [("A", &diff.losses_a), ("B", &diff.losses_b)] {
        for loss in losses {
            wrapped(&mut out, &format!("missing in {name}: {}", loss.said), 0);
        }
    }
    out.push('\n');
    if diff.findings.is_empty() {
        line(&mut out, "No phase moved.");
    }
    diff.findings.iter().for_each(|found| wrapped(&mut out, &of_finding(found), 2));
    if drawn.unicode { out } else { plain(&out) }
}

fn line(out: &mut String, text: &str) {
    out.push_str(&fit(text, WIDTH));
    out.push('\n');
}

/// Further lines of it stand so much further in.
fn wrapped(out: &mut String, text: &str, by: usize) {
    for (number, part) in wrap(text, WIDTH - by).into_iter().enumerate() {
        let by = if number == 0 { 0 } else { by };
        line(out, &format!("{:by$}{part}", ""));
    }
}

fn of_file(file: &FileSaid) -> String {
    let took = file.seconds.map(|took| format!(", {}", seconds(took))).unwrap_or_default();
    let room = WIDTH - 24 - took.chars().count();
    format!("{} ({}{took})", fit(&file.path, room), file.kind)
}

fn of_model(out: &mut String, of: &ModelDiff, drawn: Drawn) {
    out.push('\n');
    let name = fit(&of.model, 30);
    let name = if drawn.color { format!("\x1b[1m{name}\x1b[0m") } else { name };
    let all = format!("{} requests in A, {} in B", count(of.requests_a), count(of.requests_b));
    let well = format!("{} and {} went well", count(of.compared_a), count(of.compared_b));
    let _ = writeln!(out, "{name}: {all}; {well}");
    if of.phases.is_empty() {
        line(out, "  of none of them is a time known");
        return;
    }
    for warning in &of.warnings {
        wrapped(out, &format!("! {warning}"), 2);
    }
    let head = format!("shift at {:.0} %", CONFIDENCE * 100.0);
    line(out, &format!("  {:<11}{:>8}{:>8}{:>8}{:>8}  {head:<22}", "", "p50 A", "B", "p95 A", "B"));
    of.phases.iter().for_each(|phase| line(out, of_phase(phase).trim_end()));
}

fn of_phase(of: &PhaseDiff) -> String {
    let name = match of.unit {
        Unit::SecondsAPromptToken => "prefill/tok",
        Unit::Seconds | Unit::SecondsAToken => shown(of.name),
    };
    let numbers = [of.a.median, of.b.median, of.a.p95, of.b.p95].map(|time| format!("{:>8}", maybe(time))).concat();
    let bounds = of.shift.map_or_else(|| "too few".to_owned(), |shift| between(&shift));
    let verdict = match (of.verdict, of.by.as_slice()) {
        (None, _) if of.shift.is_some() => "not alike".to_owned(),
        (None, _) => String::new(),
        (Some(verdict), _) => verdict.words().to_owned(),
    };
    format!("  {name:<11}{numbers}  {bounds:<22} {verdict}")
}

fn signed(time: f64) -> String {
    if time > 0.0 { format!("+{}", seconds(time)) } else { seconds(time) }
}

fn between(shift: &Shift) -> String {
    format!("{} to {}", signed(shift.low), signed(shift.high))
}

fn of_finding(of: &Finding) -> String {
    let what = match (of.verdict, of.unit) {
        (Verdict::TailSlower | Verdict::TailFaster, _) => format!("the slowest twentieth of {}", shown(of.phase)),
        (_, Unit::SecondsAPromptToken) => "prefill for each token".to_owned(),
        (_, Unit::SecondsAToken) => "decode for each token".to_owned(),
        (_, Unit::Seconds) => of.phase.to_owned(),
    };
    let way = if of.verdict.is_slower() { "Slower" } else { "Faster" };
    let share = if of.share.is_finite() { format!(", {}", percent(of.share.abs())) } else { String::new() };
    format!("{way}: {what} by {}{share} ({}), model {}", seconds(of.shift.estimate.abs()), between(&of.shift), of.model)
}
