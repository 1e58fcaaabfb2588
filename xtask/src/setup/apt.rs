//! Debian packages: installed into the system where they must be, else only unpacked into the cache, of any suite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use crate::{cache, shell};

/// Installs `packages` into the system. Callers pass only what is missing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    static UPDATED: OnceLock<()> = OnceLock::new();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if shell::find_on_path("apt-get").is_none() {
        bail!(
            "{list} missing, and this machine has no apt-get to install Debian packages with; see docs/ for what each is for"
        );
    }
    if !shell::is_root() {
        bail!(
            "Debian packages are missing and only root can install them. Run:\n  sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
        );
    }
    shell::step(&format!("apt-get install {list}"), || {
        if UPDATED.get().is_none() {
            shell::run(apt_get().args(["-qq", "update"]))?;
            let _ = UPDATED.set(());
        }
        shell::run(apt_get().args(["-qq", "install", "--yes", "--no-install-recommends"]).args(packages))
    })
}

/// Where packages are taken from when they are only downloaded.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// Whatever the machine's apt is set up with.
    System,
    /// Debian's suite of this name, without adding it to the machine's sources.
    Suite(&'static str),
}

/// Downloads `packages` (without their dependencies) and unpacks them below `folder`.
pub(crate) fn unpack(packages: &[&str], source: Source, folder: &Path) -> Result<()> {
    download(packages, source, |debs| debs.iter().try_for_each(|deb| extract(deb, folder)))
}

/// Unpacks a package below `folder`.
pub(crate) fn extract(deb: &Path, folder: &Path) -> Result<()> {
    shell::run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(folder))
}

/// Downloads `packages` (without their dependencies), whose files `work` gets; then they are gone. Needs no root, starts no service, and
/// leaves the system's own package lists alone.
pub(crate) fn download(packages: &[&str], source: Source, work: impl FnOnce(&[PathBuf]) -> Result<()>) -> Result<()> {
    let state = cache::folder()?.join(match source {
        Source::System => "apt-system".to_owned(),
        Source::Suite(suite) => format!("apt-{suite}"),
    });
    for below in ["lists/partial", "cache/archives/partial", "debs"] {
        let below = state.join(below);
        fs::create_dir_all(&below).with_context(|| format!("cannot make {}", below.display()))?;
    }
    let mut options = vec![
        format!("Dir::State::lists={}", state.join("lists").display()),
        format!("Dir::Cache={}", state.join("cache").display()),
        // The sandbox user cannot write into a cache below /root.
        "APT::Sandbox::User=root".to_owned(),
    ];
    if let Source::Suite(suite) = source {
        let sources = state.join("sources.list");
        let line = format!(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n"
        );
        fs::write(&sources, line).with_context(|| format!("cannot write {}", sources.display()))?;
        options.push(format!("Dir::Etc::sourcelist={}", sources.display()));
        options.push("Dir::Etc::sourceparts=/dev/null".to_owned());
    }
    let with_options = || {
        let mut command = apt_get();
        for option in &options {
            command.args(["-o", option]);
        }
        command
    };
    let debs = state.join("debs");
    shell::run(with_options().args(["-qq", "update"]))?;
    shell::run(with_options().args(["-qq", "download"]).args(packages).current_dir(&debs))?;
    let files = fs::read_dir(&debs).with_context(|| format!("cannot read {}", debs.display()))?;
    let files: Vec<PathBuf> = files.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    work(&files)?;
    fs::remove_dir_all(&state).with_context(|| format!("cannot remove {}", state.display()))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Another apt may be at work; wait for it instead of failing. 300 s covers an unattended upgrade.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}
