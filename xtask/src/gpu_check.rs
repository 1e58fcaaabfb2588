//! `cargo xtask gpu-check`: a folder that is carried to a GPU host and run there, as root, with nothing else.
//!
//! Enters: the working tree. Leaves: `target/gpu-check` (`run.sh`, `bin/`, `glibc`: the least version that the programs run with), stripped
//! of debug lines. The programs are linked dynamically: one of them loads the driver, which a static program cannot. Refused: a folder of
//! over [`SIZE_MAX`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{build, shell};

const CRATE: &str = "inferspan-gpu-check";
const PROGRAMS: [&str; 3] = ["gpu-check", "gpu-program", "empty-uprobe"];
/// Bytes; a folder that is easily carried.
const SIZE_MAX: u64 = 60 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the folder is made; what is there is replaced
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let mut built = vec![build::inferspan()?];
    built.extend(build::programs(CRATE, &PROGRAMS)?);
    let out = arguments.out.clone().unwrap_or_else(|| build::target_folder().join("gpu-check"));
    let programs = out.join("bin");
    if out.exists() {
        // Only its own: a folder that was named by mistake is somebody's.
        if !out.join("run.sh").is_file() {
            bail!("{} exists and is no folder of gpu-check", out.display());
        }
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    let sources = shell::root().join("tests/gpu-check");
    copy(&sources.join("run.sh"), &out)?;
    copy(&sources.join("decode_loop.py"), &programs)?;
    let (mut glibc, mut size) = ((0, 0), 0);
    for program in built {
        let path = copy(&program, &programs)?;
        shell::run(Command::new("strip").arg("--strip-debug").arg(&path))
            .context("strip is of the package binutils")?;
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        glibc = glibc.max(needed_glibc(&bytes));
        size += bytes.len() as u64;
    }
    let (major, minor) = glibc;
    fs::write(out.join("glibc"), format!("{major}.{minor}\n")).context("cannot write the version of glibc")?;
    let mebibytes = size as f64 / f64::from(1 << 20);
    if size > SIZE_MAX {
        bail!("{} has {mebibytes:.1} MiB, and {} may be", out.display(), SIZE_MAX >> 20);
    }
    println!("gpu-check: {} ({mebibytes:.1} MiB; needs x86-64 Linux and glibc {major}.{minor})", out.display());
    println!(
        "Carry it to the GPU host, and there, as root: gpu-check/run.sh OUT; docs/gpu-runs/README.md says what to commit"
    );
    Ok(())
}

/// Copies a file into a folder, its mode too.
fn copy(file: &Path, folder: &Path) -> Result<PathBuf> {
    let to = folder.join(file.file_name().context("a file has a name")?);
    fs::copy(file, &to).with_context(|| format!("cannot copy {} to {}", file.display(), to.display()))?;
    Ok(to)
}

/// The newest `GLIBC_2.34` that is named in a program: symbols' versions stand in it as text.
fn needed_glibc(program: &[u8]) -> (u32, u32) {
    const NAME: &[u8] = b"GLIBC_";
    let at = (0..program.len().saturating_sub(NAME.len())).filter(|&at| program[at..].starts_with(NAME));
    at.filter_map(|at| version(&program[at + NAME.len()..])).max().unwrap_or_default()
}

/// `2.34` at the start of a text that a NUL ends, and a `2.2.5` as 2.2.
fn version(text: &[u8]) -> Option<(u32, u32)> {
    let end = text.iter().take(12).position(|&byte| byte == 0)?;
    let mut numbers = std::str::from_utf8(&text[..end]).ok()?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_that_a_program_names_is_needed() {
        let program = b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0see GLIBC_2.99 or later";
        assert_eq!(needed_glibc(program), (2, 34));
        assert_eq!(needed_glibc(b"static"), (0, 0));
    }
}
