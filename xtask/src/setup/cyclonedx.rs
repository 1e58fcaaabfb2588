//! cargo-cyclonedx: the list of what is built into the binary, as CycloneDX has it.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache;

const VERSION: &str = "0.5.9";

/// The program's path, installed if it is missing.
pub(crate) fn ensure() -> Result<PathBuf> {
    let recipe = format!("cargo install cargo-cyclonedx {VERSION}\n");
    let part = cache::Part::new(&format!("cargo-cyclonedx-{VERSION}"), &recipe)?;
    let folder = part.ensure(|folder| super::cargo_install("cargo-cyclonedx", VERSION, &[], folder))?;
    Ok(folder.join("bin/cargo-cyclonedx"))
}
