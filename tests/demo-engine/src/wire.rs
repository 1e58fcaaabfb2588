//! The msgpack messages between the API server and the engine, in vLLM 0.32's layout.
//!
//! Enters: requests and outputs as Rust values, or frames. Leaves: the other of the two. What is written is byte for byte what
//! msgspec writes: numbers in their shortest form, floats as f64. [`request`] goes to the engine: `EngineCoreRequest` (an
//! array of 22), ABORT, UTILITY; [`outputs`] comes from it: `EngineCoreOutputs` (an array of 9) with `EngineCoreOutput` (18)
//! and the scheduler's statistics, and its READY. What does not decode is an error: both ends are ours.

mod outputs;
mod request;

use rmpv::Value;

pub use self::outputs::{Output, Outputs, Prefill, PrefixStats, Stats, encode_ready};
pub use self::request::{Add, Sampling, decode_abort, decode_utility, encode_abort, encode_utility};

/// Request types, the first frame of a message on the input socket.
pub const ADD: u8 = 0;
pub const ABORT: u8 = 1;
pub const UTILITY: u8 = 3;

/// vLLM's `FinishReason`.
pub const STOP: u8 = 0;
pub const LENGTH: u8 = 1;
pub const ERROR: u8 = 3;

/// vLLM's `EngineCoreEventType`.
pub const QUEUED: u8 = 1;
pub const SCHEDULED: u8 = 2;
pub const PREEMPTED: u8 = 3;

/// What rmpv may spend on nesting, two for each level; deeper than any message of ours.
const MAX_DEPTH: usize = 64;

/// A message that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("a message between API server and engine does not decode: {0}")]
pub struct Malformed(pub &'static str);

/// Appends `value`.
fn write(out: &mut Vec<u8>, value: impl Into<Value>) {
    rmpv::encode::write_value(out, &value.into()).expect("a vector takes every byte");
}

/// One payload.
fn packed(value: impl Into<Value>) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, value);
    out
}

/// What stands first in `payload`.
fn parse(mut payload: &[u8]) -> Result<Value, Malformed> {
    rmpv::decode::read_value_with_max_depth(&mut payload, MAX_DEPTH).map_err(|_| Malformed("not msgpack"))
}

/// The fields of a struct that is an array on the wire.
fn fields<'a>(value: &'a Value, len: usize, otherwise: &'static str) -> Result<&'a [Value], Malformed> {
    value.as_array().filter(|fields| fields.len() == len).map(Vec::as_slice).ok_or(Malformed(otherwise))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Token ids; what is no number is left out.
fn tokens(value: &Value) -> Option<Vec<u32>> {
    Some(value.as_array()?.iter().filter_map(|token| token.as_f64().map(|token| token as u32)).collect())
}

/// A map with these keys in this order.
fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Frames of one streaming chat on the real vLLM 0.32.0.
    const REAL_ADD: &[u8] = include_bytes!("../../fixtures/captures/frames/v0.32_chat_000_1.bin");
    const REAL_OUTPUTS: [&[u8]; 3] = [
        include_bytes!("../../fixtures/captures/frames/v0.32_chat_001_0.bin"),
        include_bytes!("../../fixtures/captures/frames/v0.32_chat_004_0.bin"),
        include_bytes!("../../fixtures/captures/frames/v0.32_chat_005_0.bin"),
    ];

    #[test]
    fn a_request_is_encoded_as_the_real_api_server_does_it() {
        let add = Add::decode(REAL_ADD).unwrap();
        assert_eq!((add.external_id.as_str(), add.prompt.len()), ("chatcmpl-my-rid-7", 15));
        assert_eq!(add.encode()[1], REAL_ADD);
    }

    #[test]
    fn outputs_are_encoded_as_the_real_engine_does_it() {
        for real in REAL_OUTPUTS {
            let outputs = Outputs::decode(&vec![real.to_vec()]).unwrap();
            assert_eq!(outputs.encode()[0], real);
        }
    }

    #[test]
    fn an_embedding_travels_in_a_frame_of_its_own_when_it_is_large() {
        for len in [8_usize, 128] {
            let output = Output { embedding: Some(vec![0.5; len]), ..Output::default() };
            let outputs = Outputs { outputs: vec![output], ..Outputs::default() };
            let message = outputs.encode();
            assert_eq!(message.len(), if len * 4 < 256 { 1 } else { 2 });
            assert_eq!(Outputs::decode(&message).unwrap(), outputs);
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic() {
        let read = |frame: Vec<u8>| {
            let _ = (Add::decode(&frame), decode_abort(&frame), decode_utility(&frame), Outputs::decode(&vec![frame]));
        };
        // Markers with the lengths that follow them at their largest, and one that does not exist.
        let bytes = [0x00, 0x8f, 0x9f, 0xbf, 0xc0, 0xc1, 0xc6, 0xc9, 0xdb, 0xdd, 0xdf, 0xff];
        for real in [REAL_ADD, REAL_OUTPUTS[0], REAL_OUTPUTS[2]] {
            for at in 0..real.len() {
                read(real[..at].to_vec());
                for byte in bytes {
                    let mut frame = real.to_vec();
                    frame[at] = byte;
                    read(frame);
                }
            }
        }
        // Arrays in arrays, and one that says it has 4 G elements.
        read(vec![0x91; 1 << 20]);
        read(vec![0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0]);
    }
}
