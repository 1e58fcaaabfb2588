//! What a CUDA library's functions start with, and where Inferspan probes them.
//!
//! Enters: a library's file. Leaves: for each probe point the first bytes, the instructions, the chosen one. The points are the product's
//! own (`inferspan::attach::family`), so that the report tells what it would do.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use iced_x86::{Decoder, DecoderOptions};
use inferspan::attach::exports::Exports;
use inferspan::attach::family::{ENTERED, Family, Find, Point};
use serde::{Deserialize, Serialize};

/// Bytes that are kept of a function.
const BYTES: usize = 32;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_told_until_the_bytes_end() {
        assert_eq!(instructions(&[0x55, 0x48, 0x89, 0xe5, 0x81]), ["+0 Push_r64", "+1 Mov_rm64_r64"]);
    }
}
