//! What a probe costs a launch, of the fake CUDA libraries: a table, and a failure where a level costs more than was promised.
//!
//! The floor is an empty BPF program at the same instruction. At most: level `steps` 1.3 times, `kernels` 1.6 times (issue 8). bpftrace
//! sits at the symbol, as a user would type it: on trampolines level `steps` costs at most a third of it; on frames, where all sit at the
//! symbol, as much as bpftrace does that counts the same, by thread and function. One counter for all launches is less, and cheaper there.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::setup::apt;
use crate::{build, shell};

/// Levels, and what they may be of the floor.
const PROMISED: [(&str, f64); 2] = [("steps", 1.3), ("kernels", 1.6)];
/// What level `steps` may be of which row of bpftrace, by driver. A tenth is what equals differ by on a machine that does other things too.
const OF_BPFTRACE: [(&str, &str, f64); 2] = [("Old", "bpftrace", 1.0 / 3.0), ("New", "by function", 1.1)];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Launches of a turn
    #[arg(long, default_value_t = 20_000)]
    launches: u64,
    /// Turns, at most 64; each share of the floor is the median of what it was in so many
    #[arg(long, default_value_t = 31)]
    turns: u64,
}

/// A row of the table.
struct Row {
    driver: String,
    run: String,
    ns: f64,
    of_floor: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure_bpftrace();
    build::inferspan()?;
    build::programs("inferspan-gpu-check", &["empty-uprobe"])?;
    let program = build::programs(build::TESTS_CRATE, &["launch-cost"])?.remove(0);
    let mut command = Command::new(program);
    command.args([arguments.launches.to_string(), arguments.turns.to_string()]).stderr(Stdio::inherit());
    let measured = shell::step("launching", || command.output().context("launch-cost does not run"))?;
    if !measured.status.success() {
        bail!("launch-cost failed: {}", measured.status);
    }
    let text = String::from_utf8(measured.stdout).context("its output is no text")?;
    let rows: Vec<Row> = text.lines().map(row).collect::<Result<_>>().context("its output")?;
    println!("{:<8} {:<11} {:>12} {:>10}", "driver", "run", "ns a launch", "of floor");
    for Row { driver, run, ns, of_floor } in &rows {
        println!("{driver:<8} {run:<11} {ns:>12.1} {of_floor:>10.2}");
    }
    let over = over(&rows);
    if over.is_empty() { Ok(()) } else { bail!("over what was promised: {}", over.join("; ")) }
}

fn row(line: &str) -> Result<Row> {
    let row: Value = serde_json::from_str(line)?;
    let text = |name: &str| row[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {line}"));
    let number = |name: &str| row[name].as_f64().with_context(|| format!("no {name} in {line}"));
    Ok(Row { driver: text("driver")?, run: text("run")?, ns: number("ns")?, of_floor: number("of_floor")? })
}

/// What costs more than was promised.
fn over(rows: &[Row]) -> Vec<String> {
    let share = |driver: &str, run: &str| {
        rows.iter().find(|row| row.driver == driver && row.run == run).map(|row| row.of_floor)
    };
    let mut over = Vec::new();
    for (driver, row, of_bpftrace) in OF_BPFTRACE {
        for (level, most) in PROMISED {
            let is = share(driver, level);
            if !is.is_some_and(|is| is <= most) {
                over.push(format!("{level} on {driver}: {:.2} times the floor, not {most}", is.unwrap_or(f64::NAN)));
            }
        }
        if let (Some(steps), Some(bpftrace)) = (share(driver, "steps"), share(driver, row))
            && steps > of_bpftrace * bpftrace
        {
            over.push(format!("steps on {driver}: {:.2} of bpftrace, not {of_bpftrace:.2}", steps / bpftrace));
        }
    }
    over
}

/// bpftrace for its row. A machine that cannot have it can do without the row.
fn ensure_bpftrace() {
    if shell::find_on_path("bpftrace").is_some() {
        return;
    }
    if let Err(error) = apt::install(&["bpftrace"]) {
        eprintln!("xtask: WARNING: bpftrace cannot be installed, so nothing is compared with it: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(of: &[(&str, &str, f64)]) -> Vec<Row> {
        let row = |(driver, run, of_floor): &(&str, &str, f64)| Row {
            driver: (*driver).to_owned(),
            run: (*run).to_owned(),
            ns: 600.0 * of_floor,
            of_floor: *of_floor,
        };
        of.iter().map(row).collect()
    }

    const GOOD: [(&str, &str, f64); 4] =
        [("Old", "steps", 1.2), ("Old", "kernels", 1.5), ("New", "steps", 1.2), ("New", "kernels", 1.5)];

    #[test]
    fn what_costs_more_than_was_promised_is_told() {
        assert_eq!(over(&rows(&GOOD)), [""; 0]);
        let dear = [("Old", "steps", 1.2), ("Old", "kernels", 1.7), ("New", "steps", 1.2), ("New", "kernels", 1.5)];
        assert_eq!(over(&rows(&dear)), ["kernels on Old: 1.70 times the floor, not 1.6"]);
        assert_eq!(over(&rows(&GOOD[..3])), ["kernels on New: NaN times the floor, not 1.6"], "nothing is no success");
    }

    #[test]
    fn bpftrace_is_compared_with_where_it_is() {
        let with =
            |old: f64, new: f64| rows(&[&GOOD[..], &[("Old", "bpftrace", old), ("New", "by function", new)]].concat());
        assert_eq!(over(&with(13.0, 1.3)), [""; 0]);
        assert_eq!(over(&with(3.0, 1.3)), ["steps on Old: 0.40 of bpftrace, not 0.33"]);
        assert_eq!(over(&with(13.0, 1.0)), ["steps on New: 1.20 of bpftrace, not 1.10"]);
    }
}
