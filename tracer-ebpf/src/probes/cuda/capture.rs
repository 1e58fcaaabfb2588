//! Streams that are being captured into a graph: what is enqueued there is no work, but a node.
//!
//! A stream is captured from the beginning of a capture to its end, and one that waits for an event of a captured stream from then on.
//! Seen of the thread that began the capture; another thread that enqueues into its stream is taken for one that works.

use tracer_ebpf::wire::cuda::Thread;

use crate::maps::{CAPTURED_EVENTS, CAPTURES, StreamKey};

#[inline(always)]
fn key(pid_tgid: u64, handle: u64) -> StreamKey {
    StreamKey { process: pid_tgid >> 32, handle }
}

#[inline(always)]
fn mark(pid_tgid: u64, number: u32) -> u64 {
    pid_tgid << 32 | u64::from(number)
}

/// Whether a mark is of a capture of this thread that is open.
#[inline(always)]
fn is_open(thread: &Thread, pid_tgid: u64, mark: u64) -> bool {
    let number = mark as u32;
    mark >> 32 == pid_tgid & 0xffff_ffff && number <= thread.capture && thread.capture - number < thread.captures
}

/// The number of the capture that the stream is in, of the current thread.
#[inline(always)]
pub(super) fn of(thread: *const Thread, pid_tgid: u64, stream: u64) -> Option<u32> {
    // SAFETY: a map's value.
    let thread = unsafe { &*thread };
    // SAFETY: a u64; an entry that is replaced meanwhile is another mark.
    let mark = unsafe { CAPTURES.get(key(pid_tgid, stream)) }.copied()?;
    is_open(thread, pid_tgid, mark).then_some(mark as u32)
}

/// Whether the thread captures anything.
#[inline(always)]
pub(super) fn is_any(thread: *const Thread) -> bool {
    // SAFETY: a map's value.
    unsafe { (*thread).captures != 0 }
}

/// A capture begins; its number. Nothing where the stream is captured already: the runtime's call goes on to the driver's.
#[inline(always)]
pub(super) fn begin(thread: *mut Thread, pid_tgid: u64, stream: u64) -> Option<u32> {
    if is_any(thread) && of(thread, pid_tgid, stream).is_some() {
        return None;
    }
    // SAFETY: a map's value that only this thread's programs write.
    let thread = unsafe { &mut *thread };
    thread.capture += 1;
    thread.captures += 1;
    let _ = CAPTURES.insert(key(pid_tgid, stream), mark(pid_tgid, thread.capture), 0);
    Some(thread.capture)
}

/// The capture of the stream ends; its number, 0 where it was not seen beginning.
#[inline(always)]
pub(super) fn end(thread: *mut Thread, pid_tgid: u64, stream: u64) -> u32 {
    let number = of(thread, pid_tgid, stream).unwrap_or(0);
    let _ = CAPTURES.remove(key(pid_tgid, stream));
    if number != 0 {
        // SAFETY: a map's value that only this thread's programs write.
        let thread = unsafe { &mut *thread };
        thread.captures -= 1;
    }
    number
}

/// An event was recorded in a captured stream.
#[inline(always)]
pub(super) fn recorded(pid_tgid: u64, event: u64, number: u32) {
    let _ = CAPTURED_EVENTS.insert(key(pid_tgid, event), mark(pid_tgid, number), 0);
}

/// The stream waits for an event: it joins the capture that the event is of.
#[inline(always)]
pub(super) fn joined(thread: *const Thread, pid_tgid: u64, stream: u64, event: u64) {
    // SAFETY: a u64; an entry that is replaced meanwhile is another mark.
    let Some(mark) = unsafe { CAPTURED_EVENTS.get(key(pid_tgid, event)) }.copied() else { return };
    // SAFETY: a map's value.
    if is_open(unsafe { &*thread }, pid_tgid, mark) {
        let _ = CAPTURES.insert(key(pid_tgid, stream), mark, 0);
    }
}
