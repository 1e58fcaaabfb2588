//! The eBPF toolchain: a compiler whose `core` can be rebuilt for BPF, and bpf-linker.
//!
//! bpf-linker 0.10 borrows the LLVM of a rustc, so compiler and LLVM must be of one version. Two toolchains can serve: a
//! rustup nightly with `rust-src`, where there is one and it really builds the programs, and Debian's `rustc-web`, which is
//! the one that the committed object is built with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::{cache, ebpf, shell};

/// The linker's version. 0.11 and later dropped the mode that borrows the LLVM of a rustc, and need an LLVM of their own.
pub(crate) const LINKER_VERSION: &str = "0.10.3";
/// The compiler that the committed object is built with: Debian's `rustc-web`.
pub(crate) const RUSTC_VERSION: &str = "1.96.0";
/// Debian's libLLVM that this compiler uses; the linker must read the same bitcode.
const LLVM: &str = "/usr/lib/x86_64-linux-gnu/libLLVM.so.22.1";

/// A compiler and linker that can build BPF objects.
pub(crate) struct Toolchain {
    /// What to call it in messages.
    pub name: String,
    /// The folder that holds `bin/cargo`, `bin/rustc` and the sources of `core`.
    pub sysroot: PathBuf,
    /// The folder where bpf-linker finds its libLLVM; it looks through `LD_LIBRARY_PATH` for the first `libLLVM*`.
    pub llvm: PathBuf,
    /// The folder that holds `bpf-linker`.
    pub linker: PathBuf,
}

/// The toolchain for a build that nobody compares: a nightly that works, else the pinned one.
pub(crate) fn preferred() -> Result<Toolchain> {
    match nightly()? {
        Some(toolchain) => Ok(toolchain),
        None => pinned(),
    }
}

/// The toolchain that the committed object is built with, installed if it is missing.
pub(crate) fn pinned() -> Result<Toolchain> {
    let sysroot = PathBuf::from("/usr");
    let core = sysroot.join("lib/rustlib/src/rust/library/core");
    let needs = [
        (sysroot.join("bin/rustc"), "rustc-web"),
        (sysroot.join("bin/cargo"), "cargo-web"),
        (core, "rust-web-src"),
        (PathBuf::from(LLVM), "libllvm22"),
    ];
    let missing: Vec<&str> = needs.iter().filter(|(file, _)| !file.exists()).map(|(_, package)| *package).collect();
    apt::install(&missing)?;
    let version = rustc_version(&sysroot)?;
    if !version.starts_with(&format!("rustc {RUSTC_VERSION} ")) {
        bail!(
            "/usr/bin/rustc is `{version}`, but the committed BPF object is built with Debian's {RUSTC_VERSION}.\n  Fix: \
             apt-get install rustc-web cargo-web rust-web-src; if Debian has moved on, raise RUSTC_VERSION in \
             xtask/src/setup/ebpf.rs and commit a rebuilt object"
        );
    }
    // The system's library folder also holds older LLVMs, so the right one goes into a folder of its own.
    let llvm = cache::Part::new("llvm-22", &format!("link to {LLVM}\n"))?.ensure(|folder| {
        let link = folder.join("libLLVM.so.22.1");
        std::os::unix::fs::symlink(LLVM, &link).with_context(|| format!("cannot make {}", link.display()))
    })?;
    Ok(Toolchain { name: format!("Debian's rustc {RUSTC_VERSION}"), sysroot, llvm, linker: linker()? })
}

/// A rustup nightly that has `rust-src` and builds the programs; `None` where there is none.
pub(crate) fn nightly() -> Result<Option<Toolchain>> {
    for sysroot in nightly_sysroots() {
        let rust_src = sysroot.join("lib/rustlib/src/rust/library/core");
        if !rust_src.is_dir() {
            continue;
        }
        let version = rustc_version(&sysroot)?;
        let toolchain =
            Toolchain { name: version.clone(), llvm: sysroot.join("lib"), linker: linker()?, sysroot: sysroot.clone() };
        // Its LLVM may be newer than the linker knows; only a build tells. What came out of it is remembered.
        let slug: String =
            version.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        let recipe = format!("builds tracer-ebpf with bpf-linker {LINKER_VERSION}\n");
        let tried = cache::Part::new(&format!("nightly/{slug}"), &recipe)?;
        let refused = tried.path().with_extension("refused");
        if refused.exists() {
            continue;
        }
        let result = tried.ensure(|folder| {
            ebpf::build(&toolchain, &shell::root(), &folder.join("target"), None)?;
            Ok(fs::remove_dir_all(folder.join("target"))?)
        });
        match result {
            Ok(_) => return Ok(Some(toolchain)),
            Err(error) => {
                eprintln!(
                    "xtask: {version} has rust-src but does not build the programs, so Debian's is used: {error:#}"
                );
                eprintln!("xtask: to try it again, remove {}", refused.display());
                fs::write(&refused, format!("{error:#}\n"))
                    .with_context(|| format!("cannot write {}", refused.display()))?;
            }
        }
    }
    Ok(None)
}

fn nightly_sysroots() -> Vec<PathBuf> {
    let home = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rustup")));
    let Some(toolchains) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = toolchains
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly")))
        .collect();
    found.sort();
    found
}

/// The folder that holds bpf-linker, which is built if it is missing.
fn linker() -> Result<PathBuf> {
    let recipe = format!("cargo install bpf-linker {LINKER_VERSION}\n");
    let part = cache::Part::new(&format!("bpf-linker-{LINKER_VERSION}"), &recipe)?;
    let folder = part.ensure(|folder| super::cargo_install("bpf-linker", LINKER_VERSION, &[], folder))?;
    Ok(folder.join("bin"))
}

/// What `rustc --version` says.
fn rustc_version(sysroot: &Path) -> Result<String> {
    let mut command = Command::new(sysroot.join("bin/rustc"));
    shell::without_cargo_environment(&mut command);
    Ok(shell::output(command.arg("--version"))?.trim().to_owned())
}
