//! `cargo xtask ebpf`: builds the eBPF programs.
//!
//! Enters: tracer-ebpf's sources and a toolchain from `setup`. Leaves: `tracer-ebpf/object/inferspan.bpf.o`, committed so
//! that a plain `cargo build` needs no BPF toolchain. Invariant: the object's bytes depend on the sources, Cargo.lock,
//! compiler and linker only, not on where the clone or cargo's home lie; `--check` relies on it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::ebpf::Toolchain;
use crate::{setup, shell};

/// Where the committed object lies, from the workspace's root.
const OBJECT: &str = "tracer-ebpf/object/inferspan.bpf.o";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build elsewhere, and fail if the result differs from the committed object
    #[arg(long)]
    check: bool,
    /// Build with the toolchain that the committed object is built with, even where a nightly would do; `--check` does
    #[arg(long)]
    pinned: bool,
    /// Extra cargo features of tracer-ebpf (`debug-log`); the object then goes to target/bpf only
    #[arg(long, value_name = "FEATURES", conflicts_with = "check")]
    features: Option<String>,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let root = shell::root();
    let nightly = if arguments.check || arguments.pinned { None } else { setup::ebpf::nightly()? };
    let other_compiler = nightly.is_some();
    let toolchain = nightly.map_or_else(setup::ebpf::pinned, Ok)?;
    let committed = root.join(OBJECT);
    if arguments.check {
        let built = build(&toolchain, &root, &root.join("target/bpf-check"), None)?;
        return compare(&built, &committed, &toolchain);
    }
    let built = build(&toolchain, &root, &root.join("target/bpf"), arguments.features.as_deref())?;
    if arguments.features.is_some() {
        eprintln!("xtask: not copied to {OBJECT}, because the committed object has no extra features");
        println!("{}", built.display());
        return Ok(());
    }
    install(&built, &committed)?;
    if other_compiler {
        eprintln!(
            "xtask: {OBJECT} was built with {}, but CI compares it with what Debian's {} makes: run \
             `cargo xtask ebpf --pinned` before you commit it",
            toolchain.name,
            setup::ebpf::RUSTC_VERSION
        );
    }
    println!("{}", committed.display());
    Ok(())
}

/// Builds the programs with `toolchain` into `target` and returns the object's path.
pub(crate) fn build(toolchain: &Toolchain, root: &Path, target: &Path, features: Option<&str>) -> Result<PathBuf> {
    let mut command = Command::new(toolchain.sysroot.join("bin/cargo"));
    shell::without_cargo_environment(&mut command);
    command
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--release", "--package", "tracer-ebpf", "--bin", "tracer-ebpf"])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        // bpf-linker optimises the whole program itself; the workspace's release profile is tuned for the user side.
        .args(["--config", "profile.release.lto=\"off\""])
        .args(["--config", "profile.release.panic=\"abort\""])
        // BTF is made from debug information.
        .args(["--config", "profile.release.debug=2"])
        .arg("--target-dir")
        .arg(target);
    if let Some(features) = features {
        command.args(["--features", features]);
    }
    let mut path = vec![toolchain.linker.clone(), toolchain.sysroot.join("bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    command
        .env("RUSTC", toolchain.sysroot.join("bin/rustc"))
        // A stable compiler refuses -Z without it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("LD_LIBRARY_PATH", &toolchain.llvm)
        .env("PATH", std::env::join_paths(path)?)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(root)?);
    shell::step(&format!("building the eBPF programs with {}", toolchain.name), || shell::run(&mut command))?;
    let built = target.join("bpfel-unknown-none/release/tracer-ebpf");
    if !built.is_file() {
        bail!("the build succeeded, but {} does not exist: is the binary still called tracer-ebpf?", built.display());
    }
    Ok(built)
}

/// The compiler's flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants them. Paths that differ between machines are
/// replaced, or else they reach the object through line information and panic locations.
fn rust_flags(root: &Path) -> Result<OsString> {
    let cargo_home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set, so cargo's home is unknown")?)
            .join(".cargo"),
    };
    let mut flags = OsString::new();
    for (from, to) in [(root.to_path_buf(), "inferspan"), (cargo_home.join("registry/src"), "registry")] {
        flags.push("--remap-path-prefix=");
        flags.push(&from);
        flags.push(format!("={to}\u{1f}"));
    }
    // Copies and clears in line: called, they cost a call each and older verifiers their pruning.
    flags.push("-Clink-arg=--btf\u{1f}-Clink-arg=--disable-expand-memcpy-in-order\u{1f}-Ccodegen-units=1");
    Ok(flags)
}

fn install(built: &Path, committed: &Path) -> Result<()> {
    let folder = committed.parent().context("the object has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let fresh = committed.with_extension("o.new");
    fs::copy(built, &fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
    // Cargo leaves the object executable.
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
    fs::set_permissions(&fresh, mode).with_context(|| format!("cannot set the mode of {}", fresh.display()))?;
    fs::rename(&fresh, committed).with_context(|| format!("cannot write {}", committed.display()))
}

fn compare(built: &Path, committed: &Path, toolchain: &Toolchain) -> Result<()> {
    let fresh = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let old = fs::read(committed).with_context(|| {
        format!("there is no committed object at {}; run `cargo xtask ebpf` and commit it", committed.display())
    })?;
    if fresh == old {
        eprintln!("xtask: {OBJECT} is what its source builds to ({} bytes)", old.len());
        return Ok(());
    }
    let at = fresh.iter().zip(&old).take_while(|(a, b)| a == b).count();
    bail!(
        "{OBJECT} is not what its source builds to.\n  committed: {} bytes, {}\n  built now: {} bytes, {} ({})\n  they \
         first differ at byte {at}.\n  Why: the sources, Cargo.lock or the toolchain changed and the object was not rebuilt.\n  \
         Fix: run `cargo xtask ebpf` and commit {OBJECT}.",
        old.len(),
        compiler_of(&old),
        fresh.len(),
        compiler_of(&fresh),
        toolchain.name,
    );
}

/// The compiler's name in the object's debug information.
fn compiler_of(object: &[u8]) -> String {
    const MARK: &[u8] = b"rustc version ";
    let Some(start) = object.windows(MARK.len()).position(|window| window == MARK) else {
        return "no compiler named in it".to_owned();
    };
    let rest = &object[start..];
    let end = rest.iter().position(|&byte| !(b' '..=b'~').contains(&byte)).unwrap_or(rest.len()).min(80);
    String::from_utf8_lossy(&rest[..end]).into_owned()
}
