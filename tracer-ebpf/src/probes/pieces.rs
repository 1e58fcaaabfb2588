//! The capture of one data call: one record, or several that are pieces of the stream.
//!
//! A call of up to head + tail cap is captured whole. Of a longer one the head and the tail are: the last piece of the head
//! covers the gap with its length, and the tail follows. What cannot be read, or takes too many steps, is a cut up to the call's
//! end. The offset of every piece is its place in the stream.
//!
//! The steps of a longer capture are a program of their own that calls itself: a loop of all of them would take the verifier
//! seconds, and `bpf_loop` is not in Linux 5.15.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_probe_read_user, generated::bpf_probe_read_user as probe_read_user},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_ebpf::wire::net::{
    CAPTURE_MAX, Data, Descriptor, FLAG_STARTS, KIND_DATA_IN, KIND_DATA_OUT, cap_index, may_be_client,
};
use tracer_ebpf::wire::ring;

use crate::{
    emit,
    maps::{self, CONTINUE, SCRATCH, Scratch, Walk},
    table::{self, Caller},
};

/// Buffers and pieces that one run of the program takes. The kernel allows 33 tail calls: 528 steps, which is a megabyte in 65
/// pieces from more than 400 buffers.
const STEPS: u32 = 16;

const PIECE: u64 = CAPTURE_MAX as u64;

/// Where a call's bytes are.
#[derive(Clone, Copy)]
pub enum Bytes {
    /// In one buffer.
    Flat { address: u64 },
    /// In the buffers of an array of `struct iovec`.
    Vectors { address: u64, count: u64 },
    /// Nowhere in this process's memory (`sendfile`, `splice`), or not worth the search.
    Unseen,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Iovec {
    base: u64,
    len: u64,
}

/// This CPU's own until the programs return: they cannot be preempted by another of their kind.
#[inline(always)]
fn scratch() -> Option<*mut Scratch> {
    // SAFETY: no arguments, no preconditions.
    SCRATCH.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// Sends what the caps let through of a call that moved `total` bytes, and advances the descriptor's counter.
#[inline(always)]
pub fn send(
    ctx: &RawTracePointContext,
    caller: Caller,
    fd: u32,
    descriptor: *mut Descriptor,
    out: bool,
    total: u64,
    bytes: Bytes,
) {
    // SAFETY: as in `table::used`, which gave the pointer.
    let (class, lifetime, offset) = unsafe {
        let of = &mut *descriptor;
        let moved = if out { &mut of.moved_out } else { &mut of.moved_in };
        let offset = *moved;
        // Whether or not the records find room: the next one shows the jump.
        *moved = offset + total;
        (of.class, of.lifetime, offset)
    };
    let Some(scratch) = scratch() else { return };
    let kind = if out { KIND_DATA_OUT } else { KIND_DATA_IN };
    let header = emit::header(emit::now(), caller.pid_tgid, kind);
    let data = Data { header, fd, class, len: total, captured: 0, flags: 0, lifetime, offset };
    let (head_cap, tail_cap) = (maps::cap(cap_index(class, out, false)), maps::cap(cap_index(class, out, true)));
    let (head, tail) = if total <= head_cap + tail_cap { (total, total) } else { (head_cap, total - tail_cap) };
    let (address, vectors) = match bytes {
        Bytes::Unseen => return piece(scratch, &data, 0, total, 0),
        // The most of them: one buffer, one record.
        Bytes::Flat { address } if head <= PIECE && tail == total => {
            // SAFETY: ours, see `scratch`.
            let payload = unsafe { (&raw mut (*scratch).payload).cast::<u8>() };
            let wanted = if head > PIECE { PIECE } else { head };
            // SAFETY: the helper checks the address; `payload` has room for twice a piece.
            let failed = unsafe { probe_read_user(payload.cast(), wanted as u32, address as *const _) };
            // Unreadable memory gives a record without payload.
            return piece(scratch, &data, 0, total, if failed == 0 { wanted } else { 0 });
        }
        Bytes::Flat { address } => ((address, total), (0, 0)),
        Bytes::Vectors { address, count } => ((0, 0), (address, count)),
    };
    // Without a head the first piece is the gap.
    let start = if head == 0 {
        piece(scratch, &data, 0, tail, 0);
        tail
    } else {
        0
    };
    // SAFETY: ours, see `scratch`.
    unsafe {
        (*scratch).walk = Walk {
            data,
            total,
            head,
            tail,
            next: vectors.0,
            vectors: vectors.1,
            base: address.0,
            len: address.1,
            position: 0,
            start,
            filled: 0,
            take: 0,
            is_open: out && vectors.0 != 0 && may_be_client(class),
        };
    }
    go_on(ctx, scratch);
}

/// Runs [`walk`]; where that is not possible (any more), the rest of the call is a cut.
#[inline(always)]
fn go_on(ctx: &RawTracePointContext, scratch: *mut Scratch) {
    // SAFETY: the element, where there is one, is a program of this kind. Does not return then.
    let _ = unsafe { CONTINUE.tail_call(ctx, 0) };
    rest(scratch);
}

/// Sends what no piece has covered.
#[inline(always)]
fn rest(scratch: *mut Scratch) {
    // SAFETY: ours, see `scratch`.
    let walk = unsafe { &(*scratch).walk };
    if walk.start < walk.total {
        piece(scratch, &walk.data, walk.start, walk.total - walk.start, walk.filled);
    }
}

/// Not attached: the target of [`go_on`]'s tail call.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn walk(ctx: RawTracePointContext) -> i32 {
    let Some(scratch) = scratch() else { return 0 };
    for _ in 0..STEPS {
        if !step(scratch) {
            rest(scratch);
            written(scratch);
            return 0;
        }
    }
    go_on(&ctx, scratch);
    0
}

/// A write from many buffers is gone through: whether it took all their bytes.
#[inline(always)]
fn written(scratch: *mut Scratch) {
    // SAFETY: ours, see `scratch`.
    let walk = unsafe { &(*scratch).walk };
    if !walk.is_open || walk.position < walk.total {
        return;
    }
    let mut is_whole = walk.len == 0;
    if is_whole && walk.vectors != 0 {
        // An empty buffer asks for nothing; where several follow, it is not known.
        // SAFETY: the helper checks the address.
        let Ok(next) = (unsafe { bpf_probe_read_user(walk.next as *const Iovec) }) else { return };
        if next.len == 0 && walk.vectors > 1 {
            return;
        }
        is_whole = next.len == 0;
    }
    let header = &walk.data.header;
    let pid_tgid = u64::from(header.process) << 32 | u64::from(header.thread);
    table::wrote_to(pid_tgid, walk.data.fd, is_whole, header.at);
}

/// One buffer, or as much of it as the piece has room for; `false` when it cannot be read, or there is none.
#[inline(always)]
fn step(scratch: *mut Scratch) -> bool {
    // SAFETY: ours, see `scratch`.
    let (walk, payload) = unsafe { (&mut (*scratch).walk, (&raw mut (*scratch).payload).cast::<u8>()) };
    if walk.position >= walk.total {
        return false;
    }
    if walk.len == 0 {
        if walk.vectors == 0 {
            return false;
        }
        // SAFETY: the helper checks the address.
        let Ok(vector) = (unsafe { bpf_probe_read_user(walk.next as *const Iovec) }) else { return false };
        walk.next += size_of::<Iovec>() as u64;
        walk.vectors -= 1;
        walk.base = vector.base;
        walk.len = vector.len;
    }
    let is_gap = walk.position >= walk.head && walk.position < walk.tail;
    let end = if walk.position < walk.head {
        walk.head
    } else if is_gap {
        walk.tail
    } else {
        walk.total
    };
    let left = end - walk.position;
    walk.take = if walk.len < left { walk.len } else { left };
    if !is_gap {
        let filled = walk.filled & (PIECE - 1);
        let room = PIECE - filled;
        if walk.take > room {
            walk.take = room;
        }
        // SAFETY: a live field. Read back, because the verifier of older kernels learns a bound from a constant only.
        let take = unsafe { core::ptr::read_volatile(&raw const walk.take) };
        if take > PIECE {
            return false;
        }
        // SAFETY: the helper checks the address; offset and length are at most a piece each, and `payload` holds two.
        if take > 0
            && unsafe { probe_read_user(payload.add(filled as usize).cast(), take as u32, walk.base as *const _) } != 0
        {
            return false;
        }
        walk.filled = filled + take;
    }
    walk.base += walk.take;
    walk.len -= walk.take;
    walk.position += walk.take;
    if !is_gap && (walk.filled >= PIECE || walk.position == end) {
        let until = if walk.position == walk.head { walk.tail } else { walk.position };
        piece(scratch, &walk.data, walk.start, until - walk.start, walk.filled);
        walk.start = until;
        walk.filled = 0;
    }
    true
}

/// Sends the piece that starts at `start` of the call and covers `len` bytes, of which `captured` are in the payload.
#[inline(always)]
fn piece(scratch: *mut Scratch, call: &Data, start: u64, len: u64, captured: u64) {
    let captured = if captured > PIECE { PIECE } else { captured };
    // SAFETY: ours, see `scratch`; `captured` bytes behind the head were written.
    let record = unsafe {
        let head = &raw mut (*scratch).head;
        *head = Data {
            len,
            captured: captured as u32,
            flags: if start == 0 { FLAG_STARTS } else { 0 },
            offset: call.offset + start,
            ..*call
        };
        core::slice::from_raw_parts(head.cast::<u8>(), size_of::<Data>() + captured as usize)
    };
    emit::put::<[u8], { ring::DATA }>(record);
}
