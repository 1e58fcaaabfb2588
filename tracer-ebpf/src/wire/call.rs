//! Calls of probed functions in the libraries of a server.

use super::header::Header;

/// A probed function was called ([`Call`]).
pub const KIND_CALL: u32 = 32;

/// The cookie of the `index`th probed point of a library.
pub const fn cookie(index: u32, function: u32) -> u64 {
    (index as u64) << 32 | function as u64
}

/// The function of a [`cookie`].
pub const fn cookie_function(cookie: u64) -> u32 {
    cookie as u32
}

/// [`Call::function`]: the tokenizer's `encode`, `encode_batch`, `encode_batch_fast`, timed. 2 was `DecodeStream.step`.
pub const FUNCTION_ENCODE: u32 = 1;
/// msgspec's `msgpack.Decoder.decode`, at its entry: a front end gets to a message of an engine.
pub const FUNCTION_DECODE: u32 = 3;
/// Python's `time.time`, at its entry.
pub const FUNCTION_CLOCK: u32 = 4;

/// One call: of a timed function when it returns, of the others when it is entered.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub header: Header,
    /// When the call was entered, on the header's clock.
    pub entered: u64,
    /// `FUNCTION_*`.
    pub function: u32,
    /// Of one whose entry alone is seen: the stack pointer there, its lower half. The same place of a program calls with the same one.
    pub stack: u32,
}

const _: () = assert!(size_of::<Call>() == 40);
