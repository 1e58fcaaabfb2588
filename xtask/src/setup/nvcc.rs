//! NVIDIA's compiler, from PyPI only: CUDA programs for tests, built without a GPU or a driver.
//!
//! Its packages are wheels of plain files, unpacked beside each other. They are NVIDIA's, under its licence: fetched where they are needed,
//! never committed. PyPI has no nvcc of CUDA 12; that one's launches are what this one makes with `__NV_LEGACY_LAUNCH` (crt/host_runtime.h), and
//! the runtime of CUDA 12 is there to link them with.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{apt, ensure_c_compiler, pypi};
use crate::{cache, shell};

pub(crate) const VERSION: &str = "13.5.37";
/// Compiler, its headers, its back end, the runtime, and the C++ library, which has numbers of its own; the runtime before.
const PACKAGES: [&str; 6] = [
    "nvidia-cuda-nvcc==13.5.37",
    "nvidia-cuda-crt==13.5.37",
    "nvidia-nvvm==13.5.37",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-cuda-cccl==13.3.5.0.6",
    "nvidia-cuda-runtime-cu12==12.9.79",
];

/// The compiler's path, fetched if it is missing (130 MB).
pub(crate) fn ensure() -> Result<PathBuf> {
    let recipe = format!("{}\n", PACKAGES.join("\n"));
    let folder = cache::Part::new(&format!("nvcc-{VERSION}"), &recipe)?.ensure(|folder| {
        ensure_c_compiler()?;
        // nvcc compiles the host's half with g++.
        if shell::find_on_path("g++").is_none() {
            apt::install(&["g++"])?;
        }
        pypi::unpack(&PACKAGES, folder)?;
        let root = folder.join("nvidia/cu13");
        // What a linker looks for, and where nvcc looks for it.
        symlink("libcudart.so.13", root.join("lib/libcudart.so")).context("cannot link libcudart.so")?;
        symlink("lib", root.join("lib64")).context("cannot link lib64")?;
        let before = folder.join("nvidia/cuda_runtime/lib/libcudart.so");
        symlink("libcudart.so.12", before).context("cannot link libcudart.so of CUDA 12")?;
        shell::output(Command::new(root.join("bin/nvcc")).arg("--version")).map(|_| ())
    })?;
    Ok(folder.join("nvidia/cu13/bin/nvcc"))
}
