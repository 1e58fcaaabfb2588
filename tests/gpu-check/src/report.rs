//! The report: what is written for `docs/gpu-runs/`, as JSON and as text.
//!
//! Invariant: what was not done is in `missing` with what it needs, what differs is in `differences()`; nothing is left out of the text.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::compare::Check;
use crate::cost::{Cost, UNTRACED};
use crate::host::Host;
use crate::prologues::Prologue;

pub(crate) const SCHEMA: &str = "inferspan.gpu-check/1";

/// A step that was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) step: String,
    pub(crate) needs: String,
}

/// A library, and its probe points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Library {
    pub(crate) what: String,
    pub(crate) path: String,
    pub(crate) points: Vec<Prologue>,
}

/// Where in a handle the name is kept, as a function's code says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameAt {
    pub(crate) function: String,
    /// Bytes; null where the code is of an unknown form.
    pub(crate) displacement: Option<u32>,
}

/// A program that was traced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) program: String,
    pub(crate) level: String,
    /// Whether the device computed what it should while it was probed.
    pub(crate) is_result_right: Option<bool>,
    /// Waits as the program counts them.
    pub(crate) waits: Option<u64>,
    pub(crate) checks: Vec<Check>,
    pub(crate) notes: Vec<String>,
    /// Lines of inferspan's stderr.
    pub(crate) said: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: String,
    /// UTC.
    pub(crate) date: String,
    pub(crate) inferspan: String,
    /// Whether a GPU was there; else nothing here is a fact of one.
    pub(crate) is_gpu: bool,
    pub(crate) missing: Vec<Missing>,
    /// Steps that failed, and why.
    pub(crate) failed: Vec<Missing>,
    pub(crate) host: Host,
    pub(crate) devices: Vec<String>,
    pub(crate) libraries: Vec<Library>,
    pub(crate) names_at: Vec<NameAt>,
    pub(crate) runs: Vec<Run>,
    pub(crate) cost: Option<Cost>,
}

impl Report {
    /// Each thing that is not as it should be.
    pub(crate) fn differences(&self) -> Vec<String> {
        let mut found: Vec<String> =
            self.failed.iter().map(|one| format!("{} failed: {}", one.step, one.needs)).collect();
        for at in self.names_at.iter().filter(|at| at.displacement != Some(8)) {
            let is = at.displacement.map_or_else(|| "not found".to_owned(), |at| at.to_string());
            found.push(format!("{}: the name's displacement is {is}, expected 8", at.function));
        }
        for library in &self.libraries {
            let stepped = library.points.iter().filter(|point| !point.is_emulated);
            found.extend(stepped.map(|point| format!("{}: {} needs a single step", library.what, point.symbol)));
        }
        for run in &self.runs {
            let (program, level) = (&run.program, &run.level);
            if self.is_gpu && run.is_result_right == Some(false) {
                found.push(format!("{program}, {level}: the device computed something else"));
            }
            for check in run.checks.iter().filter(|check| !check.is_equal) {
                found.push(format!("{program}, {level}: {}: done {}, seen {}", check.what, check.done, check.seen));
            }
        }
        let over = self.cost.iter().flat_map(Cost::over);
        found.extend(over.map(|(level, is, most)| format!("cost: {level} is {is:.2} of the floor, promised {most}")));
        found
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("report.json", &(serde_json::to_string_pretty(self)? + "\n"))?;
        write("report.md", &self.text())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        self.put(&mut text).expect("a String takes everything");
        text
    }

    fn put(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# GPU check of {}\n\n{}, {}", self.date, self.inferspan, self.schema)?;
        if !self.is_gpu {
            writeln!(out, "\n**No GPU: nothing here was seen on one.**")?;
        }
        put_list(out, "Not done", self.missing.iter().map(|one| format!("{}: needs {}", one.step, one.needs)))?;
        put_list(out, "Differences", self.differences().into_iter())?;
        put_list(
            out,
            "Host",
            self.host.facts.iter().map(|(name, fact)| format!("{name}: {}", fact.replace('\n', " · "))),
        )?;
        put_list(out, "Devices", self.devices.iter().cloned())?;
        for library in &self.libraries {
            writeln!(out, "\n## {}\n\n`{}`\n", library.what, library.path)?;
            writeln!(out, "| function | probed at | emulated | first bytes | instructions |\n|---|---|---|---|---|")?;
            for point in &library.points {
                let Prologue { symbol, bytes, instructions, chosen, is_emulated, .. } = point;
                let is_emulated = if *is_emulated { "yes" } else { "no: single step" };
                writeln!(out, "| `{symbol}` | +{chosen} | {is_emulated} | `{bytes}` | {} |", instructions.join("; "))?;
            }
        }
        let at = |at: &NameAt| at.displacement.map_or_else(|| "not found".to_owned(), |at| format!("+{at}"));
        put_list(out, "A handle's name", self.names_at.iter().map(|name| format!("{}: {}", name.function, at(name))))?;
        for run in &self.runs {
            writeln!(out, "\n## {}, level `{}`\n\n| | done | seen | |\n|---|---|---|---|", run.program, run.level)?;
            for Check { what, done, seen, is_equal } in &run.checks {
                let verdict = if *is_equal { "equal" } else { "**differs**" };
                writeln!(out, "| {} | {done} | {seen} | {verdict} |", what.replace('|', "\\|"))?;
            }
            let right = run.is_result_right.map(|is| format!("result right: {is}"));
            let waits = run.waits.map(|waits| format!("waits, by its own count: {waits}"));
            let said = run.said.iter().map(|line| format!("said: {line}"));
            writeln!(out)?;
            for note in right.into_iter().chain(waits).chain(run.notes.iter().cloned()).chain(said) {
                writeln!(out, "- {note}")?;
            }
        }
        if let Some(cost) = &self.cost {
            writeln!(out, "\n## Cost\n\nMedians of {} turns of {} launches.\n", cost.turns, cost.launches)?;
            writeln!(out, "| | ns a launch | added | of the floor |\n|---|---|---|---|")?;
            let untraced = cost.ns.get(UNTRACED).copied().unwrap_or_default();
            for (what, ns) in &cost.ns {
                let share = cost.of_floor(what).map_or_else(String::new, |share| format!("{share:.2}"));
                writeln!(out, "| {what} | {ns:.0} | {:.0} | {share} |", ns - untraced)?;
            }
        }
        Ok(())
    }
}

/// A heading and a line each; nothing where there is none.
fn put_list(out: &mut String, heading: &str, lines: impl Iterator<Item = String>) -> std::fmt::Result {
    for (at, line) in lines.enumerate() {
        if at == 0 {
            writeln!(out, "\n## {heading}\n")?;
        }
        writeln!(out, "- {line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let check = |is_equal| Check { what: "launches".into(), done: "4".into(), seen: "3".into(), is_equal };
        let run = Run {
            program: "p".into(),
            level: "steps".into(),
            is_result_right: Some(true),
            waits: None,
            checks: vec![check(true), check(false)],
            notes: Vec::new(),
            said: Vec::new(),
        };
        Report {
            schema: SCHEMA.into(),
            date: "2026-11-24".into(),
            inferspan: "inferspan 0".into(),
            is_gpu: true,
            missing: vec![Missing { step: "decode loop".into(), needs: "PyTorch".into() }],
            failed: Vec::new(),
            host: Host::default(),
            devices: Vec::new(),
            libraries: Vec::new(),
            names_at: vec![NameAt { function: "cuFuncGetName".into(), displacement: Some(16) }],
            runs: vec![run],
            cost: None,
        }
    }

    #[test]
    fn what_differs_and_what_was_not_done_stands_at_the_top() {
        let text = report().text();
        for line in [
            "- decode loop: needs PyTorch",
            "- cuFuncGetName: the name's displacement is 16, expected 8",
            "- p, steps: launches: done 4, seen 3",
            "| launches | 4 | 3 | **differs** |",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(report().differences().len(), 2);
    }

    #[test]
    fn a_report_without_a_gpu_says_so() {
        let without = Report { is_gpu: false, ..report() };
        assert!(without.text().contains("**No GPU"), "{}", without.text());
        assert!(!report().text().contains("No GPU"));
    }
}
