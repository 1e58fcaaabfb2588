//! cargo-deny: licences, duplicate and banned crates, and where crates come from.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache;

const VERSION: &str = "0.20.2";

/// The program's path, installed if it is missing.
pub(crate) fn ensure() -> Result<PathBuf> {
    let recipe = format!("cargo install cargo-deny {VERSION} without default features\n");
    let part = cache::Part::new(&format!("cargo-deny-{VERSION}"), &recipe)?;
    // Default features are for fetching advisories over TLS, which `lint` does not do.
    let folder =
        part.ensure(|folder| super::cargo_install("cargo-deny", VERSION, &["--no-default-features"], folder))?;
    Ok(folder.join("bin/cargo-deny"))
}
