//! Chooses the instruction at the start of a function that a probe costs least on.
//!
//! Enters: the function's first bytes (x86-64). Leaves: how far behind its entry the instruction lies ([`quickest`]; [`untouched`] where the
//! arguments are to be read there). A uprobe replaces an instruction
//! by a trap. The kernel carries some instructions out itself; any other it must step over, which is a second trap (measured on
//! the development machine, `time.time` in a loop: 1.2 µs instead of 12.4 µs a call). Only instructions that every call of the
//! function passes are looked at: those before the first jump. Refused: bytes that do not decode; the entry is right in any case.

use std::fmt;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

/// Instructions that are looked at.
const INSTRUCTIONS: usize = 8;
/// The longest x86-64 instruction has 15 bytes.
pub(super) const BYTES: usize = INSTRUCTIONS * 15;

/// Where a probe of the entry costs least; the entry where nothing is quicker.
pub(super) fn quickest(code: &[u8]) -> Place {
    first(code, |instruction| instruction.flow_control() == FlowControl::Next)
}

/// The first instruction that is emulated, where nothing stands before it but what `may_precede`; the entry where there is none.
fn first(code: &[u8], may_precede: impl Fn(&Instruction) -> bool) -> Place {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut before = Vec::new();
    while before.len() < INSTRUCTIONS && decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let it = instruction.mnemonic();
        if is_emulated(&instruction) {
            return Place { at: instruction.ip(), is_emulated: true, why: Why::Emulated { it, before } };
        }
        before.push(it);
        if !may_precede(&instruction) {
            break;
        }
    }
    Place { at: 0, is_emulated: false, why: Why::Entry { seen: before } }
}

/// Where a probe of a function lies, and what it costs there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Bytes behind the entry.
    pub at: u64,
    /// The kernel carries the instruction out itself; else it must step over it.
    pub is_emulated: bool,
    pub why: Why,
}

/// Why a place was chosen, by the instructions that were found; shown to a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// `it` is emulated, and those `before` it, which every call passes as well, are not.
    Emulated { it: Mnemonic, before: Vec<Mnemonic> },
    /// None of those that were `seen` is emulated; behind the last of them arguments may be gone, or not every call comes there.
    Entry { seen: Vec<Mnemonic> },
}

impl Default for Why {
    fn default() -> Self {
        Self::Entry { seen: Vec::new() }
    }
}

/// Places among a function's instructions.
const ORDINALS: [&str; INSTRUCTIONS] = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |mnemonic: &Mnemonic| format!("{mnemonic:?}").to_lowercase();
        let words = |all: &[Mnemonic]| all.iter().map(word).collect::<Vec<_>>().join("; ");
        match self {
            Self::Emulated { it, before } if before.is_empty() => write!(f, "the first instruction is {}", word(it)),
            Self::Emulated { it, before } => {
                let ordinal = ORDINALS.get(before.len()).unwrap_or(&"next");
                write!(f, "the {ordinal} instruction is {}, behind {}", word(it), words(before))
            }
            Self::Entry { seen } if seen.is_empty() => f.write_str("the entry: its bytes are no instruction"),
            Self::Entry { seen } => write!(f, "the entry: it begins with {}, which must be stepped over", words(seen)),
        }
    }
}

/// The first instruction that is emulated and that nothing stands before but comparisons, so that registers and stack are as the caller left
/// them; the entry where there is none. (CUDA drivers up to about R570: `cmp; je`, the second; later ones: `push`, the first.)
pub(super) fn untouched(code: &[u8]) -> Place {
    // They write flags and nothing else.
    let is_harmless = |instruction: &Instruction| {
        matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Nop | Mnemonic::Endbr64)
    };
    first(code, is_harmless)
}

/// What `arch_uprobe_analyze_insn` (arch/x86/kernel/uprobes.c, since Linux 4.20) hands to `push_emulate_op` and
/// `branch_emulate_op`: a push of a register, a jump or a call to a fixed place, a one-byte nop.
fn is_emulated(instruction: &Instruction) -> bool {
    match instruction.code() {
        // One byte, or two with the prefix that names r8 to r15.
        Code::Push_r64 => instruction.len() <= 2,
        Code::Nopd => instruction.len() == 1,
        Code::Call_rel32_64 | Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => true,
        code => code.is_jcc_short_or_near(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_push_is_taken() {
        let quickest = |code: &[u8]| quickest(code).at;
        // push r15; push rbx
        assert_eq!(quickest(&[0x41, 0x57, 0x53]), 0);
        // endbr64; push rbp
        assert_eq!(quickest(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55]), 4);
    }

    #[test]
    fn a_call_behind_other_instructions_is_taken() {
        let quickest = |code: &[u8]| quickest(code).at;
        // time_time of CPython 3.11: sub rsp, 0x18; xor esi, esi; lea rdi, [rsp + 8]; call …
        let code = [0x48, 0x83, 0xec, 0x18, 0x31, 0xf6, 0x48, 0x8d, 0x7c, 0x24, 0x08, 0xe8, 0, 0, 0, 0];
        assert_eq!(quickest(&code), 11);
    }

    #[test]
    fn nothing_behind_a_jump_is_taken() {
        let quickest = |code: &[u8]| quickest(code).at;
        // sub rsp, 0x18; jmp rax; push rbx
        assert_eq!(quickest(&[0x48, 0x83, 0xec, 0x18, 0xff, 0xe0, 0x53]), 0);
        // sub rsp, 0x18; je …: the jump itself is passed by every call
        assert_eq!(quickest(&[0x48, 0x83, 0xec, 0x18, 0x74, 0x05]), 4);
    }

    #[test]
    fn arguments_are_read_where_only_comparisons_stand_before() {
        let place = |code: &[u8]| {
            let Place { at, is_emulated, why } = untouched(code);
            (at, is_emulated, why.to_string())
        };
        let expected = |at, is_emulated, why: &str| (at, is_emulated, why.to_owned());
        // libcuda 550: cmp dword [rip+…], 0x321cba00; je; jmp [slot]
        let trampoline = [0x81, 0x3d, 0, 0, 0, 0, 0x00, 0xba, 0x1c, 0x32, 0x74, 0x0c, 0xff, 0x25, 0, 0, 0, 0];
        assert_eq!(place(&trampoline), expected(10, true, "the second instruction is je, behind cmp"));
        // R575 and later: push rbp; mov rbp, rsp; push r12; sub rsp, 0x18
        let frame = [0x55, 0x48, 0x89, 0xe5, 0x41, 0x54, 0x48, 0x83, 0xec, 0x18];
        assert_eq!(place(&frame), expected(0, true, "the first instruction is push"));
        // endbr64; push rbp
        let marked = place(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55]);
        assert_eq!(marked, expected(4, true, "the second instruction is push, behind endbr64"));
        // sub rsp, 0x18; push rbx: the stack has moved
        let stepped = |first| format!("the entry: it begins with {first}, which must be stepped over");
        assert_eq!(place(&[0x48, 0x83, 0xec, 0x18, 0x53]), expected(0, false, &stepped("sub")));
        // mov edi, 1; call: an argument is gone
        assert_eq!(place(&[0xbf, 1, 0, 0, 0, 0xe8, 0, 0, 0, 0]), expected(0, false, &stepped("mov")));
        assert_eq!(place(&[]), expected(0, false, "the entry: its bytes are no instruction"));
    }

    #[test]
    fn the_entry_is_taken_where_nothing_is_quicker() {
        let quickest = |code: &[u8]| {
            let Place { at, is_emulated, .. } = quickest(code);
            (at, is_emulated)
        };
        let entry = (0, false);
        assert_eq!(quickest(&[]), entry);
        assert_eq!(quickest(&[0x48]), entry, "cut");
        // xor eax, eax; ret
        assert_eq!(quickest(&[0x31, 0xc0, 0xc3]), entry);
        // push 0x10 is no push of a register
        assert_eq!(quickest(&[0x6a, 0x10, 0xc3]), entry);
    }
}
