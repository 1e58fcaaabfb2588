//! `cargo xtask bench vllm`: what `inferspan attach` costs a real server.
//!
//! Enters: vLLM on CPU with the tiny model, the same closed loop of clients again and again, without and with the tracer in
//! turns. Leaves: raw numbers and a table in `docs/overhead/`. Each run with is compared with the run without beside it, so
//! that what drifts on the machine falls out; which of the two comes first alternates. One run more has the kernel count what each
//! BPF program takes, which slows them a little. Everything is stopped at the end, on failure and on Ctrl-C.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use inferspan_harness::process::{Process, Signal};
use inferspan_harness::server::Server;
use inferspan_harness::wait::Interrupt;
use inferspan_harness::{attached, http, proc};
use serde_json::{Value, json};

use super::overhead;
use super::viewer::Viewer;
use crate::demo::server;
use crate::{build, shell};

/// What is measured, by its name.
const VARIANTS: [Variant; 2] = [
    Variant {
        name: "requests",
        what: "`inferspan attach`",
        flags: &["--level", "requests"],
        compared: Compared::Tracer,
    },
    Variant {
        name: "viewer",
        what: "somebody looking at the page of an `inferspan attach` that runs in both",
        flags: &["--level", "requests"],
        compared: Compared::Viewer,
    },
];

struct Variant {
    name: &'static str,
    /// What the runs with have and those without have not.
    what: &'static str,
    /// Flags of `attach` beside the metrics and the access log.
    flags: &'static [&'static str],
    compared: Compared,
}

/// What only the runs with have.
#[derive(Clone, Copy, PartialEq)]
enum Compared {
    Tracer,
    /// `--ui`, and who looks at it; the tracer runs in both.
    Viewer,
}

impl Variant {
    fn present(&self, with: bool) -> Present {
        match (self.compared, with) {
            (Compared::Tracer, false) => Present::Nobody,
            (Compared::Tracer, true) | (Compared::Viewer, false) => Present::Tracer,
            (Compared::Viewer, true) => Present::Viewer,
        }
    }
}

/// Who is there in a run.
#[derive(Clone, Copy, PartialEq)]
enum Present {
    Nobody,
    Tracer,
    Viewer,
}

/// Who looks at the page, among the roles whose CPU time is told.
const VIEWER: &str = "viewer";

/// Whether the kernel counts what programs take.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Pairs of runs, without and with, of each variant
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Length of a run
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Concurrent clients
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// Measure this way to attach; may be given several times [default: requests]
    #[arg(long, value_name = "VARIANT", value_parser = VARIANTS.map(|variant| variant.name))]
    only: Vec<String>,
    /// Where the raw numbers and the table go
    #[arg(long, value_name = "FOLDER", default_value = "docs/overhead")]
    out: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if !shell::is_root() {
        bail!("attaching needs root: `sudo -E env PATH=$PATH cargo xtask bench vllm`");
    }
    let variants: Vec<_> = VARIANTS
        .into_iter()
        .filter(|variant| match arguments.only.as_slice() {
            [] => variant.name == "requests",
            only => only.iter().any(|asked| asked == variant.name),
        })
        .collect();
    let inferspan = build::inferspan()?;
    let mut programs = build::programs(build::TESTS_CRATE, &["steady-load", "program-costs"])?;
    let (load, costs) = (programs.remove(0), programs.remove(0));
    let help = shell::output(Command::new(&inferspan).args(["attach", "--help"]))?;
    for Variant { name, flags, .. } in &variants {
        if let Some(flag) = flags.iter().find(|flag| flag.starts_with("--") && !help.contains(*flag)) {
            bail!("variant {name}: this build's `inferspan attach` has no {flag}");
        }
    }
    let folder = build::target_folder().join("bench/vllm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let interrupt = Interrupt::catch("xtask: ")?;
    let seats = arguments.clients.to_string();
    // The same prompts come again in every run; cached, they would cost less the second time.
    let server = shell::step("starting vLLM", || {
        server::start_vllm(&folder, &interrupt, &["--max-num-seqs", &seats, "--no-enable-prefix-caching"])
    })?;
    let mut bench = Bench { arguments, inferspan, load, costs, folder, interrupt, server };
    // What is compiled at first use is no steady state.
    bench.load(5)?;
    let out = shell::root().join(&arguments.out);
    for variant in variants {
        let Variant { name, what, flags, .. } = variant;
        let runs = bench.pairs(&variant)?;
        let programs = bench.programs(&variant)?;
        let Arguments { pairs, seconds, clients, .. } = arguments;
        let report = json!({
            "variant": name,
            "with": what,
            "flags": flags,
            "command": format!("cargo xtask bench vllm --pairs {pairs} --seconds {seconds} --clients {clients} --only {name}"),
            "machine": overhead::machine()?,
            "server": "vLLM 0.32.0 on CPU, a Llama of 2 layers, --max-model-len 512, prefix cache off",
            "load": format!("{clients} clients in a closed loop, streaming completions of 64 tokens, prompts of 60 words, {seconds} s a run"),
            "pairs": runs,
            "programs": programs,
        });
        overhead::write(&out, name, &report)?;
    }
    println!("{}", overhead::render(&out)?);
    Ok(())
}

struct Bench<'a> {
    arguments: &'a Arguments,
    inferspan: PathBuf,
    load: PathBuf,
    costs: PathBuf,
    folder: PathBuf,
    interrupt: Interrupt,
    server: Server,
}

struct Attached {
    tracer: Process,
    viewer: Option<Viewer>,
}

impl Bench<'_> {
    fn pairs(&mut self, variant: &Variant) -> Result<Vec<Value>> {
        let mut pairs = Vec::new();
        for pair in 0..self.arguments.pairs {
            let with_first = pair % 2 == 1;
            let mut runs = [false, true].map(|_| Value::Null);
            for with in [with_first, !with_first] {
                runs[usize::from(with)] = self.measure(variant, variant.present(with))?;
            }
            let [without, with] = runs;
            let rate = |run: &Value| run["tokens_per_second"].as_f64().unwrap_or(0.0);
            let cpu = |run: &Value| run["cpu_ms_per_1000_tokens"]["server"].as_f64().unwrap_or(0.0);
            eprintln!(
                "xtask: {}, pair {} of {}: {:.0} and {:.0} tokens/s, {:.0} and {:.0} ms of CPU per 1,000 tokens",
                variant.name,
                pair + 1,
                self.arguments.pairs,
                rate(&without),
                rate(&with),
                cpu(&without),
                cpu(&with)
            );
            pairs.push(json!({ "with_first": with_first, "without": without, "with": with }));
        }
        Ok(pairs)
    }

    fn measure(&mut self, variant: &Variant, present: Present) -> Result<Value> {
        let mut attached = match present {
            Present::Nobody => None,
            Present::Tracer | Present::Viewer => Some(self.attach(variant, present)?),
        };
        let tracer = attached.as_ref().map(|attached| &attached.tracer);
        let before = self.cpu(tracer)?;
        let mut run = self.load(self.arguments.seconds)?;
        let mut after = self.cpu(tracer)?;
        if let Some(Attached { tracer, viewer }) = &mut attached {
            if let Some(viewer) = viewer.take() {
                let looked = viewer.stop()?;
                run["pictures"] = looked.pictures.into();
                after.insert(VIEWER, looked.cpu_nanos);
            }
            tracer.check_running()?;
            tracer.stop_with(Signal::INT, Duration::from_secs(30))?;
            let said = tracer.tail(1);
            // Tracing that misses things is not what is to be measured.
            if !said.trim_end().ends_with("lost: none") {
                eprintln!("xtask: the tracer did not see everything: {said}");
            }
            run["tracer_said"] = said.trim_start_matches([' ', '|']).into();
        }
        let thousands = run["tokens"].as_f64().unwrap_or(0.0) / 1e3;
        if thousands <= 0.0 {
            bail!("the clients got no tokens: {run}");
        }
        let mut used: BTreeMap<&str, f64> = BTreeMap::new();
        for (role, nanos) in &after {
            used.insert(role, nanos.saturating_sub(before.get(role).copied().unwrap_or(0)) as f64 / 1e6 / thousands);
        }
        let server =
            used.iter().filter(|(role, _)| !["inferspan", VIEWER].contains(role)).map(|(_, used)| used).sum::<f64>();
        used.insert("server", server);
        run["cpu_ms_per_1000_tokens"] = json!(used);
        Ok(run)
    }

    /// What each program takes: runs and ns a 1,000 tokens, of all processes of the machine, in a run of its own.
    fn programs(&mut self, variant: &Variant) -> Result<Value> {
        let was = fs::read_to_string(STATISTICS).with_context(|| format!("cannot read {STATISTICS}"))?;
        let set = |to: &str| fs::write(STATISTICS, to).with_context(|| format!("cannot write {STATISTICS}"));
        set("1")?;
        let counted = self.counted(variant);
        set(was.trim())?;
        counted
    }

    fn counted(&mut self, variant: &Variant) -> Result<Value> {
        let Attached { mut tracer, viewer } = self.attach(variant, variant.present(true))?;
        let costs = || -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
            let text = shell::output(&mut Command::new(&self.costs))?;
            serde_json::from_str(&text).context("program-costs left no JSON")
        };
        let before = costs()?;
        let run = self.load(self.arguments.seconds)?;
        let after = costs()?;
        viewer.map(Viewer::stop).transpose()?;
        tracer.stop_with(Signal::INT, Duration::from_secs(30))?;
        let thousands = run["tokens"].as_f64().unwrap_or(0.0) / 1e3;
        if thousands <= 0.0 {
            bail!("the clients got no tokens: {run}");
        }
        let programs = after.iter().map(|(name, cost)| {
            let grown = |field: &str| -> f64 {
                let earlier = before.get(name).and_then(|cost| cost.get(field)).copied().unwrap_or(0);
                cost.get(field).copied().unwrap_or(0).saturating_sub(earlier) as f64 / thousands
            };
            json!({ "name": name, "runs_per_1000_tokens": grown("runs"), "ns_per_1000_tokens": grown("nanos") })
        });
        Ok(programs.collect())
    }

    fn attach(&self, variant: &Variant, present: Present) -> Result<Attached> {
        let [port, view] = http::free_ports()?;
        let mut command = Command::new(&self.inferspan);
        command.args(["attach", "-p", &self.server.pid.to_string(), "--metrics", &format!("127.0.0.1:{port}")]);
        command.arg("--access-log").arg(self.folder.join("access.jsonl")).args(variant.flags);
        let is_viewed = present == Present::Viewer;
        if is_viewed {
            command.arg("--ui").arg(format!("127.0.0.1:{view}"));
        }
        let mut tracer = Process::start("inferspan", &mut command, &self.folder)?;
        attached::wait(&mut tracer, &mut [], &self.interrupt)?;
        let viewer = is_viewed.then(|| Viewer::start(format!("http://127.0.0.1:{view}")));
        Ok(Attached { tracer, viewer })
    }

    /// What the clients saw.
    fn load(&self, seconds: u32) -> Result<Value> {
        let mut command = Command::new(&self.load);
        command.args(["--url", &self.server.url, "--model", &self.server.model]);
        command.args(["--clients", &self.arguments.clients.to_string(), "--seconds", &seconds.to_string()]);
        let mut load = Process::start("load", &mut command, &self.folder)?;
        load.finish(Duration::from_secs(u64::from(seconds) + 120), &self.interrupt)?;
        let text = fs::read_to_string(&load.output).context("steady-load left nothing")?;
        serde_json::from_str(&text).context("steady-load left no JSON")
    }

    /// CPU time by role so far, ns.
    fn cpu(&self, tracer: Option<&Process>) -> Result<BTreeMap<&'static str, u64>> {
        let mut used = BTreeMap::new();
        for pid in proc::family(self.server.pid).context("cannot list /proc")? {
            *used.entry(role(pid, self.server.pid)).or_insert(0) += proc::cpu_nanos(pid);
        }
        if let Some(tracer) = tracer {
            used.insert("inferspan", proc::cpu_nanos(tracer.pid()));
        }
        Ok(used)
    }
}

/// By the title that vLLM gives its processes; the one that was started is the API server.
fn role(pid: u32, root: u32) -> &'static str {
    let title = proc::title(pid);
    [("VLLM::Engine", "engine"), ("VLLM::Worker", "worker"), ("VLLM::API", "api")]
        .into_iter()
        .find(|(start, _)| title.starts_with(start))
        .map_or(if pid == root { "api" } else { "other" }, |(_, role)| role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_started_is_the_api_server() {
        let pid = std::process::id();
        assert_eq!((role(pid, pid), role(pid, 1)), ("api", "other"));
    }
}
