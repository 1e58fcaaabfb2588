//! Runs on a GPU host, from the folder that `cargo xtask gpu-check` makes, and holds Inferspan against a real driver.
//!
//! Enters: a folder for what is found, the host. Leaves: `report.md` and `report.json` in it, and what Inferspan wrote in each run. Exits
//! 0 when all is as it should be, 1 with differences, 2 when it cannot run, 5 without a GPU: then what can be done is done.

mod compare;
mod cost;
mod host;
mod prologues;
mod report;
mod traced;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use inferspan::attach::family::{Family, driver, nccl, runtime};
use inferspan::attach::handles;

use crate::cost::Programs;
use crate::host::{Host, Libraries};
use crate::report::{Library, Missing, NameAt, Report, Run};

/// Exit code: no GPU.
const NO_GPU: u8 = 5;
const LEVELS: [&str; 2] = ["steps", "kernels"];

/// Hold Inferspan against this host's CUDA driver
#[derive(Parser)]
#[command(name = "gpu-check")]
struct Arguments {
    /// Where reports go
    #[arg(value_name = "OUT", default_value = "gpu-check-out")]
    out: PathBuf,
    /// The `inferspan` to check [default: beside this program]
    #[arg(long, value_name = "FILE")]
    inferspan: Option<PathBuf>,
    /// Rounds of the CUDA program
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Launches of a turn of the measurement of cost
    #[arg(long, default_value_t = 200_000)]
    launches: u32,
    /// Turns of it
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("gpu-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8> {
    ensure!(rustix::process::geteuid().is_root(), "it must run as root: attaching loads BPF programs");
    let folder = std::env::current_exe().context("where am I")?.parent().context("in no folder")?.to_owned();
    let inferspan = arguments.inferspan.clone().unwrap_or_else(|| folder.join("inferspan"));
    let version = Command::new(&inferspan).arg("--version").output();
    let version = version.with_context(|| format!("{} does not run", inferspan.display()))?;
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let mut check = Check {
        inferspan,
        folder,
        libraries: Libraries::find(),
        report: Report {
            schema: report::SCHEMA.to_owned(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M").to_string(),
            inferspan: String::from_utf8_lossy(&version.stdout).trim().to_owned(),
            is_gpu: false,
            missing: Vec::new(),
            failed: Vec::new(),
            host: Host::read(),
            devices: Vec::new(),
            libraries: Vec::new(),
            names_at: Vec::new(),
            runs: Vec::new(),
            cost: None,
        },
    };
    check.all(arguments);
    check.report.write(&arguments.out)?;
    let differences = check.report.differences();
    for one in &check.report.missing {
        eprintln!("gpu-check: NOT DONE: {}: needs {}", one.step, one.needs);
    }
    for difference in &differences {
        eprintln!("gpu-check: DIFFERS: {difference}");
    }
    eprintln!("gpu-check: {}", arguments.out.join("report.md").display());
    Ok(match (check.report.is_gpu, differences.is_empty()) {
        (false, _) => NO_GPU,
        (true, true) => 0,
        (true, false) => 1,
    })
}

/// The check as far as it is done.
struct Check {
    inferspan: PathBuf,
    /// Of the programs.
    folder: PathBuf,
    libraries: Libraries,
    report: Report,
}

impl Check {
    fn all(&mut self, arguments: &Arguments) {
        self.step("probe points", Self::points);
        let device = self.device();
        let is_module = self.report.host.has_driver_module();
        match &device {
            Ok(devices) => self.report.devices.clone_from(devices),
            Err(error) => self.needs("CUDA device", &format!("a GPU and its driver ({error:#})")),
        }
        self.report.is_gpu = device.is_ok() && is_module;
        if !is_module {
            self.needs("facts of a GPU", "the NVIDIA kernel module (/proc/driver/nvidia/version)");
        }
        if device.is_ok() {
            self.step("CUDA program", |check| check.program(arguments));
            self.step("cost", |check| check.cost(arguments));
        } else {
            self.needs("CUDA program", "a CUDA device");
            self.needs("cost", "a CUDA device");
        }
        if self.report.host.has_torch() {
            self.step("decode loop", |check| check.decode_loop(&arguments.out));
        } else {
            self.needs("decode loop", "a python3 (or $PYTHON) that imports PyTorch with a usable CUDA device");
        }
    }

    /// What fails is told, and the next step is done.
    fn step(&mut self, what: &str, work: impl FnOnce(&mut Self) -> Result<()>) {
        eprintln!("gpu-check: {what} …");
        if let Err(error) = work(self) {
            self.report.failed.push(Missing { step: what.to_owned(), needs: format!("{error:#}") });
        }
    }

    fn needs(&mut self, step: &str, needs: &str) {
        self.report.missing.push(Missing { step: step.to_owned(), needs: needs.to_owned() });
    }

    fn points(&mut self) -> Result<()> {
        let Libraries { driver: cuda, runtime: cudart, nccl: collectives } = self.libraries.clone();
        let wanted: [(&'static Family, &str, Option<&Path>); 4] = [
            (&driver::DRIVER, "libcuda.so.1", cuda.as_deref()),
            (&runtime::LAUNCHES, "a libcudart.so", cudart.as_deref()),
            (&runtime::CALLS, "a libcudart.so", cudart.as_deref()),
            (&nccl::COLLECTIVES, "a libnccl.so.2", collectives.as_deref()),
        ];
        for (family, name, path) in wanted {
            let Some(path) = path else {
                self.needs(&format!("probe points of {}", family.what), name);
                continue;
            };
            match prologues::of_family(path, family)? {
                Some(points) => self.report.libraries.push(Library {
                    what: family.what.to_owned(),
                    path: path.display().to_string(),
                    points,
                }),
                None => bail!("{} only looks like {name}", path.display()),
            }
        }
        for function in ["cuFuncGetName", "cuKernelGetName"] {
            let Some(path) = &cuda else { break };
            if prologues::point(path, function)?.is_some() {
                let displacement = handles::offset_by(path, function);
                self.report.names_at.push(NameAt { function: function.to_owned(), displacement });
            } else {
                self.needs(&format!("where a handle's name is, by {function}"), "a driver of CUDA 12.3 or later");
            }
        }
        Ok(())
    }

    /// The devices' names, by a program of its own: a driver that is broken ends it and not the check.
    fn device(&self) -> Result<Vec<String>> {
        let output = Command::new(self.folder.join("gpu-program")).arg("device").stdin(Stdio::null()).output();
        let output = output.context("gpu-program does not run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", said.lines().next().unwrap_or("it says nothing"));
        serde_json::from_slice(&output.stdout).context("the devices' names")
    }

    fn program(&mut self, arguments: &Arguments) -> Result<()> {
        let runtime = self.libraries.runtime.clone();
        if runtime.is_none() {
            self.needs("copies, waits and captures of the CUDA program", "a libcudart.so");
        }
        let ways = [("driver", None), ("runtime", runtime)];
        for (way, library) in ways.into_iter().filter(|(way, library)| *way == "driver" || library.is_some()) {
            for level in LEVELS {
                let mut command = Command::new(self.folder.join("gpu-program"));
                command.args(["rounds", &arguments.rounds.to_string()]).args(&library);
                let out = arguments.out.join(format!("program-{way}-{level}"));
                self.traced(&format!("CUDA program ({way})"), &mut command, level, &out)?;
            }
        }
        Ok(())
    }

    fn decode_loop(&mut self, out: &Path) -> Result<()> {
        for level in LEVELS {
            let mut command = Command::new(host::python());
            command.arg(self.folder.join("decode_loop.py"));
            self.traced("decode loop of PyTorch", &mut command, level, &out.join(format!("decode-loop-{level}")))?;
        }
        Ok(())
    }

    fn traced(&mut self, program: &str, command: &mut Command, level: &str, folder: &Path) -> Result<()> {
        let (truth, seen) = traced::run(&self.inferspan, command, level, folder)?;
        self.report.runs.push(Run {
            program: program.to_owned(),
            level: level.to_owned(),
            is_result_right: truth.is_result_right,
            waits: truth.waits,
            checks: compare::checks(&truth, &seen.page, &seen.kernels),
            notes: truth.notes,
            said: seen.said.lines().map(str::to_owned).collect(),
        });
        Ok(())
    }

    fn cost(&mut self, arguments: &Arguments) -> Result<()> {
        let programs = Programs {
            inferspan: &self.inferspan,
            program: &self.folder.join("gpu-program"),
            empty: &self.folder.join("empty-uprobe"),
            driver: self.libraries.driver.as_deref().context("no libcuda.so.1 is found")?,
        };
        self.report.cost = Some(cost::measure(programs, arguments.launches, arguments.turns, &arguments.out)?);
        Ok(())
    }
}
