//! `cargo xtask sbom`: what is built into the binary, crate by crate.
//!
//! Enters: the manifests and the lock file. Leaves: `target/sbom/inferspan.cdx.json` (CycloneDX 1.5): the crates of the binary on the
//! machine that it is built for, with versions, checksums' origins and licences, without what only tests and build scripts use. Refused: a list
//! that is not of the binary, or that lacks what cargo says it is built of.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{build, setup, shell};

/// The crate that the binary is of.
const CRATE: &str = "inferspan";
const NAME: &str = "inferspan.cdx";
const MACHINE: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn main() -> Result<()> {
    let program = setup::cyclonedx::ensure()?;
    let folders = members()?;
    let written = |folder: &Path| folder.join(format!("{NAME}.json"));
    let made = shell::step("cargo cyclonedx", || {
        let mut command = Command::new(program);
        command.args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--target", MACHINE]);
        command.args(["--no-build-deps", "--quiet", "--override-filename", NAME]).current_dir(shell::root());
        shell::run(&mut command)
    });
    // It writes one beside the manifest of every member; only the binary's is wanted.
    let text = folders.iter().find(|(name, _)| name == CRATE).map(|(_, folder)| fs::read_to_string(written(folder)));
    for (_, folder) in &folders {
        // Where there is none there is nothing to remove.
        let _ = fs::remove_file(written(folder));
    }
    made?;
    let text = text.context("no member is called inferspan")?.context("cargo cyclonedx wrote no list for inferspan")?;
    let listed = components(&text)?;
    let missing: Vec<String> = built_in()?.into_iter().filter(|crate_| !listed.contains(crate_)).collect();
    if !missing.is_empty() {
        bail!("the list lacks what the binary is built of: {}", missing.join(", "));
    }
    let out = build::target_folder().join("sbom");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let path = out.join(format!("{NAME}.json"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("sbom: {} crates of the binary {CRATE}: {}", listed.len(), path.display());
    Ok(())
}

/// The members of the workspace: name and folder.
fn members() -> Result<Vec<(String, PathBuf)>> {
    let mut command = shell::cargo();
    command.current_dir(shell::root()).args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&shell::output(&mut command)?).context("cargo metadata is no JSON")?;
    let of = |package: &Value| {
        let folder = Path::new(package["manifest_path"].as_str()?).parent()?.to_path_buf();
        Some((package["name"].as_str()?.to_owned(), folder))
    };
    Ok(metadata["packages"].as_array().into_iter().flatten().filter_map(of).collect())
}

/// `name version` of every component of a list, which must be the binary's.
fn components(text: &str) -> Result<BTreeSet<String>> {
    let list: Value = serde_json::from_str(text).context("the list is no JSON")?;
    if list["bomFormat"] != "CycloneDX" || list["metadata"]["component"]["name"] != CRATE {
        bail!("the list is not CycloneDX's, or not of {CRATE}");
    }
    let of = |part: &Value| Some(format!("{} {}", part["name"].as_str()?, part["version"].as_str()?));
    Ok(list["components"].as_array().into_iter().flatten().filter_map(of).collect())
}

/// `name version` of every crate that cargo builds into the binary.
fn built_in() -> Result<BTreeSet<String>> {
    let mut command = shell::cargo();
    command.current_dir(shell::root()).args(["tree", "--locked", "--package", CRATE, "--target", MACHINE]);
    command.args(["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]);
    let text = shell::output(&mut command)?;
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        (name != CRATE).then(|| format!("{name} {version}"))
    };
    Ok(text.lines().filter_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_another_crate_is_refused() {
        let of = |name: &str| {
            format!(
                r#"{{"bomFormat":"CycloneDX","metadata":{{"component":{{"name":"{name}"}}}},"components":[{{"name":"a","version":"1.2.3"}}]}}"#
            )
        };
        assert_eq!(components(&of(CRATE)).unwrap(), BTreeSet::from(["a 1.2.3".to_owned()]));
        assert!(components(&of("xtask")).is_err());
        assert!(components("{}").is_err() && components("").is_err());
    }
}
