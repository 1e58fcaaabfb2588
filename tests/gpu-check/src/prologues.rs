//! What a CUDA library's functions start with, and where Inferspan probes them.
//!
//! Enters: a library's file. Leaves: for each probe point the first bytes, the instructions, the chosen one; and where in a handle the
//! driver keeps a kernel's name. The points are the product's own (`inferspan::attach::family`), so that the report tells what it would do.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use inferspan::attach::exports::Exports;
use inferspan::attach::family::{ENTERED, Family, Find, Point};
use inferspan::elf::Image;
use serde::{Deserialize, Serialize};

/// Bytes that are kept of a function.
const BYTES: usize = 32;
/// Instructions in which a function that gives a name is looked for its reading of the handle.
const INSTRUCTIONS: usize = 120;
/// From an export over a slot to the function, and one further.
const DEPTH: usize = 3;

/// A function that is probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prologue {
    pub(crate) symbol: String,
    /// Of its entry in the file.
    pub(crate) offset: u64,
    /// The first [`BYTES`], hexadecimal.
    pub(crate) bytes: String,
    /// As iced names their encodings, with offsets: `+0 Cmp_rm32_imm32`.
    pub(crate) instructions: Vec<String>,
    /// Bytes from the entry to the instruction that is probed.
    pub(crate) chosen: u64,
    /// The kernel carries it out itself; else it steps over it.
    pub(crate) is_emulated: bool,
}

/// The points of a family in a library; nothing where it is no such library.
pub(crate) fn of_family(library: &Path, family: &Family) -> Result<Option<Vec<Prologue>>> {
    let Find::Exports(find) = family.points else { return Ok(None) };
    let Some(exports) = exports(library)? else { return Ok(None) };
    Ok(find(&exports).map(|points| points.iter().map(prologue).collect()))
}

/// The point of one function of a library.
pub(crate) fn point(library: &Path, symbol: &str) -> Result<Option<Point>> {
    Ok(exports(library)?.and_then(|exports| exports.point(ENTERED, 0, symbol)))
}

fn exports(library: &Path) -> Result<Option<Exports>> {
    let file = File::open(library).with_context(|| format!("cannot open {}", library.display()))?;
    Exports::read(&file).with_context(|| format!("cannot read {}", library.display()))
}

fn prologue(point: &Point) -> Prologue {
    let code = &point.code[..point.code.len().min(BYTES)];
    Prologue {
        symbol: point.symbol.clone(),
        offset: point.offset,
        bytes: faster_hex::hex_string(code),
        instructions: instructions(code),
        chosen: point.quickest,
        is_emulated: point.is_emulated,
    }
}

fn instructions(code: &[u8]) -> Vec<String> {
    let decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let valid = decoder.into_iter().take_while(|instruction| !instruction.is_invalid());
    valid.map(|instruction| format!("+{} {:?}", instruction.ip(), instruction.code())).collect()
}

/// Where in a handle the name is, as `cuFuncGetName` or `cuKernelGetName` of the library reads it: bytes. Nothing where its code is of
/// another form.
pub(crate) fn name_displacement(library: &Path, symbol: &str) -> Result<Option<u32>> {
    let Some(point) = point(library, symbol)? else { return Ok(None) };
    let bytes = std::fs::read(library).with_context(|| format!("cannot read {}", library.display()))?;
    let image = Image::read(bytes.as_slice()).with_context(|| format!("{} is no ELF file", library.display()))?;
    // Where the code lies in the file, and in memory.
    let Some(code) =
        image.code().into_iter().find(|code| (code.offset..code.offset + code.size).contains(&point.offset))
    else {
        return Ok(None);
    };
    let entry = point.offset - code.offset + code.address;
    let mut wanted = vec![(entry, 0)];
    let mut seen = Vec::new();
    while let Some((address, depth)) = wanted.pop() {
        if depth > DEPTH || seen.contains(&address) {
            continue;
        }
        seen.push(address);
        let Some(offset) = image.offset(address).and_then(|offset| usize::try_from(offset).ok()) else { continue };
        let body = bytes.get(offset..).map_or(&[][..], |rest| &rest[..rest.len().min(INSTRUCTIONS * 15)]);
        match reads_name(body, address) {
            Found::At(displacement) => return Ok(Some(displacement)),
            Found::Further(slots) => {
                wanted.extend(
                    slots.into_iter().filter_map(|slot| image.pointer(slot)).map(|address| (address, depth + 1)),
                );
            }
        }
    }
    Ok(None)
}

enum Found {
    At(u32),
    /// Slots over which the function goes on.
    Further(Vec<u64>),
}

/// `mov a, [b + displacement]; mov [c], a` in a function's first instructions.
fn reads_name(code: &[u8], address: u64) -> Found {
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut slots = Vec::new();
    let mut last: Option<Instruction> = None;
    for instruction in decoder.into_iter().take(INSTRUCTIONS) {
        if instruction.is_invalid() {
            break;
        }
        if let Some(read) = last
            && gives(&read, &instruction)
        {
            return Found::At(read.memory_displacement32());
        }
        if instruction.is_ip_rel_memory_operand() && slots.len() < 8 {
            slots.push(instruction.ip_rel_memory_address());
        }
        // A jump to elsewhere at the start is all that a trampoline does.
        if instruction.flow_control() == FlowControl::IndirectBranch {
            break;
        }
        last = Some(instruction);
    }
    Found::Further(slots)
}

fn gives(read: &Instruction, write: &Instruction) -> bool {
    let base = read.memory_base();
    read.code() == Code::Mov_r64_rm64
        && read.op1_kind() == OpKind::Memory
        && !matches!(base, Register::RSP | Register::RBP | Register::RIP | Register::None)
        && read.memory_index() == Register::None
        && (1..128).contains(&read.memory_displacement32())
        && write.code() == Code::Mov_rm64_r64
        && write.op0_kind() == OpKind::Memory
        && write.op1_register() == read.op0_register()
        && write.memory_displacement64() == 0
        && write.memory_index() == Register::None
        && !matches!(write.memory_base(), Register::RSP | Register::RBP | Register::RIP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_where_it_is_read_and_given_on() {
        // mov rax, [r12 + 8]; mov [rbx], rax (driver 550)
        let code = [0x49, 0x8b, 0x44, 0x24, 0x08, 0x48, 0x89, 0x03];
        assert!(matches!(reads_name(&code, 0), Found::At(8)));
        // mov rax, [rsp + 8]; mov [rbx], rax: a local variable
        let code = [0x48, 0x8b, 0x44, 0x24, 0x08, 0x48, 0x89, 0x03];
        assert!(matches!(reads_name(&code, 0), Found::Further(slots) if slots.is_empty()));
    }

    #[test]
    fn a_trampoline_says_its_slot() {
        // cmp dword [rip + 0x10], imm; je; jmp [rip + 0x20]
        let code = [0x81, 0x3d, 0x10, 0, 0, 0, 0, 0xba, 0x1c, 0x32, 0x74, 0x0c, 0xff, 0x25, 0x20, 0, 0, 0];
        assert!(matches!(reads_name(&code, 0x1000), Found::Further(slots) if slots.contains(&0x1032)));
    }

    #[test]
    fn instructions_are_told_until_the_bytes_end() {
        assert_eq!(instructions(&[0x55, 0x48, 0x89, 0xe5, 0x81]), ["+0 Push_r64", "+1 Mov_rm64_r64"]);
    }
}
