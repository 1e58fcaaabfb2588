//! Where the handles of a CUDA driver keep the addresses of kernels' names.
//!
//! Enters: a driver's file. Leaves: how far behind a handle it is, as the driver's own `cuFuncGetName(name, handle)` and
//! `cuKernelGetName(name, handle)` read it. Their code is followed from the export on: over a trampoline's slot, both sides of a branch, and
//! calls that are given the same arguments, to where eight bytes from behind the second argument go to where the first one points.
//! Refused: code that does this with several offsets, or with none that is found; then it is [`NAME_AT`], as nobody has seen another yet.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use tracer_ebpf::wire::cuda::NAME_AT;

use crate::elf::Image;
use crate::names::Library;

/// What gives names; since CUDA 12.3.
pub const GIVERS: [&str; 2] = ["cuFuncGetName", "cuKernelGetName"];

/// Instructions that are followed, of one function.
const INSTRUCTIONS: usize = 2000;
/// The longest x86-64 instruction.
const INSTRUCTION: usize = 15;
/// A handle is no larger than a page.
const OFFSET_MAX: u64 = 4096;

/// How far behind a handle the address of its name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamesAt {
    pub offset: u32,
    /// Whose code says so; nothing where it is assumed.
    pub known_by: Option<&'static str>,
}

impl Default for NamesAt {
    fn default() -> Self {
        Self { offset: NAME_AT, known_by: None }
    }
}

/// What a driver's file says. One that cannot be read says nothing, and is told of where it is probed.
pub fn names_at(driver: &Path) -> NamesAt {
    let said = GIVERS.map(|giver| (giver, offset_by(driver, giver)));
    let offsets: BTreeSet<u32> = said.iter().filter_map(|(_, offset)| *offset).collect();
    // A handle may be of either kind.
    let (1, Some((giver, Some(offset)))) = (offsets.len(), said.into_iter().find(|(_, offset)| offset.is_some()))
    else {
        return NamesAt::default();
    };
    NamesAt { offset, known_by: Some(giver) }
}

/// What one of [`GIVERS`] in a driver's file says.
pub fn offset_by(driver: &Path, giver: &str) -> Option<u32> {
    let library = Library::of(File::open(driver).ok()?).ok()?;
    let image = Image::read(&library).ok()?;
    let (entry, _) = *image.functions(&[giver]).ok()?.first()?;
    let code = |address: u64| {
        let mut bytes = [0; INSTRUCTION];
        let offset = image.offset(address).filter(|_| image.is_code(address))?;
        image.read_at(offset, &mut bytes).ok().map(|()| bytes)
    };
    follow(entry, code, |slot| image.pointer(slot))
}

/// What a register holds, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    Else,
    /// Where the name is wanted: the first argument.
    Out,
    /// The second argument.
    Handle,
    /// What is so far behind the handle.
    Behind(u32),
}

/// By the registers' numbers.
type Registers = [Holds; 16];

/// The offset of the one reading that is given on, in the code at `entry`. `code`: the bytes at an address; `pointer`: the address that a
/// slot holds.
fn follow(
    entry: u64,
    code: impl Fn(u64) -> Option<[u8; INSTRUCTION]>,
    pointer: impl Fn(u64) -> Option<u64>,
) -> Option<u32> {
    let mut registers = [Holds::Else; 16];
    registers[Register::RDI.number()] = Holds::Out;
    registers[Register::RSI.number()] = Holds::Handle;
    let mut ways = vec![(entry, registers)];
    let mut been: BTreeSet<(u64, Registers)> = BTreeSet::new();
    let mut given: BTreeSet<u32> = BTreeSet::new();
    while let Some((at, mut registers)) = ways.pop() {
        if been.len() >= INSTRUCTIONS || !been.insert((at, registers)) {
            continue;
        }
        let Some(bytes) = code(at) else { continue };
        let instruction = Decoder::with_ip(64, &bytes, at, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            continue;
        }
        if let Some(offset) = gives(&instruction, &registers) {
            given.insert(offset);
            continue;
        }
        let is_slot = instruction.is_ip_rel_memory_operand();
        let slot = || pointer(instruction.ip_rel_memory_address()).filter(|_| is_slot);
        match instruction.flow_control() {
            FlowControl::Next => {
                take(&instruction, &mut registers);
                ways.push((instruction.next_ip(), registers));
            }
            FlowControl::UnconditionalBranch => ways.push((instruction.near_branch_target(), registers)),
            FlowControl::IndirectBranch => ways.extend(slot().map(|to| (to, registers))),
            FlowControl::ConditionalBranch => {
                ways.push((instruction.near_branch_target(), registers));
                ways.push((instruction.next_ip(), registers));
            }
            flow @ (FlowControl::Call | FlowControl::IndirectCall) => {
                let to = if flow == FlowControl::Call { Some(instruction.near_branch_target()) } else { slot() };
                let are_passed_on = registers[Register::RDI.number()] == Holds::Out
                    && registers[Register::RSI.number()] == Holds::Handle;
                ways.extend(to.filter(|_| are_passed_on).map(|to| (to, registers)));
                forget_across_call(&mut registers);
                ways.push((instruction.next_ip(), registers));
            }
            _ => {}
        }
    }
    // What was not looked at may say otherwise.
    let is_all = been.len() < INSTRUCTIONS;
    given.first().copied().filter(|_| is_all && given.len() == 1)
}

/// `mov [out], what was behind the handle`: its offset.
fn gives(instruction: &Instruction, registers: &Registers) -> Option<u32> {
    let is_store = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
        && instruction.op1_register().is_gpr64()
        && plain_memory(instruction, registers) == Some((Holds::Out, 0));
    match registers[instruction.op1_register().number()] {
        Holds::Behind(offset) if is_store => Some(offset),
        _ => None,
    }
}

/// What the base of a memory operand without an index holds, and its displacement.
fn plain_memory(instruction: &Instruction, registers: &Registers) -> Option<(Holds, u64)> {
    let base = instruction.memory_base();
    (base.is_gpr64() && instruction.memory_index() == Register::None)
        .then(|| (registers[base.number()], instruction.memory_displacement64()))
}

/// What the registers hold behind an instruction.
fn take(instruction: &Instruction, registers: &mut Registers) {
    let is_move = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_gpr64();
    let moved = match instruction.op1_kind() {
        OpKind::Register if is_move && instruction.op1_register().is_gpr64() => {
            registers[instruction.op1_register().number()]
        }
        OpKind::Memory if is_move => match plain_memory(instruction, registers) {
            Some((Holds::Handle, offset)) if offset < OFFSET_MAX => Holds::Behind(offset as u32),
            _ => Holds::Else,
        },
        _ => Holds::Else,
    };
    let mut factory = InstructionInfoFactory::new();
    for used in factory.info(instruction).used_registers() {
        let register = used.register().full_register();
        if register.is_gpr64() && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
            registers[register.number()] = Holds::Else;
        }
    }
    if is_move {
        registers[instruction.op0_register().number()] = moved;
    }
}

/// A function may change these (System V ABI for x86-64, "Register Usage").
fn forget_across_call(registers: &mut Registers) {
    use Register::{R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI};
    for register in [RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11] {
        registers[register.number()] = Holds::Else;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x1000;
    const SLOT: u64 = 0x2000;

    /// Of code at [`ENTRY`], and of a function at 0x1100 that [`SLOT`] holds.
    fn offset(entry: &[u8], further: &[u8]) -> Option<u32> {
        let code = |address: u64| {
            let (from, code) = if address < 0x1100 { (ENTRY, entry) } else { (0x1100, further) };
            let rest = code.get(usize::try_from(address.checked_sub(from)?).ok()?..).filter(|rest| !rest.is_empty())?;
            let mut bytes = [0xcc; INSTRUCTION];
            let len = rest.len().min(INSTRUCTION);
            bytes[..len].copy_from_slice(&rest[..len]);
            Some(bytes)
        };
        follow(ENTRY, code, |slot| (slot == SLOT).then_some(0x1100))
    }

    /// `mov r12, rsi; mov rbx, rdi`
    const KEEP: [u8; 6] = [0x49, 0x89, 0xf4, 0x48, 0x89, 0xfb];

    #[test]
    fn the_name_is_read_where_the_driver_reads_it() {
        // mov rax, [rsi + 0x10]; mov [rdi], rax; ret
        assert_eq!(offset(&[0x48, 0x8b, 0x46, 0x10, 0x48, 0x89, 0x07, 0xc3], &[]), Some(16));
        // Driver 550, behind a call that checks something: call 0x1100; mov rax, [r12 + 8]; mov [rbx], rax; ret
        let call = [0xe8, 0xf5, 0, 0, 0];
        let given = [0x49, 0x8b, 0x44, 0x24, 0x08, 0x48, 0x89, 0x03, 0xc3];
        assert_eq!(offset(&[&KEEP[..], &call, &given].concat(), &[0xc3]), Some(8));
    }

    #[test]
    fn a_trampoline_leads_to_the_function() {
        // cmp dword [rip + …], imm; je to a ret; jmp [SLOT]; ret
        let trampoline = [0x81, 0x3d, 0, 0, 0, 0, 0, 0xba, 0x1c, 0x32, 0x74, 0x06, 0xff, 0x25, 0xee, 0x0f, 0, 0, 0xc3];
        assert_eq!(offset(&trampoline, &[0x48, 0x8b, 0x46, 0x18, 0x48, 0x89, 0x07, 0xc3]), Some(24));
    }

    #[test]
    fn only_the_arguments_own_memory_counts() {
        // mov rax, [rsp + 8]; mov [rdi], rax; ret: a local variable
        assert_eq!(offset(&[0x48, 0x8b, 0x44, 0x24, 0x08, 0x48, 0x89, 0x07, 0xc3], &[]), None);
        // call 0x1100; mov rax, [rsi + 8]; mov [rdi], rax; ret: what the call left in them
        let call = [0xe8, 0xfb, 0, 0, 0, 0x48, 0x8b, 0x46, 0x08, 0x48, 0x89, 0x07, 0xc3];
        assert_eq!(offset(&call, &[0xc3]), None);
        // mov rax, [rsi + 8]; xor eax, eax; mov [rdi], rax; ret
        assert_eq!(offset(&[0x48, 0x8b, 0x46, 0x08, 0x31, 0xc0, 0x48, 0x89, 0x07, 0xc3], &[]), None);
        // mov rax, [rsi + 8]; mov [rdi + 8], rax; ret
        assert_eq!(offset(&[0x48, 0x8b, 0x46, 0x08, 0x48, 0x89, 0x47, 0x08, 0xc3], &[]), None);
        // mov eax, [rsi + 8]; mov [rdi], eax; ret: four bytes are no address
        assert_eq!(offset(&[0x8b, 0x46, 0x08, 0x89, 0x07, 0xc3], &[]), None);
    }

    #[test]
    fn two_offsets_are_none() {
        // test rsi, rsi; je to the second half; mov rax, [rsi + 8]; mov [rdi], rax; ret; the same with 0x10
        let code = [0x48, 0x85, 0xf6, 0x74, 0x08, 0x48, 0x8b, 0x46, 0x08, 0x48, 0x89, 0x07, 0xc3];
        let other = [0x48, 0x8b, 0x46, 0x10, 0x48, 0x89, 0x07, 0xc3];
        assert_eq!(offset(&[&code[..], &other].concat(), &[]), None);
    }

    #[test]
    fn endless_and_damaged_code_ends() {
        // jmp to itself
        assert_eq!(offset(&[0xeb, 0xfe], &[]), None);
        assert_eq!(offset(&[], &[]), None);
        assert_eq!(offset(&[0x06], &[]), None, "no instruction of 64-bit code");
    }

    #[test]
    fn what_is_no_driver_says_nothing() {
        assert_eq!(names_at(Path::new("/proc/self/exe")), NamesAt { offset: 8, known_by: None });
        assert_eq!(names_at(Path::new("/nowhere")), NamesAt::default());
    }
}
