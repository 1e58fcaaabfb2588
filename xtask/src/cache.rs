//! The cache folder: everything that `cargo xtask setup` installs, in one folder a name and version.
//!
//! Invariant: a part's folder holds a `.complete` stamp only when the part is whole, because the stamp is written last. A
//! folder without it is a broken install and is made again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// `$INFERSPAN_CACHE`, else `$XDG_CACHE_HOME/inferspan`, else `~/.cache/inferspan`.
pub fn folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = if let Some(folder) = set("INFERSPAN_CACHE") {
        folder
    } else if let Some(folder) = set("XDG_CACHE_HOME") {
        folder.join("inferspan")
    } else if let Some(folder) = set("HOME") {
        folder.join(".cache/inferspan")
    } else {
        bail!(
            "no cache folder: neither INFERSPAN_CACHE, XDG_CACHE_HOME nor HOME is set; set INFERSPAN_CACHE to a folder"
        );
    };
    // A relative path would mean another folder for every program that gets it through the environment.
    std::path::absolute(&folder).with_context(|| format!("cannot make {} absolute", folder.display()))
}

/// One versioned part of the cache.
pub struct Part {
    folder: PathBuf,
}

impl Part {
    /// The part `name` (with its version, `jaeger-1.76.0`); nothing is touched yet.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self { folder: folder()?.join(name) })
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join(".complete")
    }

    /// Whether the part was installed to its end.
    pub fn is_complete(&self) -> bool {
        self.stamp().is_file()
    }

    /// Makes an empty folder for the part, throwing away a broken install.
    pub fn start_over(&self) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot remove the broken install {}", self.folder.display()))?;
        }
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))
    }

    /// Stamps the part as whole. `what` is a line for people who look at the folder.
    pub fn complete(&self, what: &str) -> Result<()> {
        let fresh = self.folder.join(".complete.new");
        fs::write(&fresh, format!("{what}\n")).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, self.stamp()).with_context(|| format!("cannot write {}", self.stamp().display()))
    }
}
