//! ELF files as they will lie in memory: segments, dynamic relocations, symbols.
//!
//! Enters: bytes, a few at a time, from a [`Source`]. Leaves: addresses, and what stands at them. Pure: whoever opened the file reads it.
//! Invariants: a file is a target's, so nothing it says is believed without a check; no more of it is held than was asked for, so a
//! library of a gigabyte takes megabytes; counts and sizes have caps. Refused: what is no 64-bit little-endian ELF file with segments.

pub mod image;
pub mod relocation;
pub mod source;
pub mod symbols;

pub use image::{Image, Machine};
pub use source::Source;

/// Why a file cannot be read as an ELF file.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    #[error("it is not an ELF file")]
    NotElf,
    #[error("it is not a 64-bit little-endian ELF file")]
    NotElf64,
    #[error("its {what} is damaged")]
    Damaged { what: &'static str },
    #[error("it cannot be read")]
    Read(#[from] std::io::Error),
}
