//! The eBPF toolchain: a compiler whose `core` can be rebuilt for BPF, and bpf-linker.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::{cache, shell};

/// The linker's version. 0.11 and later dropped the mode that borrows the LLVM of a rustc, and need an LLVM of their own.
pub const LINKER_VERSION: &str = "0.10.3";
/// The compiler that the committed object is built with: Debian's `rustc-web`.
pub const RUSTC_VERSION: &str = "1.96.0";
/// Debian's libLLVM that this compiler uses; the linker must read the same bitcode.
const LLVM_SONAME: &str = "libLLVM.so.22.1";

/// A compiler and linker that can build BPF objects.
pub struct Toolchain {
    /// What to call it in messages.
    pub name: String,
    /// The folder that holds `bin/cargo`, `bin/rustc` and the sources of `core`.
    pub sysroot: PathBuf,
    /// The folder where bpf-linker finds its libLLVM; it looks through `LD_LIBRARY_PATH` for the first `libLLVM*`.
    pub llvm: PathBuf,
    /// The folder that holds `bpf-linker`.
    pub linker: PathBuf,
}

/// The pinned toolchain, installed if it is missing.
pub fn pinned() -> Result<Toolchain> {
    let toolchain = Toolchain {
        name: format!("Debian's rustc {RUSTC_VERSION}"),
        sysroot: PathBuf::from("/usr"),
        llvm: cache::Part::new("llvm-22")?.path().to_path_buf(),
        linker: cache::Part::new(&format!("bpf-linker-{LINKER_VERSION}"))?.path().join("bin"),
    };
    for file in [
        toolchain.sysroot.join("bin/cargo"),
        toolchain.sysroot.join("lib/rustlib/src/rust/library/core"),
        toolchain.llvm.join(LLVM_SONAME),
        toolchain.linker.join("bpf-linker"),
    ] {
        if !file.exists() {
            bail!("{} is missing", file.display());
        }
    }
    let version = rustc_version(&toolchain.sysroot.join("bin/rustc"))?;
    if !version.starts_with(&format!("rustc {RUSTC_VERSION} ")) {
        bail!("/usr/bin/rustc is `{version}`, but the committed object is built with {RUSTC_VERSION}");
    }
    Ok(toolchain)
}

/// What `rustc --version` says.
pub fn rustc_version(rustc: &Path) -> Result<String> {
    let mut command = Command::new(rustc);
    shell::without_cargo_environment(&mut command);
    Ok(shell::output(command.arg("--version"))?.trim().to_owned())
}
