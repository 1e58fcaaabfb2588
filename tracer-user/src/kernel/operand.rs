//! What a register holds when a call is reached, read from the instructions before it.
//!
//! Enters: the bytes that end where the call begins. Leaves: an address, or a place that holds one. The last instruction that loads the
//! register is found by its bytes, then everything from there to the call is decoded: it must come out at the call, and nothing on the way
//! may write the register, jump away, or call where a call does not leave the register alone. A copy is followed to its source. So a
//! register that is passed on, or set on another path, gives nothing.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register};

/// Bytes before a call that are looked at. In a launch with many arguments 110 lie between a load and its call.
pub const LOOKBACK: usize = 256;
/// Instructions that are decoded for one file. libtorch takes 0.9 million; code that is made to be slow could take hours.
const INSTRUCTIONS_MAX: u64 = 100_000_000;
/// Registers that a value is followed through: unoptimised code takes two.
const COPIES: usize = 3;

/// A 64-bit register, by its number in the instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument(u8);

/// The first four integer arguments of the System V calling convention.
pub const FIRST: Argument = Argument(7);
pub const SECOND: Argument = Argument(6);
pub const THIRD: Argument = Argument(2);
pub const FOURTH: Argument = Argument(1);

impl Argument {
    fn register(self) -> Register {
        // rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15: the order of their numbers, in iced's list too.
        Register::RAX + u32::from(self.0)
    }

    /// Whether a function that is called leaves it as it was: rbx, rbp, r12 to r15.
    fn outlives_calls(self) -> bool {
        matches!(self.0, 3 | 5 | 12..=15)
    }

    /// The number's lower bits, which go into the ModRM byte, and its upper one, which goes into the prefix.
    fn bits(self) -> (u8, u8) {
        (self.0 & 7, self.0 >> 3)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The address itself.
    Address(u64),
    /// What stands at this address.
    At(u64),
}

/// A value, and how far before the call it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    pub value: Value,
    /// Bytes from the load to the call.
    pub distance: usize,
}

/// What an instruction puts into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Value(Value),
    /// What another register holds.
    Copy(Argument),
}

/// Reads registers at calls. Reused, since what it decodes into is.
#[derive(Debug)]
pub struct Reader {
    information: InstructionInfoFactory,
    /// Addresses may stand in the code as they are (a file that is not position-independent).
    is_fixed: bool,
    /// Instructions that may still be decoded; with none left, nothing is read.
    left: u64,
}

impl Reader {
    pub fn new(is_fixed: bool) -> Self {
        Self { information: InstructionInfoFactory::new(), is_fixed, left: INSTRUCTIONS_MAX }
    }

    /// What the register holds at the call at `address`, whose `before` are the bytes ahead of it.
    pub fn read(&mut self, before: &[u8], address: u64, argument: Argument) -> Option<Operand> {
        self.follow(before, address, argument, COPIES)
    }

    /// Of an instruction with a prefix its later bytes are one, too, that copies what nothing loads; so a copy that leads nowhere is passed
    /// over. A load before a true copy is refused for that copy's sake.
    fn follow(&mut self, before: &[u8], address: u64, argument: Argument, copies: usize) -> Option<Operand> {
        (0..before.len()).rev().find_map(|at| {
            let distance = before.len() - at;
            let start = address.wrapping_sub(distance as u64);
            let load = load(&before[at..], start, argument, self.is_fixed)?;
            if !self.reaches(&before[at..], argument) {
                return None;
            }
            match load {
                Load::Value(value) => Some(Operand { value, distance }),
                Load::Copy(from) if copies > 0 => {
                    let operand = self.follow(&before[..at], start, from, copies - 1)?;
                    Some(Operand { distance: operand.distance + distance, ..operand })
                }
                Load::Copy(_) => None,
            }
        })
    }

    /// Whether these instructions run one after the other to their end, and only the first of them writes the register.
    fn reaches(&mut self, code: &[u8], argument: Argument) -> bool {
        let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
        let (mut instruction, mut is_first) = (Instruction::default(), true);
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() || self.left == 0 {
                return false;
            }
            self.left -= 1;
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::ConditionalBranch => {}
                FlowControl::Call | FlowControl::IndirectCall if argument.outlives_calls() => {}
                _ => return false,
            }
            if !is_first && self.writes(&instruction, argument) {
                return false;
            }
            is_first = false;
        }
        !is_first
    }

    fn writes(&mut self, instruction: &Instruction, argument: Argument) -> bool {
        let register = argument.register();
        self.information.info(instruction).used_registers().iter().any(|used| {
            used.register().full_register() == register
                && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
        })
    }
}

/// What the instruction at the start of `code` loads into the register, if it is such.
fn load(code: &[u8], address: u64, into: Argument, is_fixed: bool) -> Option<Load> {
    let (low, high) = into.bits();
    match *code {
        // lea r64, [rip + 32 bits]; mov r64, [rip + 32 bits]
        [prefix, operation @ (0x8D | 0x8B), modrm, a, b, c, d, ..]
            if prefix == 0x48 | high << 2 && modrm == 0x05 | low << 3 =>
        {
            let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
            let place = address.wrapping_add(7).wrapping_add_signed(distance);
            Some(Load::Value(if operation == 0x8D { Value::Address(place) } else { Value::At(place) }))
        }
        // mov r64, r64
        [prefix, 0x89, modrm, ..] if prefix & 0xFB == 0x48 | high && modrm & 0xC7 == 0xC0 | low => {
            Some(Load::Copy(Argument(modrm >> 3 & 7 | (prefix & 4) << 1)))
        }
        [prefix, 0x8B, modrm, ..] if prefix & 0xFE == 0x48 | high << 2 && modrm & 0xF8 == 0xC0 | low << 3 => {
            Some(Load::Copy(Argument(modrm & 7 | (prefix & 1) << 3)))
        }
        _ if is_fixed => load_fixed(code, into),
        _ => None,
    }
}

/// The same where addresses are numbers of 32 bits.
fn load_fixed(code: &[u8], into: Argument) -> Option<Load> {
    let (low, high) = into.bits();
    let address = |bytes: [u8; 4]| Some(Load::Value(Value::Address(u64::from(u32::from_le_bytes(bytes)))));
    match *code {
        // mov r32, imm32, which clears the upper half; with a prefix from r8 on.
        [operation, a, b, c, d, ..] if high == 0 && operation == 0xB8 | low => address([a, b, c, d]),
        [0x41, operation, a, b, c, d, ..] if high == 1 && operation == 0xB8 | low => address([a, b, c, d]),
        // mov r64, imm32, sign-extended.
        [prefix, 0xC7, modrm, a, b, c, d, ..] if prefix == 0x48 | high && modrm == 0xC0 | low => address([a, b, c, d]),
        // mov r32, r32
        [0x89, modrm, ..] if high == 0 && modrm & 0xC7 == 0xC0 | low => Some(Load::Copy(Argument(modrm >> 3 & 7))),
        [prefix @ (0x41 | 0x44 | 0x45), 0x89, modrm, ..] if prefix & 1 == high && modrm & 0xC7 == 0xC0 | low => {
            Some(Load::Copy(Argument(modrm >> 3 & 7 | (prefix & 4) << 1)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The call is at 0x1000.
    fn read(code: &[u8], argument: Argument) -> Option<Value> {
        Reader::new(false).read(code, 0x1000, argument).map(|operand| operand.value)
    }

    /// lea rsi, [rip + 0x10]
    const LEA_RSI: [u8; 7] = [0x48, 0x8D, 0x35, 0x10, 0, 0, 0];

    #[test]
    fn every_way_to_load_an_address_is_read() {
        assert_eq!(read(&LEA_RSI, SECOND), Some(Value::Address(0x1010)));
        // mov rdi, [rip - 0x10]
        assert_eq!(read(&[0x48, 0x8B, 0x3D, 0xF0, 0xFF, 0xFF, 0xFF], FIRST), Some(Value::At(0xFF0)));
        // lea rax, [rip + 0x10]; mov rdx, rax
        let through_rax = [0x48, 0x8D, 0x05, 0x10, 0, 0, 0, 0x48, 0x89, 0xC2];
        assert_eq!(read(&through_rax, THIRD), Some(Value::Address(0x100D)));
        // lea r13, [rip + 0x10]; call; mov rdi, r13
        let through_r13 = [0x4C, 0x8D, 0x2D, 0x10, 0, 0, 0, 0xE8, 0, 0, 0, 0, 0x4C, 0x89, 0xEF];
        assert_eq!(read(&through_r13, FIRST), Some(Value::Address(0x1008)));
        // The same in the other encoding: mov rdi, r13
        let other = [0x4C, 0x8D, 0x2D, 0x10, 0, 0, 0, 0x49, 0x8B, 0xFD];
        assert_eq!(read(&other, FIRST), Some(Value::Address(0x100D)));
        // lea rax, [rip + 0x10]; call; mov rdx, rax
        let result = [0x48, 0x8D, 0x05, 0x10, 0, 0, 0, 0xE8, 0, 0, 0, 0, 0x48, 0x89, 0xC2];
        assert_eq!(read(&result, THIRD), None, "what a call returns");
        // mov ecx, 0x401000
        let absolute = [0xB9, 0x00, 0x10, 0x40, 0x00];
        assert_eq!(read(&absolute, FOURTH), None, "in a position-independent file it is a number");
        let fixed = Reader::new(true).read(&absolute, 0x1000, FOURTH).map(|operand| operand.value);
        assert_eq!(fixed, Some(Value::Address(0x40_1000)));
    }

    #[test]
    fn the_last_load_counts_and_pushes_between_do_not_matter() {
        let mut code = LEA_RSI.to_vec();
        code.extend([0x48, 0x8D, 0x35, 0x40, 0, 0, 0]);
        // push 0; push 0; xor r9d, r9d
        code.extend([0x6A, 0, 0x6A, 0, 0x45, 0x31, 0xC9]);
        assert_eq!(read(&code, SECOND), Some(Value::Address(0x1000 - 7 + 0x40)));
    }

    #[test]
    fn a_register_that_is_written_called_or_jumped_over_is_not_known() {
        for (what, after) in [
            ("mov rsi, rbx", &[0x48, 0x89, 0xDE][..]),
            ("xor esi, esi", &[0x31, 0xF6]),
            ("call", &[0xE8, 0, 0, 0, 0]),
            ("jmp", &[0xEB, 0]),
            ("ret", &[0xC3]),
            ("half an instruction", &[0x48]),
        ] {
            assert_eq!(read(&[&LEA_RSI, after].concat(), SECOND), None, "{what}");
        }
        // mov rsi, rbx ahead of it; a conditional jump behind it.
        assert!(read(&[&[0x48, 0x89, 0xDE][..], &LEA_RSI, &[0x74, 0x00]].concat(), SECOND).is_some());
    }

    #[test]
    fn nothing_is_read_from_no_code() {
        for argument in [FIRST, SECOND, THIRD, FOURTH] {
            assert_eq!(read(&[], argument), None);
            assert_eq!(read(&LEA_RSI[1..], argument), None);
        }
        // At an address where no code can be: the arithmetic wraps.
        assert!(Reader::new(true).read(&LEA_RSI, 0, SECOND).is_some());
    }
}
