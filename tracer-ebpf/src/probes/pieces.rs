//! The capture of one data call: one record, or several that are pieces of the stream.
//!
//! A call of up to head + tail cap is captured whole. Of a longer one the head and the tail are: the last piece of the head
//! covers the gap with its length, and the tail follows. What cannot be read, or takes more than [`STEPS_MAX`] steps, is a cut
//! up to the call's end. The offset of every piece is its place in the stream.

use aya_ebpf::helpers::{
    bpf_get_smp_processor_id, bpf_probe_read_user, generated::bpf_probe_read_user as probe_read_user,
};
use tracer_ebpf::wire::net::{CAPTURE_MAX, Data, Descriptor, FLAG_STARTS, KIND_DATA_IN, KIND_DATA_OUT, cap_index};

use crate::{
    emit,
    maps::{self, SCRATCH, Scratch, Walk},
    table::Caller,
};

/// Most buffers and pieces of one call: a megabyte in 65 pieces, from up to 190 buffers. Bounds what the verifier looks at.
const STEPS_MAX: u32 = 256;

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

/// What the records of one call share.
struct Shared {
    data: Data,
    total: u64,
    /// Stream offset of the call's first byte.
    offset: u64,
}

/// Sends what the caps let through of a call that moved `total` bytes, and advances the descriptor's counter.
#[inline(always)]
pub fn send(caller: Caller, fd: u32, descriptor: *mut Descriptor, out: bool, total: u64, bytes: Bytes) {
    // SAFETY: as in `table::used`, which gave the pointer.
    let (class, lifetime, offset) = unsafe {
        let of = &mut *descriptor;
        let moved = if out { &mut of.moved_out } else { &mut of.moved_in };
        let offset = *moved;
        // Whether or not the records find room: the next one shows the jump.
        *moved = offset + total;
        (of.class, of.lifetime, offset)
    };
    // SAFETY: no arguments, no preconditions.
    let Some(scratch) = SCRATCH.get_ptr_mut(unsafe { bpf_get_smp_processor_id() }) else { return };
    let kind = if out { KIND_DATA_OUT } else { KIND_DATA_IN };
    let header = emit::header(emit::now(), caller.pid_tgid, kind);
    let data = Data { header, fd, class, len: total, captured: 0, flags: 0, lifetime, offset };
    let call = Shared { data, total, offset };
    let (head_cap, tail_cap) = (maps::cap(cap_index(class, out, false)), maps::cap(cap_index(class, out, true)));
    let (head, tail) = if total <= head_cap + tail_cap { (total, total) } else { (head_cap, total - tail_cap) };
    // SAFETY: this CPU's own until the program returns.
    let payload = unsafe { (&raw mut (*scratch).payload).cast::<u8>() };
    let (address, vectors) = match bytes {
        Bytes::Unseen => return piece(scratch, &call, 0, total, 0),
        Bytes::Flat { address } if total <= PIECE && head == total => {
            // The most of them. Unreadable memory gives a record without payload.
            // SAFETY: the helper checks the address; `payload` has room for twice this.
            let failed = unsafe { probe_read_user(payload.cast(), total as u32, address as *const _) };
            return piece(scratch, &call, 0, total, if failed == 0 { total } else { 0 });
        }
        Bytes::Flat { address } => ((address, total), (0, 0)),
        Bytes::Vectors { address, count } => ((0, 0), (address, count)),
    };
    // SAFETY: as above.
    let walk = unsafe { &mut (*scratch).walk };
    *walk = Walk {
        next: vectors.0,
        vectors: vectors.1,
        base: address.0,
        len: address.1,
        position: 0,
        start: 0,
        filled: 0,
        take: 0,
    };
    if head == 0 {
        piece(scratch, &call, 0, tail, 0);
        walk.start = tail;
    }
    for _ in 0..STEPS_MAX {
        if walk.position >= total || !step(scratch, payload, &call, head, tail) {
            break;
        }
    }
    if walk.start < total {
        piece(scratch, &call, walk.start, total - walk.start, walk.filled);
    }
}

/// One buffer, or as much of it as the piece has room for; `false` when it cannot be read or there is none.
#[inline(always)]
fn step(scratch: *mut Scratch, payload: *mut u8, call: &Shared, head: u64, tail: u64) -> bool {
    // SAFETY: this CPU's own until the program returns.
    let walk = unsafe { &mut (*scratch).walk };
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
    let is_gap = walk.position >= head && walk.position < tail;
    let end = if walk.position < head {
        head
    } else if is_gap {
        tail
    } else {
        call.total
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
        let until = if walk.position == head { tail } else { walk.position };
        piece(scratch, call, walk.start, until - walk.start, walk.filled);
        walk.start = until;
        walk.filled = 0;
    }
    true
}

/// Sends the piece that starts at `start` of the call and covers `len` bytes, of which `captured` are in the payload.
#[inline(always)]
fn piece(scratch: *mut Scratch, call: &Shared, start: u64, len: u64, captured: u64) {
    let captured = if captured > PIECE { PIECE } else { captured };
    // SAFETY: this CPU's own until the program returns; `captured` bytes behind the head were written.
    let record = unsafe {
        let head = &raw mut (*scratch).head;
        *head = Data {
            len,
            captured: captured as u32,
            flags: if start == 0 { FLAG_STARTS } else { 0 },
            offset: call.offset + start,
            ..call.data
        };
        core::slice::from_raw_parts(head.cast::<u8>(), size_of::<Data>() + captured as usize)
    };
    emit::data(record);
}
