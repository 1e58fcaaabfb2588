//! Streams that are being captured into a graph: what is enqueued there is no work, but a node.
//!
//! A stream is captured from the beginning of a capture to its end, and one that waits for an event of a captured stream from then on,
//! whichever thread enqueues. A capture is open while its mark is in `OPEN`; that of one that is over means nothing. Both edges are taken
//! at the return of a call that succeeded, once: a call of the runtime goes on to the driver's, which returns first.

use tracer_ebpf::wire::cuda::{CaptureKey, Process, Thread, capture_number};
use tracer_ebpf::wire::map::NO_EXIST;
use tracer_ebpf::wire::ring;

use super::process;
use crate::emit;
use crate::maps::{CAPTURED_EVENTS, CAPTURES, OPEN, StreamKey, add, captures_changed};

/// Handles of streams that CUDA gives to nobody (cuda.h): `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
const LEGACY: u64 = 1;
const PER_THREAD: u64 = 2;

/// A capture that is open.
#[derive(Clone, Copy)]
pub(super) struct Open {
    mark: u64,
    nodes: *mut u64,
}

impl Open {
    /// A node was enqueued; the capture's number.
    #[inline(always)]
    pub(super) fn node(self) -> u32 {
        add(self.nodes, 1);
        capture_number(self.mark)
    }
}

/// The stream that a handle means. `per_thread`: the default one is the calling thread's own; what stands for it is no multiple of 8, as
/// each address of a stream is.
#[inline(always)]
pub(super) fn stream(pid_tgid: u64, handle: u64, per_thread: bool) -> StreamKey {
    let own = handle == PER_THREAD || (handle == 0 && per_thread);
    let handle = if own {
        (pid_tgid & 0xffff_ffff) << 8 | PER_THREAD
    } else if handle == LEGACY {
        0
    } else {
        handle
    };
    key(pid_tgid, handle)
}

#[inline(always)]
fn key(pid_tgid: u64, handle: u64) -> StreamKey {
    StreamKey { process: pid_tgid >> 32, handle }
}

#[inline(always)]
fn open(process: u64, mark: u64) -> Option<Open> {
    Some(Open { mark, nodes: OPEN.get_ptr_mut(CaptureKey { process, mark })? })
}

/// The capture that the stream is in.
#[inline(always)]
pub(super) fn of(stream: StreamKey) -> Option<Open> {
    // SAFETY: a u64; an entry that is replaced meanwhile is another mark.
    let mark = unsafe { CAPTURES.get(stream) }.copied()?;
    open(stream.process, mark)
}

/// A capture has begun; its number. Nothing where the stream is captured already, or where there is no room: its launches are taken for
/// work, and that is counted.
#[inline(always)]
pub(super) fn begun(thread: *mut Thread, pid_tgid: u64, stream: StreamKey) -> Option<u32> {
    if of(stream).is_some() {
        return None;
    }
    let process = process(pid_tgid)?;
    // SAFETY: a map's value that only this thread's programs write.
    let mark = unsafe {
        (*thread).captures += 1;
        pid_tgid << 32 | (*thread).captures & 0xffff_ffff
    };
    if OPEN.insert(CaptureKey { process: stream.process, mark }, 0, NO_EXIST).is_err() {
        emit::count_drop(ring::DROPS_CUDA);
        return None;
    }
    changed(process, 1);
    let _ = CAPTURES.insert(stream, mark, 0);
    Some(capture_number(mark))
}

/// The capture of the stream has ended: its number and how many nodes were counted; nothing where it was not seen beginning, or was told
/// already.
#[inline(always)]
pub(super) fn ended(pid_tgid: u64, stream: StreamKey) -> Option<(u32, u64)> {
    let of = of(stream)?;
    // SAFETY: a map's value of 8 bytes.
    let nodes = unsafe { *of.nodes };
    let _ = CAPTURES.remove(stream);
    // Of two threads that end it at once, one removes.
    if OPEN.remove(CaptureKey { process: stream.process, mark: of.mark }).is_ok()
        && let Some(process) = process(pid_tgid)
    {
        changed(process, 1u64.wrapping_neg());
    }
    Some((capture_number(of.mark), nodes))
}

/// So many captures of a process more are open; fewer where it wraps.
#[inline(always)]
fn changed(process: *mut Process, by: u64) {
    // SAFETY: a field of a map's value, of 8 bytes.
    add(unsafe { &raw mut (*process).captures }, by);
    captures_changed(by);
}

/// An event was recorded in a stream.
#[inline(always)]
pub(super) fn recorded(stream: StreamKey, event: u64) {
    let event = StreamKey { handle: event, ..stream };
    match of(stream) {
        Some(of) => {
            let _ = CAPTURED_EVENTS.insert(event, of.mark, 0);
        }
        // It is no captured stream's any more.
        None => {
            let _ = CAPTURED_EVENTS.remove(event);
        }
    }
}

/// The stream waits for an event: it joins the capture that the event is of.
#[inline(always)]
pub(super) fn joined(stream: StreamKey, event: u64) {
    // SAFETY: a u64; an entry that is replaced meanwhile is another mark.
    let Some(mark) = (unsafe { CAPTURED_EVENTS.get(StreamKey { handle: event, ..stream }) }).copied() else { return };
    if open(stream.process, mark).is_some() {
        let _ = CAPTURES.insert(stream, mark, 0);
    }
}

/// A process is gone, and its captures with it.
#[inline(always)]
pub(super) fn process_ended(process: *mut Process) {
    // SAFETY: a map's value; nobody of the process runs any more.
    unsafe {
        captures_changed((*process).captures.wrapping_neg());
        (*process).captures = 0;
    }
}
