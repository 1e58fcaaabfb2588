//! The cache folder: everything that `cargo xtask setup` installs, in one folder a name and version.
//!
//! Invariant: a part's folder holds a `.complete` stamp only when the part is whole, because the stamp is written last. The
//! stamp is the recipe's text. A folder without it, or with another recipe's, is thrown away and made again. One process
//! at a time installs a part; others wait for it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// `$INFERSPAN_CACHE`, else `$XDG_CACHE_HOME/inferspan`, else `~/.cache/inferspan`.
pub(crate) fn folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = if let Some(folder) = set("INFERSPAN_CACHE") {
        folder
    } else if let Some(folder) = set("XDG_CACHE_HOME") {
        folder.join("inferspan")
    } else if let Some(folder) = set("HOME") {
        folder.join(".cache/inferspan")
    } else {
        bail!(
            "no cache folder: INFERSPAN_CACHE, XDG_CACHE_HOME and HOME are all unset; set INFERSPAN_CACHE to a folder"
        );
    };
    // A relative path would mean another folder for every program that gets it through the environment.
    std::path::absolute(&folder).with_context(|| format!("cannot make {} absolute", folder.display()))
}

/// One part of the cache.
pub(crate) struct Part {
    name: String,
    folder: PathBuf,
    recipe: String,
}

impl Part {
    /// The part `name`, a path below the cache folder that holds its version (`jaeger-1.76.0`). `recipe` is the text that
    /// decides what is installed: when it changes, the part is made again.
    pub(crate) fn new(name: &str, recipe: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), folder: folder()?.join(name), recipe: recipe.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Whether the part was installed to its end, by this recipe.
    pub(crate) fn is_complete(&self) -> bool {
        fs::read_to_string(self.stamp()).is_ok_and(|text| text == self.recipe)
    }

    /// Installs the part with `work`, which gets an empty folder, unless it is complete.
    pub(crate) fn ensure(&self, work: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        if self.is_complete() {
            return Ok(self.folder.clone());
        }
        let _lock = self.lock()?;
        // Whoever held the lock may have installed it.
        if !self.is_complete() {
            shell::step(&format!("installing {} into {}", self.name, self.folder.display()), || {
                self.start_over()?;
                work(&self.folder)?;
                self.stamp_complete()
            })?;
        }
        Ok(self.folder.clone())
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join(".complete")
    }

    fn start_over(&self) -> Result<()> {
        if self.folder.exists() {
            eprintln!("xtask: {} holds an unfinished or outdated install; it is made again", self.folder.display());
            fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))?;
        }
        fs::create_dir_all(&self.folder).with_context(|| {
            format!("cannot make {}; set INFERSPAN_CACHE to a folder that can be written to", self.folder.display())
        })
    }

    fn stamp_complete(&self) -> Result<()> {
        let fresh = self.folder.join(".complete.new");
        fs::write(&fresh, &self.recipe).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, self.stamp()).with_context(|| format!("cannot write {}", self.stamp().display()))
    }

    /// Waits until no other process installs this part. The kernel lets go of the lock when the holder dies.
    fn lock(&self) -> Result<File> {
        let cache = folder()?;
        fs::create_dir_all(&cache).with_context(|| {
            format!("cannot make {}; set INFERSPAN_CACHE to a folder that can be written to", cache.display())
        })?;
        let path = cache.join(format!(".{}.lock", self.name.replace('/', "-")));
        let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                eprintln!("xtask: another run is installing {}; waiting for it …", self.name);
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, recipe: &str) -> Part {
        let folder = std::env::temp_dir().join(format!("xtask-cache-{}-{name}", std::process::id()));
        Part { name: name.to_owned(), folder, recipe: recipe.to_owned() }
    }

    #[test]
    fn a_part_is_complete_only_with_its_own_recipes_stamp() {
        let old = part("recipe", "one");
        old.start_over().unwrap();
        assert!(!old.is_complete(), "no stamp yet");
        old.stamp_complete().unwrap();
        assert!(old.is_complete());
        assert!(!part("recipe", "two").is_complete());
        fs::remove_dir_all(&old.folder).unwrap();
    }

    #[test]
    fn starting_over_leaves_nothing_of_a_broken_install() {
        let part = part("broken", "one");
        fs::create_dir_all(part.folder.join("half")).unwrap();
        part.start_over().unwrap();
        assert_eq!(fs::read_dir(&part.folder).unwrap().count(), 0);
        fs::remove_dir_all(&part.folder).unwrap();
    }
}
