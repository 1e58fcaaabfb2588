//! The kernels: Debian's, each pinned by its version and the SHA-256 of its package.
//!
//! Enters: a version as users write it. Leaves: a kernel's image in the cache. Refused: a package whose bytes are not the pinned ones. Only
//! suites whose packages stay are named: those that Debian has closed, or that keep what they had.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup::apt;
use crate::{cache, shell};

/// A kernel of Debian's.
struct Pinned {
    /// As it is asked for.
    version: &'static str,
    suite: &'static str,
    package: &'static str,
    sha256: &'static str,
}

/// There is none between 5.10 and 6.1 in any suite that Debian still serves.
const PINNED: [Pinned; 3] = [
    Pinned {
        version: "5.10",
        suite: "bullseye",
        package: "linux-image-5.10.0-32-cloud-amd64=5.10.223-1",
        sha256: "fb4a1229952d892138532c1d9f40a7fd0bd408e4dcf969c12e4524b6a89fdcb8",
    },
    Pinned {
        version: "6.1",
        suite: "bookworm",
        package: "linux-image-6.1.0-50-cloud-amd64=6.1.176-1",
        sha256: "efe19f605b6f54a8352e68d85a629abb2d30b72a085faef603a9152590baa791",
    },
    Pinned {
        version: "6.12",
        suite: "bookworm-backports",
        package: "linux-image-6.12.95+deb12-cloud-amd64=6.12.95-1~bpo12+1",
        sha256: "69c92f43b23821de79576fa4d7c86e2924ae2c1b247a47cc5ed9339e220fbcb7",
    },
];

/// All versions that are pinned.
pub(super) fn versions() -> impl Iterator<Item = &'static str> {
    PINNED.iter().map(|pinned| pinned.version)
}

/// The image of a version, fetched if it is missing; or of a file, for a version with a slash in it.
pub(super) fn image(version: &str) -> Result<PathBuf> {
    if version.contains('/') {
        ensure!(Path::new(version).is_file(), "{version} is no file");
        return Ok(version.into());
    }
    let Some(pinned) = PINNED.iter().find(|pinned| pinned.version == version) else {
        let known: Vec<&str> = versions().collect();
        bail!("no kernel {version} is known: {} are, and any bzImage by its path (./bzImage)", known.join(", "));
    };
    let Pinned { suite, package, sha256, .. } = pinned;
    let recipe = format!("{package} of {suite}, {sha256}\n");
    let part = cache::Part::new(&format!("kernel-{version}"), &recipe)?;
    let folder = part.ensure(|folder| {
        apt::download(&[package], apt::Source::Suite(suite), |debs| {
            let [deb] = debs else { bail!("apt downloaded {} files for one package", debs.len()) };
            let sum = shell::output(Command::new("sha256sum").arg(deb))?;
            ensure!(sum.starts_with(sha256), "{} is not what was pinned: its SHA-256 is {sum}", deb.display());
            let unpacked = folder.join("unpacked");
            apt::extract(deb, &unpacked)?;
            fs::rename(unpacked.join("boot"), folder.join("boot")).context("the package has no /boot")?;
            // Modules of 60 MB, of which none is loaded.
            fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
        })
        .with_context(|| {
            format!("Debian's {suite} may have a newer kernel now: then PINNED needs its version and SHA-256")
        })
    })?;
    let boot = folder.join("boot");
    let files = fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))?;
    let mut files = files.map_while(Result::ok).map(|entry| entry.path());
    let is_image = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    files.find(is_image).with_context(|| format!("no kernel in {}", boot.display()))
}
