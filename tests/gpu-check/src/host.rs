//! Facts of the machine, and where its CUDA libraries are.
//!
//! Enters: `/proc`, `/etc`, `nvidia-smi`, `python3`, `ldconfig`. Leaves: texts for the report, paths. What a host does not have is absent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// What a host says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    /// `kernel`, `distribution`, `glibc`, `cpu`, `virtualisation`, `driver`, `gpus`, `python`, `torch`.
    pub(crate) facts: BTreeMap<String, String>,
}

/// The libraries that are looked into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Libraries {
    pub(crate) driver: Option<PathBuf>,
    pub(crate) runtime: Option<PathBuf>,
    pub(crate) nccl: Option<PathBuf>,
}

/// What a command prints; nothing where it is missing or fails.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// The Python that may have PyTorch.
pub(crate) fn python() -> String {
    std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

impl Host {
    pub(crate) fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let field = |path: &str, name: &str| {
            let text = text(path)?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line[name.len()..].trim_matches([' ', '\t', ':', '=', '"']).to_owned())
        };
        let torch =
            "import torch; print(torch.__version__, 'CUDA', torch.version.cuda, 'usable', torch.cuda.is_available())";
        let facts = [
            ("kernel", said("uname", &["-srvm"])),
            ("distribution", field("/etc/os-release", "PRETTY_NAME")),
            ("glibc", said("getconf", &["GNU_LIBC_VERSION"])),
            ("cpu", field("/proc/cpuinfo", "model name")),
            ("virtualisation", said("systemd-detect-virt", &[])),
            ("driver", text("/proc/driver/nvidia/version")),
            (
                "gpus",
                said(
                    "nvidia-smi",
                    &["--query-gpu=name,driver_version,memory.total,mig.mode.current", "--format=csv,noheader"],
                ),
            ),
            ("python", said(&python(), &["--version"])),
            ("torch", said(&python(), &["-c", torch])),
        ];
        Self { facts: facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?))).collect() }
    }

    /// The kernel module of the driver is loaded: what answers is no fake.
    pub(crate) fn has_driver_module(&self) -> bool {
        self.facts.contains_key("driver")
    }

    /// PyTorch with a usable device.
    pub(crate) fn has_torch(&self) -> bool {
        self.facts.get("torch").is_some_and(|torch| torch.ends_with("True"))
    }
}

impl Libraries {
    /// As the loader would find them, then where Python packages and NVIDIA's installers put them.
    pub(crate) fn find() -> Self {
        let mut folders: Vec<PathBuf> =
            std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths).collect();
        let sites =
            "import site, sys; print('\\n'.join(site.getsitepackages() + [site.getusersitepackages()] + sys.path))";
        for site in said(&python(), &["-c", sites]).unwrap_or_default().lines().filter(|line| !line.is_empty()) {
            folders.extend(below(&Path::new(site).join("nvidia")).into_iter().map(|folder| folder.join("lib")));
        }
        folders.extend(
            ["/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib"].map(PathBuf::from),
        );
        let cached = said("ldconfig", &["-p"]).or_else(|| said("/sbin/ldconfig", &["-p"])).unwrap_or_default();
        let find = |start: &str| {
            let in_folders = folders.iter().flat_map(|folder| below(folder)).find(|path| is(path, start));
            let in_cache = || cached.lines().filter_map(|line| line.split(" => ").nth(1)).map(PathBuf::from);
            let found = in_folders.or_else(|| in_cache().find(|path| is(path, start)))?;
            // As it is mapped: links say nothing.
            found.canonicalize().ok()
        };
        Self { driver: find("libcuda.so.1"), runtime: find("libcudart.so."), nccl: find("libnccl.so.2") }
    }
}

fn is(path: &Path, start: &str) -> bool {
    path.is_file() && path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
}

/// What is in a folder, in order.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().map_while(Result::ok).map(|entry| entry.path()).collect();
    found.sort();
    found
}
