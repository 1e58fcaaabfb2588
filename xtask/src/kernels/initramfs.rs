//! The files that a machine starts with: programs, what they are linked with, and nothing of a distribution.
//!
//! Enters: files and where they stand. Leaves: an archive in the format "newc" (the kernel's Documentation/driver-api/early-userspace/
//! buffer-format.rst), uncompressed. Libraries stand where the loader found them here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell;

/// Read and execute for all.
const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
/// Ends the archive.
const LAST: &str = "TRAILER!!!";

/// Files by their places in the machine, without the slash.
#[derive(Default)]
pub(super) struct Files(BTreeMap<String, PathBuf>);

impl Files {
    pub(super) fn add(&mut self, place: &str, file: &Path) {
        self.0.insert(place.trim_start_matches('/').to_owned(), file.to_owned());
    }

    /// A program or library without its debug lines, with all that it is linked with; `scratch` is a folder for that.
    pub(super) fn add_linked(&mut self, place: &str, file: &Path, scratch: &Path) -> Result<()> {
        let stripped = scratch.join(place.replace('/', "-"));
        shell::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(file))
            .context("strip is of the package binutils")?;
        self.add(place, &stripped);
        for library in linked(&shell::output(Command::new("ldd").arg(file))?) {
            self.add(library, Path::new(library));
        }
        Ok(())
    }

    /// Writes the archive.
    pub(super) fn write(&self, archive: &Path) -> Result<()> {
        let mut bytes = Vec::new();
        let parents = self.0.keys().flat_map(|place| Path::new(place).ancestors().skip(1));
        let folders: BTreeSet<&Path> = parents.filter(|folder| !folder.as_os_str().is_empty()).collect();
        let names = folders.iter().map(|folder| folder.to_string_lossy());
        let mut number = 0;
        for name in names {
            number += 1;
            entry(&mut bytes, number, &name, FOLDER, &[])?;
        }
        for (place, file) in &self.0 {
            number += 1;
            let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            entry(&mut bytes, number, place, FILE, &content)?;
        }
        entry(&mut bytes, 0, LAST, 0, &[])?;
        fs::write(archive, bytes).with_context(|| format!("cannot write {}", archive.display()))
    }
}

/// Head, name and content, each filled up to four bytes.
fn entry(bytes: &mut Vec<u8>, number: u32, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let (size, name_size) = (u32::try_from(content.len())?, u32::try_from(name.len() + 1)?);
    let links = if mode == FOLDER { 2 } else { 1 };
    // Number, mode, user, group, links, time, size, device (two), device that it is (two), size of the name, checksum.
    let fields = [number, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    write!(bytes, "070701")?;
    for field in fields {
        write!(bytes, "{field:08X}")?;
    }
    bytes.extend(name.bytes().chain([0]));
    fill(bytes);
    bytes.extend(content);
    fill(bytes);
    Ok(())
}

fn fill(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The files that `ldd` names: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, and the loader, without an arrow.
fn linked(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_in_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x00007f3d9b649000)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \tlibcuda.so.1 => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f3d9b64b000)\n";
        let found: Vec<&str> = linked(said).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(linked("\tstatically linked\n").count(), 0);
    }

    #[test]
    fn an_entry_is_a_head_a_name_and_a_content_on_four_byte_boundaries() {
        let mut bytes = Vec::new();
        entry(&mut bytes, 1, "init", FILE, b"hello").unwrap();
        // 110 bytes of head and 5 of name, filled up to 116; 5 of content, to 124.
        assert_eq!((bytes.len(), &bytes[..14], &bytes[110..115]), (124, &b"07070100000001"[..], &b"init\0"[..]));
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
    }
}
