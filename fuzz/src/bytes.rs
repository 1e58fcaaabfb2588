//! Numbers and pieces out of a fuzzer's bytes.
//!
//! Enters: bytes. Leaves: numbers, of which the extreme ones come often; zeros once the bytes are used up, so that whoever asks until
//! [`Bytes::is_over`] ends.

/// What is left of an input.
#[derive(Debug, Clone)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// Below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end
    }

    pub fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// One byte chooses: small, large, at an edge, or any.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            small @ 0..=199 => u64::from(small),
            200..=219 => u64::from(self.u16()),
            220 => u64::MAX,
            221 => u64::MAX - 1,
            222 => i64::MAX as u64,
            223 => i64::MAX as u64 + 1,
            224 => u64::from(u32::MAX),
            225 => u64::from(u32::MAX) + 1,
            226 => u64::MAX / 2,
            227..=239 => u64::from(self.u32()),
            _ => self.u64(),
        }
    }

    /// Seconds of an engine's clock: near `near` mostly, else anything that an `f64` can be.
    pub fn seconds(&mut self, near: u64) -> f64 {
        match self.u8() {
            small @ 0..=199 => near as f64 / 1e9 + f64::from(small) / 1e3 - 0.1,
            200 => f64::NAN,
            201 => f64::INFINITY,
            202 => f64::NEG_INFINITY,
            203 => f64::MAX,
            204 => -0.0,
            205 => 1.8e10,
            206 => -1.8e10,
            207 => 9.3e9,
            208 => f64::MIN_POSITIVE,
            _ => f64::from_bits(self.u64()),
        }
    }

    /// Up to `max` bytes.
    pub fn piece(&mut self, max: usize) -> &'a [u8] {
        let len = usize::from(self.u16()).min(max).min(self.0.len());
        let (piece, rest) = self.0.split_at(len);
        self.0 = rest;
        piece
    }

    /// The length is one byte.
    pub fn short(&mut self) -> &'a [u8] {
        let len = usize::from(self.u8()).min(self.0.len());
        let (piece, rest) = self.0.split_at(len);
        self.0 = rest;
        piece
    }
}
