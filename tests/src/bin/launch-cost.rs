//! What a launch costs untraced, with the least that any probe costs, with bpftrace, and at each level: one JSON object a row.
//!
//! Enters: `LAUNCHES TURNS`; the programs `inferspan` and `empty-uprobe` beside it. Leaves: medians of nanoseconds a launch of the fake
//! CUDA's tight loop, for both shapes of drivers. All run in turns, so that a machine that slows down slows all alike. Needs root, gcc.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use inferspan::attach::exports::Exports;
use inferspan::attach::family::ENTERED;
use inferspan_tests::cuda::traced::Tracer;
use inferspan_tests::cuda::{Driver, Fixture};

/// What runs beside the program.
const RUNS: [&str; 6] = ["untraced", "floor", "symbol", "bpftrace", "steps", "kernels"];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, otherwise: u64| words.get(at).map_or(Ok(otherwise), |word| word.parse());
    let (launches, turns) = (number(0, 100_000)?, number(1, 5)?);
    let fixture = Fixture::build()?;
    let has_bpftrace = Command::new("bpftrace").arg("--version").output().is_ok();
    if !has_bpftrace {
        eprintln!("launch-cost: no bpftrace here (apt install bpftrace): that row is left out");
    }
    for driver in [Driver::Old, Driver::New] {
        let library = fixture.libcuda(driver).context("a driver")?;
        let exports = Exports::read(&std::fs::File::open(&library)?)?.context("a library")?;
        let point = exports.point(ENTERED, 0, "cuLaunchKernel").context("a launch")?;
        let program = fixture.driver_program(driver).script(&format!("bench {launches}"));
        let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for run in (0..turns).flat_map(|_| RUNS).filter(|run| has_bpftrace || *run != "bpftrace") {
            let mut running = program.spawn()?;
            let pid = running.pid();
            let mut beside = match run {
                "floor" => Some(empty(&library, point.offset + point.quickest, pid)?),
                "symbol" => Some(empty(&library, point.offset, pid)?),
                "bpftrace" => Some(bpftrace(&library, pid)?),
                _ => None,
            };
            let tracer = ["steps", "kernels"].contains(&run).then(|| Tracer::attach(run, pid, &["--level", run]));
            running.start()?;
            running.reach_end()?;
            let truth = running.finish()?;
            times.entry(run).or_default().push(truth.bench.first().context("a time")?.ns_per_launch);
            if let Some(child) = &mut beside {
                drop(child.stdin.take());
                let _ = child.kill();
                let _ = child.wait();
            }
            if let Some(tracer) = tracer {
                let seen = tracer.end();
                ensure!(
                    seen.count("inferspan_cuda_launches_total", "") == launches,
                    "a launch was missed\n{}",
                    seen.said
                );
            }
        }
        let medians: BTreeMap<&str, f64> = times.into_iter().map(|(run, times)| (run, median(times))).collect();
        let floor = medians.get("floor").copied().unwrap_or(f64::NAN);
        for run in RUNS {
            let Some(ns) = medians.get(run) else { continue };
            let row =
                serde_json::json!({ "driver": format!("{driver:?}"), "run": run, "ns": ns, "of_floor": ns / floor });
            println!("{row}");
        }
    }
    Ok(())
}

/// An empty BPF program at an instruction.
fn empty(library: &std::path::Path, offset: u64, pid: u32) -> Result<Child> {
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

/// What a user would type.
fn bpftrace(library: &std::path::Path, pid: u32) -> Result<Child> {
    let program =
        format!("BEGIN {{ printf(\"attached\\n\") }} uprobe:{}:cuLaunchKernel {{ @ = count() }}", library.display());
    let mut child = Command::new("bpftrace")
        .args(["-q", "-p", &pid.to_string(), "-e", &program])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut bytes = [0; 8];
    child.stdout.as_mut().context("piped")?.read_exact(&mut bytes)?;
    // Its probes come right behind that word.
    std::thread::sleep(std::time::Duration::from_secs(1));
    Ok(child)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
