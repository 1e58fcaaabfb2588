//! Builds of the workspace's own programs.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::shell;

/// The crate that holds the demo's engine.
pub(crate) const ENGINE_CRATE: &str = "inferspan-demo-engine";
/// The crate that holds the demo's traffic.
pub(crate) const TESTS_CRATE: &str = "inferspan-tests";

/// The release build of the `inferspan` binary.
pub(crate) fn inferspan() -> Result<PathBuf> {
    programs("inferspan", &["inferspan"]).map(|mut built| built.remove(0))
}

/// How programs are built.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Release,
    Debug,
}

/// Release builds of `names`, binaries of `package`.
pub(crate) fn programs(package: &str, names: &[&str]) -> Result<Vec<PathBuf>> {
    programs_as(package, names, Profile::Release)
}

/// Builds of `names`, binaries of `package`.
pub(crate) fn programs_as(package: &str, names: &[&str], profile: Profile) -> Result<Vec<PathBuf>> {
    programs_of(&[package], names, profile)
}

/// Builds of `names`, binaries of `packages`, at once: what they share is compiled once.
pub(crate) fn programs_of(packages: &[&str], names: &[&str], profile: Profile) -> Result<Vec<PathBuf>> {
    let mut command = shell::cargo();
    command.current_dir(shell::root()).args(["build", "--quiet", "--locked"]);
    let profile = match profile {
        Profile::Release => {
            command.arg("--release");
            "release"
        }
        Profile::Debug => "debug",
    };
    for package in packages {
        command.args(["--package", package]);
    }
    for name in names {
        command.args(["--bin", name]);
    }
    shell::step(&format!("building {} ({profile})", names.join(", ")), || shell::run(&mut command))?;
    let folder = target_folder().join(profile);
    let built: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    for path in &built {
        if !path.is_file() {
            bail!("cargo built {}, but {} does not exist", packages.join(" and "), path.display());
        }
    }
    Ok(built)
}

/// Where cargo builds to.
pub(crate) fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => shell::root().join(folder),
        None => shell::root().join("target"),
    }
}
