//! `cargo xtask setup`: installs what is missing, each part once, into the cache folder.
//!
//! Enters: a Debian 12 machine with rustup's stable Rust. Leaves: complete parts, each in a folder of its own; the system
//! gets Debian packages only where they cannot live in the cache. Other verbs call the parts that they need.

pub(crate) mod apt;
pub(crate) mod browser;
pub(crate) mod cuda_libraries;
pub(crate) mod cyclonedx;
pub(crate) mod deny;
pub(crate) mod ebpf;
pub(crate) mod jaeger;
pub(crate) mod node;
pub(crate) mod nvcc;
pub(crate) mod perfetto;
pub(crate) mod prometheus;
mod pypi;
pub(crate) mod tmux;
pub(crate) mod vllm;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::shell;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to install; everything when left out
    #[arg(value_enum)]
    parts: Vec<Part>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    /// A compiler that can build `core` for BPF, and bpf-linker
    Ebpf,
    /// cargo-deny, for `cargo xtask lint`
    Deny,
    /// cargo-cyclonedx, for `cargo xtask sbom`
    Cyclonedx,
    /// A C++ compiler, for `cargo xtask fuzz`: libFuzzer is C++
    Fuzz,
    /// Prometheus and promtool
    Prometheus,
    /// Jaeger, built from its Go module
    Jaeger,
    /// Two CUDA libraries (12 MB) whose kernels are named
    CudaLibraries,
    /// NVIDIA's compiler (125 MB), for CUDA programs that need no GPU
    Nvcc,
    /// Perfetto's trace processor, to open timelines in
    Perfetto,
    /// Chromium, and what drives it, to open the live view in
    Browser,
    /// tmux, in which the tests try what is drawn on a terminal
    Tmux,
    /// vLLM on CPU in a Python environment of its own (6 GB), and a tiny model
    Vllm,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("setup knows Linux on x86-64 only; the binary itself builds with plain `cargo build`");
    }
    let all = [
        Part::Ebpf,
        Part::Deny,
        Part::Cyclonedx,
        Part::Fuzz,
        Part::Prometheus,
        Part::Jaeger,
        Part::CudaLibraries,
        Part::Nvcc,
        Part::Perfetto,
        Part::Browser,
        Part::Tmux,
        Part::Vllm,
    ];
    let parts = if arguments.parts.is_empty() { &all[..] } else { &arguments.parts[..] };
    let started = Instant::now();
    for part in parts {
        match part {
            Part::Ebpf => {
                let toolchain = ebpf::preferred()?;
                ready("ebpf", &format!("{}, bpf-linker {}", toolchain.name, ebpf::LINKER_VERSION), &toolchain.linker);
            }
            Part::Deny => ready("deny", "cargo-deny", &deny::ensure()?),
            Part::Cyclonedx => ready("cyclonedx", "cargo-cyclonedx", &cyclonedx::ensure()?),
            Part::Fuzz => ready("fuzz", "C++ compiler", &ensure_cpp_compiler()?),
            Part::Prometheus => ready("prometheus", "Prometheus", &prometheus::ensure()?.server),
            Part::Jaeger => ready("jaeger", "Jaeger", &jaeger::ensure()?),
            Part::CudaLibraries => ready("libraries", "CUDA libraries", &cuda_libraries::ensure()?),
            Part::Nvcc => ready("nvcc", &format!("nvcc {}", nvcc::VERSION), &nvcc::ensure()?),
            Part::Perfetto => ready("perfetto", "Perfetto's trace processor", &perfetto::ensure()?),
            Part::Browser => {
                let browser = browser::ensure()?;
                ready("browser", "Chromium", &browser.chromium);
                ready("browser", "Node", &browser.node);
                ready("browser", "Playwright and axe", &browser.packages);
            }
            Part::Tmux => ready("tmux", "tmux", &tmux::ensure()?),
            Part::Vllm => {
                let vllm = vllm::ensure()?;
                ready("vllm", "vLLM on CPU", &vllm.venv);
                ready("vllm", "tiny model", &vllm.model);
            }
        }
    }
    eprintln!("xtask: setup complete after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn ready(part: &str, what: &str, at: &Path) {
    println!("{part:<11} {what}: {}", at.display());
}

/// Installs a C compiler unless there is one: cargo links with it.
fn ensure_c_compiler() -> Result<()> {
    if shell::find_on_path("cc").is_none() { apt::install(&["gcc", "libc6-dev"]) } else { Ok(()) }
}

/// The C++ compiler, installed unless there is one.
pub(crate) fn ensure_cpp_compiler() -> Result<PathBuf> {
    if shell::find_on_path("c++").is_none() {
        apt::install(&["g++"])?;
    }
    shell::find_on_path("c++").context("g++ is installed, and there is no c++ on PATH")
}

/// `cargo install` of one program, built apart from the workspace.
fn cargo_install(package: &str, version: &str, extra: &[&str], root: &Path) -> Result<()> {
    ensure_c_compiler()?;
    let mut command = Command::new(shell::find_on_path("cargo").unwrap_or_else(|| "cargo".into()));
    shell::without_cargo_environment(&mut command)
        .args(["install", "--quiet", "--locked", "--no-track", "--version", version])
        .args(extra)
        .arg("--root")
        .arg(root)
        .arg(package)
        // The build folder goes away with the part when the install breaks off.
        .env("CARGO_TARGET_DIR", root.join("build"));
    shell::run(&mut command)?;
    std::fs::remove_dir_all(root.join("build"))?;
    Ok(())
}
