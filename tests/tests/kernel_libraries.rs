//! Kernels of real libraries, against what `objdump` shows of their code.
//!
//! The second reading shares nothing with the first but the idea: it follows the registers through the text of a disassembly.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use inferspan::kernel::table::FoundBy;
use inferspan::kernel::{self, Table};
use inferspan_harness::installed;

/// A call, and what its second and last two of four arguments were if they are addresses.
struct Call {
    to: String,
    host: u64,
    name: u64,
    /// `push $0x0` before it, and -1 in the fifth.
    pushes: usize,
    minus_one: bool,
}

/// Every call in a file that is given two addresses.
fn calls(file: &Path) -> Vec<Call> {
    let output = Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(file).output().expect("objdump");
    let text = String::from_utf8_lossy(&output.stdout);
    let (mut registers, mut calls, mut pushes, mut minus_one) = (HashMap::<&str, u64>::new(), Vec::new(), 0, false);
    for line in text.lines() {
        let Some((_, instruction)) = line.split_once(":\t") else { continue };
        let (operation, operands) = instruction.trim().split_once(' ').unwrap_or((instruction, ""));
        let operands = operands.trim();
        let (plain, comment) = operands.split_once('#').unwrap_or((operands, ""));
        let (from, to) = plain.trim().rsplit_once(',').unwrap_or(("", plain.trim()));
        match operation {
            "lea" if from.ends_with("(%rip)") => {
                let address = comment.split_whitespace().next().unwrap_or_default();
                registers.insert(to, u64::from_str_radix(address, 16).expect("an address"));
                continue;
            }
            "mov" if from.starts_with('%') && to.starts_with('%') => {
                match registers.get(from).copied() {
                    Some(value) => registers.insert(to, value),
                    None => registers.remove(to),
                };
                continue;
            }
            "mov" if to == "%r8d" => minus_one = from == "$0xffffffff",
            "push" => pushes += usize::from(to == "$0x0"),
            "call" => {
                let name = registers.get("%rdx").or(registers.get("%rcx"));
                if let (Some(&host), Some(&name)) = (registers.get("%rsi"), name) {
                    calls.push(Call { to: to.to_owned(), host, name, pushes, minus_one });
                }
                registers
                    .retain(|register, _| matches!(*register, "%rbx" | "%rbp" | "%r12" | "%r13" | "%r14" | "%r15"));
                (pushes, minus_one) = (0, false);
            }
            _ => {}
        }
        registers.remove(to);
    }
    calls
}

/// Texts at addresses, by the program headers that `readelf` shows.
fn texts(file: &Path) -> impl Fn(u64) -> String {
    let output = Command::new("readelf").args(["-lW"]).arg(file).output().expect("readelf");
    let hexadecimal = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("a number");
    let segments: Vec<(u64, u64, u64)> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("LOAD"))
        .map(|line| {
            let words: Vec<u64> = line.split_whitespace().take(4).map(hexadecimal).collect();
            (words[1], words[3], words[0])
        })
        .collect();
    let bytes = fs::read(file).expect("a file");
    move |address| {
        let of = |&&(start, size, _): &&(u64, u64, u64)| (start..start + size).contains(&address);
        let (start, _, offset) = segments.iter().find(of).expect("a segment");
        let from = (address - start + offset) as usize;
        let len = bytes[from..].iter().position(|&byte| byte == 0).expect("a text");
        String::from_utf8(bytes[from..from + len].to_vec()).expect("UTF-8")
    }
}

fn library(name: &str) -> Option<PathBuf> {
    let path = installed::folder("INFERSPAN_CUDA_LIBRARIES")?.join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    Some(path)
}

fn scan(file: &Path) -> Table {
    kernel::scan(fs::read(file).expect("a file").as_slice()).expect("an ELF file")
}

/// Fails unless the table holds what these calls say, all of it and nothing else.
fn must_be(table: &Table, file: &Path, calls: &[&Call], at_least: usize) {
    let text = texts(file);
    let expected: BTreeMap<u64, String> = calls.iter().map(|call| (call.host, text(call.name))).collect();
    assert!(expected.len() >= at_least, "objdump shows {}", expected.len());
    let found: BTreeMap<u64, String> = table.kernels().map(|(host, name)| (host, name.to_owned())).collect();
    assert_eq!(found, expected);
    assert_eq!(table.unread, 0);
}

#[test]
fn a_library_that_loads_the_runtime_has_all_its_kernels_named() {
    let Some(file) = library("torchvision/_C_stable.so") else { return };
    let calls = calls(&file);
    let registrations: Vec<&Call> =
        calls.iter().filter(|call| call.to.contains("<__cudaRegisterFunction@plt>")).collect();
    let table = scan(&file);
    assert_eq!(table.found_by, FoundBy::Import);
    must_be(&table, &file, &registrations, 55);
    // Unoptimised, so that one function launches for all; the handles tell them apart.
    assert_eq!(table.handles().len(), 55);
}

#[test]
fn a_stripped_library_with_the_runtime_in_it_has_all_its_kernels_named() {
    let Some(file) = library("nvidia/cu13/lib/libnvjpeg.so.13") else { return };
    let calls = calls(&file);
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    let is_registration = |call: &&Call| call.pushes >= 4 && call.minus_one;
    for call in calls.iter().filter(is_registration) {
        *votes.entry(&call.to).or_default() += 1;
    }
    let (to, _) = votes.into_iter().max_by_key(|(_, count)| *count).expect("calls of that shape");
    let registrations: Vec<&Call> = calls.iter().filter(|call| call.to == to).collect();
    let table = scan(&file);
    assert_eq!(table.found_by, FoundBy::Shape);
    must_be(&table, &file, &registrations, 249);
}
