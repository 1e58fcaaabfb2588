//! The built libraries: once for each state of the sources, in the cache folder.
//!
//! Invariant: the folder of a state of the sources is whole, since it gets its name when it is. Two that build it at once build it
//! twice, and one of them wins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use xxhash_rust::xxh3::Xxh3;

use super::program::{Program, User};

/// Which driver is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Exports are R550's trampolines: `cmp`, `je` at +10, a jump through a slot.
    Old,
    /// Exports have the frame of R575 and later.
    New,
    /// No `libcuda.so.1` at all: the runtime has the device inside.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// What is launched is the host function.
    V12,
    /// What is launched is a `CUkernel` that `__cudaGetKernel` gave.
    V13,
}

impl Runtime {
    fn number(self) -> u32 {
        match self {
            Self::V12 => 12,
            Self::V13 => 13,
        }
    }
}

/// The built libraries and programs.
#[derive(Debug, Clone)]
pub struct Fixture {
    folder: PathBuf,
}

impl Fixture {
    /// Builds them with gcc (7 s), or finds them built.
    pub fn build() -> Result<Self> {
        // Of this process, one thread builds.
        static BUILDING: Mutex<()> = Mutex::new(());
        let _guard = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = cache().join(format!("cuda-fixtures-{:016x}", hash(&sources())?));
        if !folder.is_dir() {
            let fresh = folder.with_extension(std::process::id().to_string());
            let mut build = Command::new("sh");
            build.arg(sources().join("build.sh")).arg(&fresh);
            let output = build.output().context("cannot start sh")?;
            ensure!(output.status.success(), "build.sh failed:\n{}", String::from_utf8_lossy(&output.stderr));
            if let Err(error) = fs::rename(&fresh, &folder) {
                // Another process was faster.
                let _ = fs::remove_dir_all(&fresh);
                ensure!(folder.is_dir(), "cannot make {}: {error}", folder.display());
            }
        }
        // As `/proc/PID/maps` has it: a user's cache may lie behind a link.
        Ok(Self { folder: fs::canonicalize(folder)? })
    }

    /// Like [`Fixture::build`]; without gcc it says that `test` is skipped. What gcc refuses is the test's failure.
    pub fn for_test(test: &str) -> Option<Self> {
        let compiler = std::env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
        if Command::new(&compiler).arg("--version").output().is_err() {
            eprintln!("SKIPPED {test}: needs gcc, or a C compiler named by CC");
            return None;
        }
        Some(Self::build().expect("the fake CUDA libraries"))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A program that goes through the runtime.
    pub fn program(&self, driver: Driver, runtime: Runtime) -> Program {
        let user = User::Runtime { version: runtime.number(), per_thread: false };
        Program::new(self.folder.clone(), user, self.libraries(driver, Some(runtime)))
    }

    /// A program that goes through the driver's API, as Triton does; no runtime is mapped. `driver` is not [`Driver::None`].
    pub fn driver_program(&self, driver: Driver) -> Program {
        Program::new(self.folder.clone(), User::Driver, self.libraries(driver, None))
    }

    /// The folders for `LD_LIBRARY_PATH`.
    pub fn libraries(&self, driver: Driver, runtime: Option<Runtime>) -> Vec<PathBuf> {
        let alone = if driver == Driver::None { "-alone" } else { "" };
        let driver = match driver {
            Driver::Old => Some("driver-old".to_owned()),
            Driver::New => Some("driver-new".to_owned()),
            Driver::None => None,
        };
        let runtime = runtime.map(|runtime| format!("runtime-{}{alone}", runtime.number()));
        driver.into_iter().chain(runtime).chain(["common".to_owned()]).map(|name| self.folder.join(name)).collect()
    }

    /// The file of a driver.
    pub fn libcuda(&self, driver: Driver) -> Option<PathBuf> {
        self.libraries(driver, None).into_iter().map(|folder| folder.join("libcuda.so.1")).find(|path| path.is_file())
    }

    /// The file of a runtime: with `Driver::None` the one that has the device inside.
    pub fn libcudart(&self, driver: Driver, runtime: Runtime) -> PathBuf {
        let alone = if driver == Driver::None { "-alone" } else { "" };
        let number = runtime.number();
        self.folder.join(format!("runtime-{number}{alone}/libcudart.so.{number}"))
    }

    /// A file that is the same for all drivers and runtimes: `libnccl.so.2`, `libstub_cuda.so`, `libstub_cudart.so`,
    /// `libkernels-12.so`, `libkernels-13.so`.
    pub fn common(&self, name: &str) -> PathBuf {
        self.folder.join("common").join(name)
    }
}

pub(super) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cuda")
}

/// The cache folder, as `xtask` finds it.
fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("INFERSPAN_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("inferspan")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/inferspan")))
        .unwrap_or_else(std::env::temp_dir)
}

/// Of the names and contents of all C sources.
fn hash(folder: &Path) -> Result<u64> {
    let mut files = Vec::new();
    for folder in [folder.to_owned(), folder.join("program"), folder.join("calls")] {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            files.push(entry?.path());
        }
    }
    files.retain(|path| {
        path.extension().is_some_and(|ending| ["c", "h", "S", "map", "sh"].iter().any(|e| ending == *e))
    });
    files.sort();
    let mut hash = Xxh3::new();
    for path in files {
        let name = path.strip_prefix(folder).unwrap_or(&path);
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(hash.digest())
}
