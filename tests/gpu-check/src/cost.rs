//! What a probe costs a launch, against the least that any probe costs.
//!
//! Enters: the CUDA program's tight loop. Leaves: the median of nanoseconds a launch, untraced, with an empty uprobe where Inferspan
//! probes, with one at the symbol, and at each level. They run in turns, so that a machine that slows down slows all alike.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::prologues;
use crate::traced::{self, Program, Started};

/// The floor and the levels, as they are named in the report.
pub(crate) const UNTRACED: &str = "untraced";
pub(crate) const FLOOR: &str = "empty uprobe at the chosen instruction";
const SYMBOL: &str = "empty uprobe at the symbol";
/// What the levels may be of the floor: issue 8.
const PROMISED: [(&str, f64); 2] = [("steps", 1.3), ("kernels", 1.6)];

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) launches: u32,
    pub(crate) turns: u32,
    /// Medians, ns a launch.
    pub(crate) ns: BTreeMap<String, f64>,
}

impl Cost {
    /// A level's nanoseconds as a share of the floor's.
    pub(crate) fn of_floor(&self, what: &str) -> Option<f64> {
        Some(self.ns.get(what)? / self.ns.get(FLOOR)?)
    }

    /// Levels over what was promised, with what they are of the floor.
    pub(crate) fn over(&self) -> Vec<(&'static str, f64, f64)> {
        let all = PROMISED.iter().filter_map(|(level, most)| Some((*level, self.of_floor(level)?, *most)));
        all.filter(|(_, share, most)| share > most).collect()
    }
}

/// Where the programs are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Programs<'a> {
    pub(crate) inferspan: &'a Path,
    pub(crate) program: &'a Path,
    pub(crate) empty: &'a Path,
    pub(crate) driver: &'a Path,
}

pub(crate) fn measure(programs: Programs<'_>, launches: u32, turns: u32, folder: &Path) -> Result<Cost> {
    let point = prologues::point(programs.driver, "cuLaunchKernel")?.context("the driver exports no cuLaunchKernel")?;
    let bench = || {
        let mut command = Command::new(programs.program);
        command.args(["bench", &launches.to_string()]);
        command
    };
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..turns {
        for what in [UNTRACED, FLOOR, SYMBOL, "steps", "kernels"] {
            let truth = match what {
                UNTRACED => Program::start(&mut bench())?.finish()?,
                FLOOR => with_empty(programs, &mut bench(), point.offset + point.quickest)?,
                SYMBOL => with_empty(programs, &mut bench(), point.offset)?,
                level => {
                    traced::run(programs.inferspan, &mut bench(), level, &folder.join(format!("bench-{level}")))?.0
                }
            };
            times.entry(what).or_default().push(truth.ns_per_launch.context("the program does not say its time")?);
        }
    }
    let ns = times.into_iter().map(|(what, times)| (what.to_owned(), median(times))).collect();
    Ok(Cost { launches, turns, ns })
}

fn with_empty(programs: Programs<'_>, bench: &mut Command, offset: u64) -> Result<inferspan_gpu_check::truth::Truth> {
    let program = Program::start(bench)?;
    let mut command = Command::new(programs.empty);
    command.arg(programs.driver).args([offset.to_string(), program.pid().to_string()]);
    let mut probe = Started::new(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    probe
        .stdout()?
        .recv_timeout(Duration::from_secs(30))
        .context("the empty uprobe does not attach; stderr says why")?;
    program.finish()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_held_against_the_floor() {
        let ns = [(UNTRACED, 1000.0), (FLOOR, 2000.0), ("steps", 2500.0), ("kernels", 3400.0)];
        let cost = Cost { ns: ns.map(|(what, ns)| (what.to_owned(), ns)).into(), ..Cost::default() };
        assert_eq!(cost.over(), [("kernels", 1.7, 1.6)]);
        assert_eq!(cost.of_floor("steps"), Some(1.25));
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
