//! The function that registers kernels, in a file that says no names: the runtime is linked in, and stripped.
//!
//! Enters: an [`Image`]. Leaves: an address. A registration is `(module, code, text, text, -1, 0, 0, 0, 0, 0)`: no other function of the
//! runtime or of a library is called in that way thousands of times (cublasLt: 16,167 calls, and 1,668 of the next, which registers
//! variables and so passes no code). The function that most calls of this shape lead to is the one, if the text is a name.

use std::collections::HashMap;

use crate::elf::image::Code;
use crate::elf::source::Window;
use crate::elf::{Image, Source};

use super::calls::{self, Call, To};
use super::operand::{FOURTH, Reader, SECOND, THIRD, Value};
use super::scan::{ScanError, is_name};

/// Bytes before the call in which all its arguments are set.
const NEAR: usize = 96;
/// Functions that are counted.
const FUNCTIONS_MAX: usize = 1 << 16;
/// How many of the most called are looked at.
const CANDIDATES: usize = 8;
/// Names of a function's calls that must all be names.
const NAMES: usize = 4;
/// Longest text that is taken for a name, bytes.
const NAME_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
struct Votes {
    calls: u64,
    /// Addresses of the first calls' texts.
    names: Vec<u64>,
}

pub(super) fn register<S: Source + ?Sized>(image: &Image<'_, S>, code: &[Code]) -> Result<Option<u64>, ScanError> {
    let mut reader = Reader::new(image.is_fixed());
    let mut votes: HashMap<u64, Votes> = HashMap::new();
    calls::each_call(image, code, |call| {
        let To::Code(function) = call.to else { return };
        let near = &call.before[call.before.len().saturating_sub(NEAR)..];
        if call.is_jump || !passes_minus_one(near) || !passes_zeros(near) {
            return;
        }
        let Some(name) = code_and_text(image, &mut reader, &call) else { return };
        if votes.len() >= FUNCTIONS_MAX && !votes.contains_key(&function) {
            return;
        }
        let votes = votes.entry(function).or_default();
        votes.calls += 1;
        if votes.names.len() < NAMES {
            votes.names.push(name);
        }
    })?;
    let mut candidates: Vec<(u64, Votes)> =
        votes.into_iter().filter(|(function, _)| image.is_code(*function)).collect();
    candidates.sort_by_key(|(function, votes)| (std::cmp::Reverse(votes.calls), *function));
    let mut window = Window::new(image.source());
    for (function, votes) in candidates.into_iter().take(CANDIDATES) {
        let mut named = true;
        for name in votes.names {
            let Some(offset) = image.offset(name) else { continue };
            named &= window.text(offset, NAME_MAX)?.is_some_and(is_identifier);
        }
        if named {
            return Ok(Some(function));
        }
    }
    Ok(None)
}

/// Four zeros on the stack, or one in the sixth argument: where the shared memory and thread limits go.
fn passes_zeros(near: &[u8]) -> bool {
    // push 0; xor r9d, r9d
    near.windows(2).filter(|bytes| bytes == &[0x6A, 0]).count() >= 4 || near.windows(3).any(|b| b == [0x45, 0x31, 0xC9])
}

/// The fifth argument is -1: no limit of threads.
fn passes_minus_one(near: &[u8]) -> bool {
    memchr::memchr_iter(0xFF, near).any(|at| {
        // mov r8d, -1; mov r8, -1; or r8d, -1
        let (before, after) = near.split_at(at);
        let is_long = after.starts_with(&[0xFF; 4]);
        (is_long && (before.ends_with(&[0x41, 0xB8]) || before.ends_with(&[0x49, 0xC7, 0xC0])))
            || before.ends_with(&[0x41, 0x83, 0xC8])
    })
}

/// The address of the text, where the second argument is code, and the third and fourth are the same text.
fn code_and_text<S: Source + ?Sized>(image: &Image<'_, S>, reader: &mut Reader, call: &Call<'_>) -> Option<u64> {
    let mut address = |argument| match reader.read(call.before, call.at, argument)?.value {
        Value::Address(address) => Some(address),
        Value::At(at) => image.pointer(at),
    };
    if !image.is_code(address(SECOND)?) {
        return None;
    }
    address(THIRD).filter(|&text| address(FOURTH) == Some(text))
}

fn is_identifier(text: &[u8]) -> bool {
    is_name(text) && text.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"_$.".contains(&byte) || byte >= 0x80)
}
