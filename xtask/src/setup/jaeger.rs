//! Jaeger: built from its Go module, or the official image where a container engine answers.
//!
//! `go install …@version` refuses the module (its go.mod has a `replace`), so its source is copied out of Go's module cache
//! and built there with Jaeger's own go.sum. That binary serves the whole query API; its UI is a git submodule that the
//! module does not hold, so the page is a placeholder. The image has the UI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::{cache, shell};

const MODULE: &str = "github.com/jaegertracing/jaeger";
/// The newest version that Go tools can name: the path has no `/v2`. Its `cmd/jaeger` is Jaeger 2.13.
const VERSION: &str = "1.76.0";
/// The same release as an image.
const IMAGE: &str = "jaegertracing/jaeger:2.13.0";
/// The oldest Go that Jaeger's dependencies build with.
const OLDEST_GO: (u32, u32, u32) = (1, 25, 4);
/// From this version on, a Go fetches the version that `GOTOOLCHAIN` names through the module proxy.
const OLDEST_SWITCHING_GO: (u32, u32, u32) = (1, 21, 0);
/// What an older Go switches to.
const SWITCH_TO: &str = "go1.27.3";
/// Debian 12's newest backport, used only to switch.
const BACKPORT: &str = "1.23";

/// The binary's path, built if it is missing.
pub(crate) fn ensure() -> Result<PathBuf> {
    let recipe = format!("{MODULE}@v{VERSION}, go build ./cmd/jaeger\n");
    let folder = cache::Part::new(&format!("jaeger-{VERSION}"), &recipe)?.ensure(build)?;
    Ok(folder.join("jaeger"))
}

/// Jaeger's image and the engine to run it with, pulled if need be; `None` where no engine answers.
pub(crate) fn image() -> Option<(&'static str, &'static str)> {
    // A client without its daemon is common; only an answer from the daemon counts.
    let answers = Command::new("docker")
        .arg("info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !answers {
        return None;
    }
    let here = shell::output(Command::new("docker").args(["image", "inspect", IMAGE])).is_ok();
    if !here
        && let Err(error) = shell::step(&format!("pulling {IMAGE}"), || {
            shell::run(Command::new("docker").args(["pull", "--quiet", IMAGE]).stdout(Stdio::null()))
        })
    {
        eprintln!("xtask: {error:#}; using a Jaeger built from source, which has no UI");
        return None;
    }
    Some(("docker", IMAGE))
}

struct Go {
    program: PathBuf,
    /// `GOTOOLCHAIN`: `local`, or the version to switch to.
    toolchain: &'static str,
}

impl Go {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // A GOROOT or GOFLAGS of the user's is for another Go, or another module.
        command.env("GOTOOLCHAIN", self.toolchain).env("CGO_ENABLED", "0").env_remove("GOROOT").env_remove("GOFLAGS");
        command
    }
}

fn build(folder: &Path) -> Result<()> {
    let go = find_go()?;
    eprintln!("xtask: building with {} (5 to 10 minutes on two cores)", go.program.display());
    let answer = shell::output(go.command().args(["mod", "download", "-json", &format!("{MODULE}@v{VERSION}")]))?;
    let answer: serde_json::Value = serde_json::from_str(&answer).context("`go mod download -json` gave no JSON")?;
    let Some(module) = answer["Dir"].as_str() else {
        bail!("`go mod download -json` names no folder: {answer}");
    };
    let source = folder.join("source");
    // Go's module cache is read-only.
    shell::run(Command::new("cp").args(["-r", "--no-preserve=mode"]).arg(module).arg(&source))?;
    shell::run(
        go.command()
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"])
            .arg(folder.join("jaeger"))
            .arg("./cmd/jaeger")
            .current_dir(&source),
    )?;
    shell::output(Command::new(folder.join("jaeger")).arg("version"))?;
    fs::remove_dir_all(&source).with_context(|| format!("cannot remove {}", source.display()))
}

/// A Go that is new enough, or that can switch to one that is; Debian's backport, unpacked, where there is none.
fn find_go() -> Result<Go> {
    let candidates = [shell::find_on_path("go"), Some(PathBuf::from("/usr/local/go/bin/go"))];
    for program in candidates.into_iter().flatten() {
        let Some(version) = go_version(&program) else { continue };
        if version >= OLDEST_GO {
            return Ok(Go { program, toolchain: "local" });
        }
        if version >= OLDEST_SWITCHING_GO {
            return Ok(Go { program, toolchain: SWITCH_TO });
        }
        eprintln!("xtask: {} is Go {}.{}, too old for Jaeger", program.display(), version.0, version.1);
    }
    let part = cache::Part::new(&format!("go-{BACKPORT}"), "Debian backports' golang-1.23-go, unpacked\n")?;
    let folder = part.ensure(|folder| {
        let packages = [format!("golang-{BACKPORT}-go"), format!("golang-{BACKPORT}-src")];
        apt::unpack(&[&packages[0], &packages[1]], apt::Source::Suite("bookworm-backports"), folder)
    })?;
    let program = folder.join(format!("usr/lib/go-{BACKPORT}/bin/go"));
    if go_version(&program).is_none() {
        bail!(
            "{} does not run; install Go {}.{}.{} or later and put it on PATH",
            program.display(),
            OLDEST_GO.0,
            OLDEST_GO.1,
            OLDEST_GO.2
        );
    }
    Ok(Go { program, toolchain: SWITCH_TO })
}

fn go_version(program: &Path) -> Option<(u32, u32, u32)> {
    let text =
        shell::output(Command::new(program).arg("version").env("GOTOOLCHAIN", "local").env_remove("GOROOT")).ok()?;
    parse_go_version(&text)
}

/// The version in `go version go1.26.8 linux/amd64`.
fn parse_go_version(text: &str) -> Option<(u32, u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    let mut numbers = version.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    Some((1, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_read_from_what_go_prints() {
        assert_eq!(parse_go_version("go version go1.26.8 linux/amd64"), Some((1, 26, 8)));
        assert_eq!(parse_go_version("go version go1.19 linux/amd64"), Some((1, 19, 0)));
        assert_eq!(parse_go_version("go version go1.28rc1 linux/amd64"), Some((1, 28, 0)));
        assert_eq!(parse_go_version("go version devel +a1b2c3"), None);
    }
}
