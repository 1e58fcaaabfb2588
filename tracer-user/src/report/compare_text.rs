//! A comparison for a terminal: 80 columns.
//!
//! Enters: a [`Diff`], whose names are safe to show. Leaves: text.

use super::FileSaid;
use super::compare::{Diff, Finding, MODELS_OVER, ModelDiff, PhaseDiff, Unit, Verdict};
use super::shift::{CONFIDENCE, Shift};
use super::text::{Page, WIDTH, shown};
use super::words::{count, maybe, percent, seconds};
use crate::export::terminal::Style;
use crate::export::terminal::units::{fit, width};

/// As `style` says, but for its width.
pub fn render(diff: &Diff, style: Style) -> String {
    let mut page = Page::new(style);
    for (name, file) in [("A", &diff.a), ("B", &diff.b)] {
        page.line(&format!("{name}  {}", of_file(file, style)));
    }
    for model in &diff.models {
        of_model(&mut page, model);
    }
    let only = [("A", &diff.only_in_a, "B", &diff.losses_b), ("B", &diff.only_in_b, "A", &diff.losses_a)];
    for (name, only, other, losses) in only {
        if !only.is_empty() {
            page.out.push('\n');
            let may_be = losses.iter().any(|loss| loss.what == MODELS_OVER);
            let or = if may_be { format!(", or among {other}'s that are not told apart") } else { String::new() };
            page.wrapped(&format!("in {name} alone{or}: {}", only.join(", ")), 0);
        }
    }
    for (name, losses) in [("A", &diff.losses_a), ("B", &diff.losses_b)] {
        for loss in losses {
            page.wrapped(&format!("missing in {name}: {}", loss.said), 0);
        }
    }
    page.out.push('\n');
    if diff.findings.is_empty() {
        page.line("No phase moved.");
    }
    diff.findings.iter().for_each(|found| page.wrapped(&of_finding(found), 2));
    page.out
}

fn of_file(file: &FileSaid, style: Style) -> String {
    let took = file.seconds.map(|took| format!(", {}", seconds(took))).unwrap_or_default();
    let room = WIDTH - 24 - width(&took);
    format!("{} ({}{took})", fit(&file.path, room, style), file.kind)
}

fn of_model(page: &mut Page, of: &ModelDiff) {
    page.out.push('\n');
    let name = fit(&of.model, 30, page.style);
    let all = format!(": {} requests in A, {} in B", count(of.requests_a), count(of.requests_b));
    let well = format!("{} and {} went well", count(of.compared_a), count(of.compared_b));
    if width(&name) + width(&all) + width(&well) + 2 <= WIDTH {
        page.titled(&name, &format!("{all}; {well}"));
    } else {
        page.titled(&name, &all);
        page.line(&format!("  {well}"));
    }
    if of.phases.is_empty() {
        page.line("  of none of them is a time known");
        return;
    }
    for warning in &of.warnings {
        page.wrapped(&format!("! {warning}"), 2);
    }
    let head = format!("shift at {:.0} %", CONFIDENCE * 100.0);
    page.line(&format!("  {:<11}{:>8}{:>8}{:>8}{:>8}  {head:<22}", "", "p50 A", "B", "p95 A", "B"));
    of.phases.iter().for_each(|phase| page.line(of_phase(phase).trim_end()));
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
