//! Derived trace and span ids: a hash of what the span is, so that a replay gives the same ones.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::input::{End, EventNanos, Server};
use crate::output::{SpanId, TraceId};

/// The identity of a run's target; part of every derived trace id.
pub fn run_identity(server: &Server) -> u64 {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&server.pid.to_le_bytes());
    bytes[4..].copy_from_slice(&server.start_ticks.to_le_bytes());
    xxh3_64(&bytes)
}

fn trace(parts: &[&[u8]]) -> TraceId {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    // All zeros is the one invalid id (W3C trace context).
    TraceId(hash.digest128().max(1).to_be_bytes())
}

/// What tells an HTTP request from every other: where and when its first byte was read, and its place among those that came in
/// the same call (pipelined ones).
pub fn exchange_salt(end: End, started: EventNanos, place: u32) -> u64 {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&end.0.to_le_bytes());
    bytes[8..16].copy_from_slice(&started.to_le_bytes());
    bytes[16..].copy_from_slice(&place.to_le_bytes());
    xxh3_64(&bytes)
}

/// The trace of an HTTP request that brought no `traceparent`.
pub fn exchange_trace(run: u64, salt: u64) -> TraceId {
    trace(&[b"exchange", &run.to_le_bytes(), &salt.to_le_bytes()])
}

/// The trace of a generation whose HTTP side was not seen. `stamp`: its arrival, or its first sighting.
pub fn generation_trace(run: u64, id: &str, stamp: u64) -> TraceId {
    trace(&[b"generation", &run.to_le_bytes(), id.as_bytes(), &stamp.to_le_bytes()])
}

/// The trace of an engine step. `stamp`: the engine's own, ns.
pub fn step_trace(run: u64, engine: u32, stamp: i64) -> TraceId {
    trace(&[b"step", &run.to_le_bytes(), &engine.to_le_bytes(), &stamp.to_le_bytes()])
}

/// A span within a trace: by its name and its place among its like. `salt` tells requests apart that share a remote trace.
pub fn span(trace: TraceId, salt: u64, name: &str, place: u64) -> SpanId {
    let mut hash = Xxh3::new();
    hash.update(&trace.0);
    hash.update(&salt.to_le_bytes());
    hash.update(name.as_bytes());
    hash.update(&place.to_le_bytes());
    SpanId(hash.digest().max(1).to_be_bytes())
}

/// A caller's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace: TraceId,
    pub span: SpanId,
    /// The caller recorded it.
    pub sampled: bool,
}

/// A W3C `traceparent`. Refused (`None`): other shapes, version ff, ids of zeros.
pub fn traceparent(value: &str) -> Option<Parent> {
    let mut parts = value.trim().split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !hex(version, 2) || version == "ff" || !hex(trace, 32) || !hex(parent, 16) || !hex(flags, 2) {
        return None;
    }
    // Version 00 has exactly four fields; later ones may have more.
    if version == "00" && parts.next().is_some() {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|&n| n != 0)?;
    let parent = u64::from_str_radix(parent, 16).ok().filter(|&n| n != 0)?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some(Parent { trace: TraceId(trace.to_be_bytes()), span: SpanId(parent.to_be_bytes()), sampled: flags & 1 == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_traceparent_is_read_and_bad_ones_are_refused() {
        let parent = traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        assert_eq!(parent.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((parent.span.to_string().as_str(), parent.sampled), ("00f067aa0ba902b7", true));
        for bad in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(traceparent(bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_are_the_same_for_the_same_request_and_differ_between_requests() {
        let of = |started, place| exchange_trace(1, exchange_salt(End(2), started, place));
        let a = of(3, 0);
        assert_eq!(a, of(3, 0));
        assert_ne!(a, of(4, 0));
        assert_ne!(a, of(3, 1), "pipelined in one call");
        assert_ne!(span(a, 0, "decode_step", 1), span(a, 0, "decode_step", 2));
    }
}
