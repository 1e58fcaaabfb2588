//! What a launch costs untraced, with the least that any probe costs, with bpftrace, and at each level: one JSON object a row.
//!
//! Enters: `LAUNCHES TURNS`; the programs `inferspan` and `empty-uprobe` beside it. Leaves, for both shapes of drivers: medians of
//! nanoseconds a launch of the fake CUDA's tight loop, and of what that is of the floor. A program for each row, with a driver file of its
//! own, so that a probe in one is no other's; all stay attached, and launch in turns. A share of the floor is of one turn: a machine that
//! slows down slows its neighbours alike. Needs root, gcc; bpftrace for its row, which is left out without it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use inferspan::attach::exports::Exports;
use inferspan::attach::family::{ENTERED, Point};
use inferspan_tests::cuda::traced::Tracer;
use inferspan_tests::cuda::{Driver, Fixture, Running};

/// What runs beside the program. `bpftrace` counts, as a user would type it; `by function` counts what level `steps` does: by thread and
/// function.
const RUNS: [&str; 7] = ["untraced", "floor", "symbol", "bpftrace", "by function", "steps", "kernels"];
/// Those that are bpftrace's, and their statements.
const BPFTRACE: [(&str, &str); 2] = [("bpftrace", "@ = count()"), ("by function", "@[tid, arg0] = count()")];
/// Turns that a program can tell of (`fixtures/cuda/program/statements.c`).
const TURNS_MAX: usize = 64;
/// Between two of them: a reader is through with what was launched, and no other pays for it.
const PAUSE: Duration = Duration::from_millis(40);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, otherwise: usize| words.get(at).map_or(Ok(otherwise), |word| word.parse());
    let (launches, turns) = (number(0, 20_000)?, number(1, 31)?);
    ensure!((1..=TURNS_MAX).contains(&turns), "at most {TURNS_MAX} turns");
    let fixture = Fixture::build()?;
    let has_bpftrace = Command::new("bpftrace").arg("--version").output().is_ok();
    let runs: Vec<&str> = RUNS.into_iter().filter(|run| has_bpftrace || statement(run).is_none()).collect();
    let folder = std::env::temp_dir().join(format!("inferspan-launch-cost-{}", std::process::id()));
    for driver in [Driver::Old, Driver::New] {
        let measured = measure(&fixture, driver, &runs, &folder, launches, turns);
        let _ = std::fs::remove_dir_all(&folder);
        report(driver, &runs, &measured?);
    }
    Ok(())
}

/// Nanoseconds a launch, of each run and turn.
fn measure(
    fixture: &Fixture,
    driver: Driver,
    runs: &[&'static str],
    folder: &Path,
    launches: usize,
    turns: usize,
) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let script = format!("repeat {turns} {{ bench {launches}; wait }}");
    let library = fixture.libcuda(driver).context("a driver")?;
    let exports = Exports::read(&std::fs::File::open(&library)?)?.context("a library")?;
    let point = exports.point(ENTERED, 0, "cuLaunchKernel").context("a launch")?;
    let mut beside = Vec::new();
    for run in runs {
        let own = folder.join(beside.len().to_string());
        std::fs::create_dir_all(&own)?;
        let copy = own.join("libcuda.so.1");
        std::fs::copy(&library, &copy)?;
        let running = fixture.driver_program(driver).with_libraries(own).script(&script).spawn()?;
        beside.push(Beside::attach(run, running, &copy, &point)?);
    }
    for turn in 0..turns {
        // Another one is first each time.
        for at in 0..beside.len() {
            let index = (at + turn) % beside.len();
            let running = &mut beside[index].running;
            running.start()?;
            running.reach_wait()?;
            std::thread::sleep(PAUSE);
        }
    }
    let mut times = BTreeMap::new();
    for one in beside {
        let run = one.run;
        times.insert(run, one.end(launches * turns)?);
    }
    Ok(times)
}

/// A program, and what traces it.
struct Beside {
    run: &'static str,
    running: Running,
    child: Option<Child>,
    tracer: Option<Tracer>,
}

impl Beside {
    fn attach(run: &'static str, running: Running, library: &Path, point: &Point) -> Result<Self> {
        let pid = running.pid();
        let child = match run {
            "floor" => Some(empty(library, point.offset + point.quickest, pid)?),
            "symbol" => Some(empty(library, point.offset, pid)?),
            _ => statement(run).map(|statement| bpftrace(library, pid, statement)).transpose()?,
        };
        let tracer = ["steps", "kernels"].contains(&run).then(|| Tracer::attach(run, pid, &["--level", run]));
        Ok(Self { run, running, child, tracer })
    }

    /// Nanoseconds a launch, by turn. No launch of the program was missed.
    fn end(mut self, launches: usize) -> Result<Vec<f64>> {
        self.running.start()?;
        self.running.reach_end()?;
        let truth = self.running.finish()?;
        if let Some(mut child) = self.child {
            drop(child.stdin.take());
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(tracer) = self.tracer {
            let seen = tracer.end();
            let counted = seen.count("inferspan_cuda_launches_total", "");
            ensure!(counted == launches as u64, "{counted} launches of {launches} were counted\n{}", seen.said);
        }
        Ok(truth.bench.iter().map(|bench| bench.ns_per_launch).collect())
    }
}

fn report(driver: Driver, runs: &[&str], times: &BTreeMap<&str, Vec<f64>>) {
    let of = |run: &str| times.get(run).cloned().unwrap_or_default();
    let floor = of("floor");
    for run in runs {
        let shares = of(run).iter().zip(&floor).map(|(ns, floor)| ns / floor).collect();
        let row = serde_json::json!({
            "driver": format!("{driver:?}"), "run": run, "ns": median(of(run)), "of_floor": median(shares),
        });
        println!("{row}");
    }
}

/// An empty BPF program at an instruction.
fn empty(library: &Path, offset: u64, pid: u32) -> Result<Child> {
    let own = std::env::current_exe()?;
    let program = own.with_file_name("empty-uprobe");
    let mut child = Command::new(&program)
        .arg(library)
        .args([offset.to_string(), pid.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
    ensure!(line.trim() == "attached", "empty-uprobe said {line:?}");
    Ok(child)
}

/// Of a run that is bpftrace's.
fn statement(run: &str) -> Option<&'static str> {
    BPFTRACE.iter().find(|(name, _)| *name == run).map(|(_, statement)| *statement)
}

/// A statement at the symbol.
fn bpftrace(library: &Path, pid: u32, statement: &str) -> Result<Child> {
    let program =
        format!("BEGIN {{ printf(\"attached\\n\") }} uprobe:{}:cuLaunchKernel {{ {statement} }}", library.display());
    let mut child = Command::new("bpftrace")
        .args(["-q", "-p", &pid.to_string(), "-e", &program])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut bytes = [0; 8];
    child.stdout.as_mut().context("piped")?.read_exact(&mut bytes)?;
    // Its probes come right behind that word.
    std::thread::sleep(Duration::from_secs(1));
    Ok(child)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
