//! `cargo xtask kernels`: the demo server is traced on other kernels, and what inferspan counts is held against what the server counts.
//!
//! Enters: versions, or all that are pinned. Leaves: a table; in `target/kernels`, what each machine said. Fails where a kernel refuses a
//! program that it should take, where a count differs, or where anything was lost. A machine is emulated by qemu and has no distribution: a
//! kernel, and an archive of our programs whose first process is `kernel-guest`.

mod found;
mod images;
mod initramfs;
mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use inferspan_harness::wait::Interrupt;
use serde_json::Value;

use self::initramfs::Files;
use crate::setup::apt;
use crate::{build, shell};

/// What the demo server loads of the fake CUDA libraries.
const CUDA: [&str; 3] = ["driver-new/libcuda.so.1", "runtime-12/libcudart.so.12", "common/libkernels-12.so"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which: versions as 6.1, or paths of other kernels (./bzImage); all that are pinned when left out
    #[arg(value_name = "VERSION")]
    versions: Vec<String>,
    /// Take builds without optimisation, which are there sooner and run slower
    #[arg(long)]
    debug: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let mut versions = arguments.versions.clone();
    if versions.is_empty() {
        versions = images::versions().map(str::to_owned).collect();
    }
    let images: Vec<PathBuf> = versions.iter().map(|version| images::image(version)).collect::<Result<_>>()?;
    let missing = ["qemu-system-x86_64"].into_iter().filter(|program| shell::find_on_path(program).is_none());
    apt::install(&missing.map(|_| "qemu-system-x86").collect::<Vec<_>>())?;
    let folder = build::target_folder().join("kernels");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let profile = if arguments.debug { build::Profile::Debug } else { build::Profile::Release };
    let archive = archive(profile, &folder)?;
    let interrupt = Interrupt::catch("xtask: ")?;
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for (version, image) in versions.iter().zip(&images) {
        let place = fresh(&folder.join(version.replace('/', "-")))?;
        let found = shell::step(&format!("tracing on Linux {version}"), || {
            machine::run(image, &archive, &place, &interrupt, told)
        });
        match found {
            Ok(findings) => {
                let (more, wrong) = found::rows(&findings);
                rows.extend(more);
                faults.extend(wrong);
            }
            Err(error) if interrupt.came() => return Err(error),
            // The others are run all the same.
            Err(error) => faults.push(format!("{version}: {error:#}")),
        }
    }
    print!("{}", found::table(&rows));
    eprintln!("xtask: {} kernels took {:.0} s; {}", versions.len(), started.elapsed().as_secs_f64(), folder.display());
    if !faults.is_empty() {
        bail!("{} faults:\n{}", faults.len(), faults.join("\n"));
    }
    Ok(())
}

/// The archive that every machine starts with.
fn archive(profile: build::Profile, folder: &Path) -> Result<PathBuf> {
    let inferspan = build::programs_as("inferspan", &["inferspan"], profile)?.remove(0);
    let engine = build::programs_as(build::ENGINE_CRATE, &["demo-engine"], profile)?.remove(0);
    let tests = build::programs_as(build::TESTS_CRATE, &["kernel-guest", "cuda-libraries"], profile)?;
    let [guest, libraries] = &tests[..] else { bail!("cargo built other programs") };
    let printed = shell::step("building the fake CUDA libraries", || shell::output(&mut Command::new(libraries)))?;
    let scratch = fresh(&folder.join("stripped"))?;
    let mut files = Files::default();
    files.add_linked("init", guest, &scratch)?;
    files.add_linked("bin/inferspan", &inferspan, &scratch)?;
    files.add_linked("bin/demo-engine", &engine, &scratch)?;
    for name in CUDA {
        files.add(&format!("cuda/{name}"), &Path::new(printed.trim()).join(name));
    }
    let archive = folder.join("initramfs.cpio");
    files.write(&archive)?;
    Ok(archive)
}

/// An empty folder.
fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.to_owned())
}

/// A line for each finding as it comes.
fn told(finding: &Value) {
    if let Some(release) = finding["release"].as_str() {
        eprintln!("xtask: {release} is up, and was given every program");
    } else if let Some(name) = finding["level"]["name"].as_str() {
        let took = finding["level"]["attach_seconds"].as_f64().unwrap_or(0.0);
        eprintln!("xtask: level {name} is traced; to attach took {took:.1} s of the machine's");
    }
}
