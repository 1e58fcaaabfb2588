//! Calls of the tokenizer library.

use super::header::Header;

/// A probed function returned ([`Call`]).
pub const KIND_CALL: u32 = 32;

/// `encode`, `encode_batch`, `encode_batch_fast`; the cookie of the probe and [`Call::function`].
pub const FUNCTION_ENCODE: u32 = 1;
/// `DecodeStream.step`.
pub const FUNCTION_DECODE_STEP: u32 = 2;

/// One call, emitted when it returns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub header: Header,
    /// When the call was entered, on the header's clock.
    pub entered: u64,
    /// `FUNCTION_*`.
    pub function: u32,
    pub pad: u32,
}

const _: () = assert!(size_of::<Call>() == 40);
