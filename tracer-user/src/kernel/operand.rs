//! What a register holds when a call is reached, read from the instructions before it.
//!
//! Enters: the bytes that end where the call begins. Leaves: an address, or a place that holds one. The last instruction that loads the
//! register is found by its bytes, then everything from there to the call is decoded: it must come out at the call, and nothing on the way
//! may write the register, call or jump away. So a register that is passed on, or set on another path, gives nothing.

use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, Register};

/// Bytes before a call that are looked at. The longest seen between a load and its call is 100, in a launch with many arguments.
pub const LOOKBACK: usize = 128;

/// An argument's register, by its number in the instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument(u8);

/// The first four integer arguments of the System V calling convention.
pub const FIRST: Argument = Argument(7);
pub const SECOND: Argument = Argument(6);
pub const THIRD: Argument = Argument(2);
pub const FOURTH: Argument = Argument(1);

impl Argument {
    fn register(self) -> Register {
        // rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi: the order of their numbers, in iced's list too.
        Register::RAX + u32::from(self.0)
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

/// Reads registers at calls. Reused, since what it decodes into is.
#[derive(Debug)]
pub struct Reader {
    information: InstructionInfoFactory,
    /// Addresses may stand in the code as they are (a file that is not position-independent).
    is_fixed: bool,
}

impl Reader {
    pub fn new(is_fixed: bool) -> Self {
        Self { information: InstructionInfoFactory::new(), is_fixed }
    }

    /// What the register holds at the call at `address`, whose `before` are the bytes ahead of it.
    pub fn read(&mut self, before: &[u8], address: u64, argument: Argument) -> Option<Operand> {
        for at in (0..before.len()).rev() {
            let Some(value) =
                load(&before[at..], address.wrapping_sub((before.len() - at) as u64), argument, self.is_fixed)
            else {
                continue;
            };
            if self.reaches(&before[at..], argument) {
                return Some(Operand { value, distance: before.len() - at });
            }
        }
        None
    }

    /// Whether these instructions run one after the other to their end, and only the first few bytes, the load, write the register.
    fn reaches(&mut self, code: &[u8], argument: Argument) -> bool {
        let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
        let register = argument.register();
        let mut is_loaded = false;
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                return false;
            }
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::ConditionalBranch => {}
                _ => return false,
            }
            let writes = self.information.info(&instruction).used_registers().iter().any(|used| {
                used.register().full_register() == register
                    && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
            });
            // The load is one instruction, or two where it goes through rax.
            let is_load = !is_loaded;
            if writes && !is_load {
                return false;
            }
            is_loaded |= writes;
        }
        is_loaded
    }
}

/// The value that the instructions at the start of `code` load into the register, if they are such.
fn load(code: &[u8], address: u64, argument: Argument, is_fixed: bool) -> Option<Value> {
    let Argument(number) = argument;
    // REX.W and the operation; the ModRM byte of [rip + 32 bits].
    let relative = |code: &[u8], number: u8| match code {
        [0x48, operation @ (0x8D | 0x8B), modrm, a, b, c, d, ..] if *modrm == 0x05 | number << 3 => {
            let distance = i64::from(i32::from_le_bytes([*a, *b, *c, *d]));
            let place = address.wrapping_add(7).wrapping_add_signed(distance);
            Some(if *operation == 0x8D { Value::Address(place) } else { Value::At(place) })
        }
        _ => None,
    };
    if let Some(value) = relative(code, number) {
        return Some(value);
    }
    // Without optimisation: into rax, and from there.
    let through_rax = [0x48, 0x89, 0xC0 | number];
    if number != 0 && code.get(7..10) == Some(&through_rax) {
        return relative(code, 0);
    }
    match code {
        // mov r32, imm32, which clears the upper half.
        [operation, a, b, c, d, ..] if is_fixed && *operation == 0xB8 | number => {
            Some(Value::Address(u64::from(u32::from_le_bytes([*a, *b, *c, *d]))))
        }
        // mov r64, imm32, sign-extended.
        [0x48, 0xC7, modrm, a, b, c, d, ..] if is_fixed && *modrm == 0xC0 | number => {
            Some(Value::Address(i64::from(i32::from_le_bytes([*a, *b, *c, *d])) as u64))
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
