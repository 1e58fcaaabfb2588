//! Folders for what a test writes, kept when the test fails, and for what it only needs.
//!
//! Enters: `INFERSPAN_KEEP` (`cargo xtask test --keep FOLDER` sets it), a folder for the folders of every run, failed or not.
//! Leaves: without it, a folder in the temporary one, which is removed when the test passes; a test that panics leaves it and
//! says where it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;

/// Removed when dropped, unless it is a test's and there is a reason to keep it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keep: bool,
    scratch: bool,
}

impl Folder {
    /// An empty folder with `name` in its name, for what a test writes.
    pub fn new(name: &str) -> io::Result<Self> {
        let kept_in = std::env::var_os("INFERSPAN_KEEP").filter(|value| !value.is_empty()).map(PathBuf::from);
        let keep = kept_in.is_some();
        let path =
            kept_in.unwrap_or_else(std::env::temp_dir).join(format!("inferspan-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self { path, keep, scratch: false })
    }

    /// One that nobody wants to see afterwards; as many of a name as are asked for.
    pub fn scratch(name: &str) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("inferspan-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(unique);
        fs::create_dir_all(&path)?;
        Ok(Self { path, keep: false, scratch: true })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps it whatever happens.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep || (thread::panicking() && !self.scratch) {
            eprintln!("what the test wrote is in {}", self.path.display());
        } else {
            // One that cannot be removed is only in the way.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_folders_of_a_name_differ_and_go_with_a_test_that_fails() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let failed = thread::spawn(move || {
            let folders = [Folder::scratch("of-a-test").unwrap(), Folder::scratch("of-a-test").unwrap()];
            sender.send(folders.each_ref().map(|folder| folder.path().to_owned())).unwrap();
            panic!("as a failing test does");
        });
        assert!(failed.join().is_err());
        let [one, other] = receiver.recv().unwrap();
        assert!(one != other && !one.exists() && !other.exists());
    }

    #[test]
    fn it_goes_with_a_test_that_passes_and_stays_with_one_that_fails() {
        let name = "folder-of-a-test";
        // Where the tests' own environment keeps folders there is nothing to see.
        if std::env::var_os("INFERSPAN_KEEP").is_some() {
            return;
        }
        let passed = Folder::new(name).unwrap().path().to_owned();
        assert!(!passed.exists());
        let failed = thread::spawn(move || {
            let folder = Folder::new(name).unwrap();
            assert!(folder.path().exists());
            panic!("as a failing test does");
        });
        assert!(failed.join().is_err());
        assert!(passed.exists());
        fs::remove_dir_all(passed).unwrap();
    }
}
